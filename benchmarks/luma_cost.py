"""CPU seconds that the periodicity detector takes by the size of a video, and what reading them is.

    python benchmarks/luma_cost.py [--quick]

Rendered clips made larger and encoded as H.264, 4 s of 360p up to 4K and 18 s of 1080p. "Grey
before" reads the same frames as a model's are (RGB, every deblocking filter, shrunk, then grey),
"grey" as the detector does, "bare" decodes the file and does nothing with it. CPU seconds of this
process and of the one that decodes, without its start. The last line is one JSON object.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from cpu import cpu_seconds

from data_prep.periodicity.detector import detect_in_frames
from data_prep.periodicity.features import grey_plan, read_grey
from data_prep.processes import one_thread_each
from data_prep.synthetic.clip import clip_spec
from data_prep.synthetic.render import draw_clip
from data_prep.video import clip_of_video
from data_prep.video.guard import end_processes, read_guarded
from data_prep.video_writer import encode_mp4

SIZES = {
    "640x360, 4 s": (640, 360, 4),
    "1280x720, 4 s": (1280, 720, 4),
    "1920x1080, 4 s": (1920, 1080, 4),
    "1920x1080, 18 s": (1920, 1080, 18),
    "3840x2160, 4 s": (3840, 2160, 4),
}
RATE = 30


def main() -> None:
    """Render, read in each way, print."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--quick", action="store_true", help="the two smallest sizes")
    args = options.parse_args()
    cv2.setNumThreads(1)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, one_thread_each():
        for name, size in list(SIZES.items())[: 2 if args.quick else None]:
            found[name] = measure(render(Path(folder) / "clip.mp4", *size))
    print("| video | grey before | grey | bare decoding | detector, all in | share of reading |")
    print("|---|---|---|---|---|---|")
    for name, one in found.items():
        whole = one["grey"] + one["search"]
        cells = [f"{one[key]:.2f}" for key in ("before", "grey", "bare")]
        print(f"| {name} | {' | '.join(cells)} | {whole:.2f} | {one['grey'] / whole:.0%} |")
    print(json.dumps({"benchmark": "luma_cost", "videos": found}))


def render(path: Path, width: int, height: int, length_s: int) -> Path:
    """A clip of level medium, made larger, again and again until it is long enough."""
    spec = clip_spec("medium", 3, "test", 0)
    drawn = list(draw_clip(spec))
    shown = [drawn[int(i * spec.fps / RATE) % len(drawn)] for i in range(length_s * RATE)]
    encode_mp4(path, np.stack([cv2.resize(picture, (width, height)) for picture in shown]), RATE)
    return path


def measure(path: Path) -> dict[str, float]:
    """CPU seconds of each way."""
    clip = clip_of_video(path, action="unknown")
    plan = grey_plan(clip)
    grey, fps = read_grey(clip)
    return {
        "before": least(lambda: [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in read_guarded(plan)]),
        "grey": least(lambda: read_grey(clip)),
        "bare": least(lambda: decode(path)),
        "search": least(lambda: detect_in_frames(grey, fps)),
    }


def decode(path: Path) -> int:
    """Number of frames of a file."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.thread_count = 1
        return sum(1 for _ in file.decode(stream))


def least(read: Callable[[], Any]) -> float:
    """CPU seconds of one call, the least of two times four, without what a first call starts."""
    took = []
    for _ in range(2):
        first, five = seconds_of(read, 1), seconds_of(read, 5)
        took.append((five - first) / 4)
    return round(min(took), 3)


def seconds_of(read: Callable[[], Any], num_calls: int) -> float:
    """CPU seconds of some calls, beginning without a process that decodes."""
    end_processes()
    began = cpu_seconds()
    for _ in range(num_calls):
        read()
    end_processes()  # else the seconds of the one that decodes are not known
    return cpu_seconds() - began


if __name__ == "__main__":
    main()

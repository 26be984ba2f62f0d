"""What `actrep count` spends on decoding: a video is read for its look, detector and model.

    python benchmarks/count_decode.py [--quick] [VIDEO]

Without VIDEO, a rendered clip of 1280x720 at 30 frames a second and of 20 s (`--quick`: 4 s). The
model's frames are those of recipes/quickstart_grpo.yaml. Seconds on the clock, the least of three
calls in a process that has read the file before. The last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_prep.looks import look_of
from data_prep.periodicity.detector import detect_cycles
from data_prep.periodicity.features import read_grey
from data_prep.synthetic.clip import clip_spec
from data_prep.synthetic.render import draw_clip
from data_prep.video import clip_of_video, plan_frames
from data_prep.video.guard import read_guarded
from data_prep.video_writer import encode_mp4

FPS, WIDTH, HEIGHT = 30, 1280, 720
FRAMES: dict[str, Any] = {
    "fps": 4.0, "min_frames": 4, "max_frames": 64, "min_pixels": 1024, "max_pixels": 1024,
    "factor": 32,
}  # fmt: skip


def main() -> None:
    """Render if there is no video, then read it in each way."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("video", type=Path, nargs="?")
    options.add_argument("--quick", action="store_true")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = args.video or render(Path(folder) / "clip.mp4", 4 if args.quick else 20)
        clip = clip_of_video(video, action="unknown")
        plan = plan_frames(clip, **FRAMES)
        read_guarded(plan)
        found = {
            "duration_s": clip.duration_s,
            "look_s": seconds(lambda: look_of(plan)),
            "detector_frames_s": seconds(lambda: read_grey(clip)),
            "detector_s": seconds(lambda: detect_cycles(clip)),
            "model_frames_s": seconds(lambda: read_guarded(plan)),
        }
    print(json.dumps({"benchmark": "count_decode", **found}))


def render(path: Path, length_s: int) -> Path:
    """Clips of level medium, one after the other, made larger."""
    pictures: list[np.ndarray] = []
    index = 0
    while len(pictures) < length_s * FPS:
        spec = clip_spec("medium", 3, "test", index)
        drawn, index = np.asarray(draw_clip(spec)), index + 1
        shown = (np.arange(int(len(drawn) / spec.fps * FPS)) * spec.fps / FPS).astype(int)
        pictures += [cv2.resize(drawn[i], (WIDTH, HEIGHT)) for i in shown]
    encode_mp4(path, np.stack(pictures[: length_s * FPS]), FPS)
    return path


def seconds(read: Callable[[], object]) -> float:
    """The least of three calls."""
    took = []
    for _ in range(3):
        began = time.perf_counter()
        read()
        took.append(time.perf_counter() - began)
    return round(min(took), 2)


if __name__ == "__main__":
    main()

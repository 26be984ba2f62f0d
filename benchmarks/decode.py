"""How fast clips are decoded and validated, against bare decord in the same run, per core.

Videos of three sizes are rendered. For each, in turns and in one process:

    decord      the frames of the plan by decord alone: open, one batch, full size, nothing else
    resized     the same and cv2's area resize of each frame, which is the least that a model needs
    decode      `Video.frames_at`: probe, open, the plan's frames one by one at full size
    read        `read_frames`: what training and evaluation read, resized to the pixel budget
    validate    `check_video`: hash, open, time stamps, decode; the work of one process of
                `actrep validate`

then, for other kinds of file at 640x360, what its probe costs beside reading it (`KINDS`), and
then the whole of `validate_file` with one process on many files, less its start-up.

    python benchmarks/decode.py [--quick]

Seconds are CPU seconds of all threads (decord decodes in one of its own): what one core gives. They
hold on a busy machine, too; those of `validate_file` count its child. Frames are those of the FILE
that the decoder passes on its way through the clip: the plan shows 4 a second of them.

The last line is one JSON object: frames/s by size and method, and each as a share of bare decord.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import cv2
import decord
import numpy as np
from cpu import cpu_seconds

from data_prep.schema import Clip, write_clips
from data_prep.validation.validate import Decoding, validate_file
from data_prep.validation.video_facts import VideoTask, check_video
from data_prep.validation.view import View
from data_prep.video import (
    FramePlan,
    Video,
    clip_of_video,
    plan_frames,
    probe,
    read_frames,
)

FPS = 30
SIZES = {"64x64": (64, 64), "640x360": (640, 360), "1280x720": (1280, 720)}
VIEW = View(
    fps=4.0,
    min_frames=4,
    max_frames=256,
    min_pixels=1024,
    max_pixels=224 * 224,
    factor=32,
    frames_per_patch=2,
    max_visual_tokens=None,
)
KINDS = {
    "h264 mp4": ("mp4", "libx264", 0),
    "h264 mp4 b-frames": ("mp4", "libx264", 2),
    "h264 mkv b-frames": ("mkv", "libx264", 2),
    "h264 ts b-frames": ("ts", "libx264", 2),
    "h264 avi b-frames": ("avi", "libx264", 2),
    "mpeg4 avi": ("avi", "mpeg4", 0),
    "mpeg4 avi b-frames": ("avi", "mpeg4", 2),
    "mpeg2 mpg b-frames": ("mpg", "mpeg2video", 2),
    "vp9 webm": ("webm", "libvpx-vp9", 0),
}
OPTIONS = {"libx264": {"preset": "veryfast"}, "libvpx-vp9": {"deadline": "realtime"}}
METHODS = ("decord", "resized", "decode", "read", "validate")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--quick", action="store_true", help="shorter videos, fewer rounds")
    args = options.parse_args()
    num_frames, rounds, copies = (120, 3, 20) if args.quick else (600, 5, 60)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        per_second = {}
        for size, (width, height) in SIZES.items():
            path = folder / f"{size}.mp4"
            write_video(path, width, height, num_frames)
            seconds = measure(path, rounds)
            per_second[size] = {m: round(num_frames / seconds[m], 1) for m in METHODS}
            shares = "  ".join(f"{m} {seconds['decord'] / seconds[m]:.2f}" for m in METHODS[1:])
            print(f"{size:>9}: decord {num_frames / seconds['decord']:>8,.0f} frames/s; {shares}")
        kinds = {name: measure_kind(folder, name, num_frames // 2, rounds) for name in KINDS}
        start = measure_file(folder / "64x64.mp4", 1)  # next to nothing to decode
        whole = measure_file(folder / "640x360.mp4", copies)
        whole["start_cpu_s"] = start["cpu_s"]
    share = {
        size: {m: round(rates[m] / rates["decord"], 3) for m in METHODS[1:]}
        for size, rates in per_second.items()
    }
    whole_rate = copies * num_frames / (whole["cpu_s"] - whole["start_cpu_s"])
    result = {
        "benchmark": "decode",
        "quick": args.quick,
        "file_frames": num_frames,
        "frames_per_s": per_second,
        "share_of_decord": share,
        "kinds_ms": kinds,
        "validate_file": {
            "videos": copies,
            "size": "640x360",
            "frames_per_s": round(whole_rate, 1),
            "share_of_decord": round(whole_rate / per_second["640x360"]["decord"], 3),
            **whole,
        },
    }
    print(json.dumps(result))


def measure_kind(folder: Path, name: str, num_frames: int, rounds: int) -> dict[str, float]:
    """Least CPU milliseconds of a first probe and of reading by a plan."""
    container, codec, num_b = KINDS[name]
    path = folder / f"{name}.{container}"
    write_video(path, *SIZES["640x360"], num_frames, codec=codec, num_b=num_b)
    best = {"probe": float("inf"), "read": float("inf")}
    for _ in range(rounds):
        os.utime(path)  # else what the probe found is remembered
        clip = clip_of_video(path)  # probes in a process whose time is not counted here
        began = time.process_time()
        probe(path)
        probed = time.process_time()
        read_frames(plan_of(clip))
        best["probe"] = min(best["probe"], 1e3 * (probed - began))
        best["read"] = min(best["read"], 1e3 * (time.process_time() - probed))
    shown = {key: round(value, 1) for key, value in best.items()}
    print(f"{name:>18}: probe {shown['probe']:>6} ms  read {shown['read']:>6} ms")
    return shown


def write_video(
    path: Path, width: int, height: int, num_frames: int, codec: str = "libx264", num_b: int = 0
) -> None:
    """A disc that swings before a textured background that moves; a key frame a 2 s."""
    rng = np.random.default_rng(0)
    grain = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    background = cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=OPTIONS.get(codec, {}))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 2 * FPS, num_b
        for i in range(num_frames):
            image = np.roll(background, 2 * i, axis=1)
            x = int(width * (0.5 + 0.3 * np.sin(i / 8)))
            cv2.circle(image, (x, height // 2), height // 8, (255, 200, 0), -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def measure(path: Path, rounds: int) -> dict[str, float]:
    """Least CPU seconds of each method, in turns."""
    plan = plan_of(clip_of_video(path))
    jobs: dict[str, Callable[[], object]] = {
        "decord": partial(bare, plan),
        "resized": partial(bare_resized, plan),
        "decode": partial(decode, plan),
        "read": partial(read_frames, plan),
        "validate": partial(check_video, VideoTask(plan.video, plan.times_s)),
    }
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for name, job in jobs.items():
            began = time.process_time()
            job()
            best[name] = min(best[name], time.process_time() - began)
    return best


def plan_of(clip: Clip) -> FramePlan:
    """The frames of a clip that a model is shown."""
    return plan_frames(
        clip,
        fps=VIEW.fps,
        min_frames=VIEW.min_frames,
        max_frames=VIEW.max_frames,
        min_pixels=VIEW.min_pixels,
        max_pixels=VIEW.max_pixels,
        factor=VIEW.factor,
    )


def bare(plan: FramePlan) -> np.ndarray:
    reader = decord.VideoReader(plan.video, num_threads=1)
    numbers = np.minimum(np.floor(np.array(plan.times_s) * FPS + 1e-3), len(reader) - 1)
    return np.asarray(reader.get_batch(numbers.astype(int).tolist()).asnumpy())


def bare_resized(plan: FramePlan) -> np.ndarray:
    size = (plan.width, plan.height)
    return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in bare(plan)])


def decode(plan: FramePlan) -> int:
    with Video(plan.video) as video:
        return sum(1 for _ in video.frames_at(plan.times_s))


def measure_file(video: Path, copies: int) -> dict[str, float]:
    """CPU and wall seconds of validating many files with one process, its start included."""
    folder = video.with_suffix(".set")
    folder.mkdir()
    clip, content = clip_of_video(video), video.read_bytes()
    clips: list[Clip] = []
    for i in range(copies):
        path = folder / f"{i}.mp4"
        path.write_bytes(content + i.to_bytes(8, "little"))  # bytes of its own
        clips.append(replace(clip, id=str(i), video=path.name, count=0, cycles=()))
    write_clips(folder / "clips.jsonl", clips)
    began, cpu = time.perf_counter(), cpu_seconds()
    report = validate_file(folder / "clips.jsonl", VIEW, Decoding(1, 600.0))
    assert (report.num_ok, report.num_videos_checked) == (copies, copies), report.findings[:3]
    return {
        "cpu_s": round(cpu_seconds() - cpu, 2),
        "wall_s": round(time.perf_counter() - began, 2),
    }


if __name__ == "__main__":
    main()

"""What is found in a video file: bytes, frames, rate, size and evenness of its times."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_prep.video import VideoError, decode_frames, file_problem, open_video

_HASHED_AT_ONCE = 2**20


@dataclass(frozen=True)
class VideoTask:
    """What is asked about one file.

    Attributes:
        path: The file.
        indices: Frame numbers to decode, not decreasing; those beyond the file's end are left out.
        is_opened: False only looks at the file and hashes it.
    """

    path: str
    indices: tuple[int, ...] = ()
    is_opened: bool = True


@dataclass(frozen=True)
class VideoFacts:
    """What a video file holds, or why it cannot be used.

    Attributes:
        path: The file.
        problem: None, or why it cannot be used: `missing_video`, `unreadable_video`,
            `empty_video`, `undecodable_video`, `decoder_crashed` or `decoder_hung`.
        message: The problem in words.
        sha256: Of the file's bytes; None where they were not read.
        num_frames: Frames of the file; 0 where it was not opened, as are the rest.
        fps: Frames per second, on average.
        width: Of a frame as it is shown (rotation applied), pixels.
        height: Of a frame as it is shown, pixels.
        drift_s: How far the time of a frame lies from (its number / fps) at most, seconds; near 0
            unless the frame rate varies.
        num_decoded: Frames that were decoded.
    """

    path: str
    problem: str | None = None
    message: str = ""
    sha256: str | None = None
    num_frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    drift_s: float = 0.0
    num_decoded: int = 0


Check = Callable[[VideoTask], VideoFacts]


def check_video(task: VideoTask) -> VideoFacts:
    """Look at a file, hash it, open it and decode the frames that are asked for."""
    if problem := file_problem(task.path):
        return VideoFacts(task.path, problem.kind, problem.message)
    try:
        facts = VideoFacts(task.path, sha256=_sha256(task.path))
    except OSError as error:
        return VideoFacts(task.path, "unreadable_video", error.strerror or "cannot be read")
    if not task.is_opened:
        return facts
    try:
        return _decode(task, facts)
    except VideoError as error:
        reason = str(error).removeprefix(f"{task.path}: ")
        return replace(facts, problem="undecodable_video", message=reason)


def _decode(task: VideoTask, facts: VideoFacts) -> VideoFacts:
    reader = open_video(task.path)
    num_frames, fps = len(reader), float(reader.get_avg_fps())
    times = np.asarray(reader.get_frame_timestamp(np.arange(num_frames)), np.float64)[:, 0]
    drift = np.abs(times - times[0] - np.arange(num_frames) / fps).max() if fps > 0 else 0.0
    inside = [index for index in task.indices if index < num_frames] or [0]
    height = width = num_decoded = 0
    for frame in decode_frames(reader, task.path, inside):
        height, width = frame.shape[:2]
        num_decoded += 1
    return replace(
        facts,
        num_frames=num_frames,
        fps=fps,
        width=width,
        height=height,
        drift_s=float(drift),
        num_decoded=num_decoded,
    )


def _sha256(path: str) -> str:
    digest, buffer = hashlib.sha256(), bytearray(_HASHED_AT_ONCE)
    with Path(path).open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(memoryview(buffer)[:size])
    return digest.hexdigest()

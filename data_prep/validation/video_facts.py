"""What is found in a video file: bytes, frames, rate, size and evenness of its times."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_prep.video import (
    EPSILON_S,
    Video,
    VideoError,
    clip_problem,
    folder_frames,
    frames_of_folder,
    image_size,
    is_folder,
)

_HASHED_AT_ONCE = 2**20


@dataclass(frozen=True)
class VideoTask:
    """What is asked about one file.

    Attributes:
        path: The file.
        times_s: Seconds at which frames are read, not falling; those beyond the file's end are
            left out.
        is_opened: False only looks at the file and hashes it.
        is_deep: Compare what is read with a pass through the whole file, whatever its kind.
        folder_fps: Frames a second, if it is a folder of frames.
    """

    path: str
    times_s: tuple[float, ...] = ()
    is_opened: bool = True
    is_deep: bool = False
    folder_fps: float = 1.0


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
        end_s: When the last frame ends, seconds from the first.
        width: Of a frame as it is shown (rotation and pixel aspect applied), pixels.
        height: Of a frame as it is shown, pixels.
        drift_s: How far the time of a frame lies from (its number / fps) at most, seconds; near 0
            unless the frame rate varies.
        num_decoded: Frames that were read.
        num_wrong: Of those, how many are not the ones of a pass through the whole file.
    """

    path: str
    problem: str | None = None
    message: str = ""
    sha256: str | None = None
    num_frames: int = 0
    fps: float = 0.0
    end_s: float = 0.0
    width: int = 0
    height: int = 0
    drift_s: float = 0.0
    num_decoded: int = 0
    num_wrong: int = 0


Check = Callable[[VideoTask], VideoFacts]


def check_video(task: VideoTask) -> VideoFacts:
    """Look at a file, hash it, open it and decode the frames that are asked for."""
    if problem := clip_problem(task.path):
        return VideoFacts(task.path, problem.kind, problem.message)
    try:
        facts = VideoFacts(task.path, sha256=_sha256(task.path))
    except OSError as error:
        return VideoFacts(task.path, "unreadable_video", error.strerror or "cannot be read")
    if not task.is_opened:
        return facts
    try:
        return _read_folder(task, facts) if is_folder(task.path) else _decode(task, facts)
    except VideoError as error:
        reason = str(error).removeprefix(f"{task.path}: ")
        return replace(facts, problem="undecodable_video", message=reason)


def _decode(task: VideoTask, facts: VideoFacts) -> VideoFacts:
    with Video(task.path) as video:
        found = video.probe
        inside = [second for second in task.times_s if second < found.end_s] or [0.0]
        read = [_digest(image) for image in video.frames_at(inside)]
        is_risky = video.num_seeks > 0 and found.is_risky
        num_wrong = 0
        if task.is_deep or is_risky:
            shown = [(second, _digest(image)) for second, image in video.frames()]
            num_wrong = sum(a != b for a, b in zip(read, _shown_at(inside, shown), strict=True))
    return replace(
        facts,
        num_frames=found.num_frames,
        fps=found.fps,
        end_s=found.end_s,
        width=found.width,
        height=found.height,
        drift_s=found.drift_s,
        num_decoded=len(read),
        num_wrong=num_wrong,
    )


def _read_folder(task: VideoTask, facts: VideoFacts) -> VideoFacts:
    frames, fps = frames_of_folder(task.path), task.folder_fps
    end_s = len(frames) / fps
    inside = [second for second in task.times_s if second < end_s] or [0.0]
    height, width = image_size(frames[0])
    num_decoded = sum(1 for _ in folder_frames(task.path, inside, fps))
    return replace(
        facts,
        num_frames=len(frames),
        fps=fps,
        end_s=end_s,
        width=width,
        height=height,
        num_decoded=num_decoded,
    )


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _shown_at(times_s: Sequence[float], shown: Sequence[tuple[float, bytes]]) -> list[bytes]:
    """What is shown at some seconds, out of a pass through the file."""
    starts = np.array([second for second, _ in shown]) - EPSILON_S
    places = np.searchsorted(starts, times_s, side="right") - 1
    return [shown[max(int(place), 0)][1] for place in places]


def _sha256(path: str) -> str:
    digest, buffer = hashlib.sha256(), bytearray(_HASHED_AT_ONCE)
    for name in frames_of_folder(path) if is_folder(path) else [Path(path)]:
        with name.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                digest.update(memoryview(buffer)[:size])
    return digest.hexdigest()

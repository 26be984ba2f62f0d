"""Frame plans: one, made from metadata alone, for SFT, GRPO, evaluation and inference alike.

A plan says at which seconds of a file a model sees it, and at what size. Nothing is opened to make
it, it is small enough to travel between processes in place of pixels, and has a hash by which
caches and assertions know it. What is shown at a second, the file's own time stamps say (`reader`).

Times that a model is told count from the start of the clip, because that is what it is asked about.
"""

import hashlib
import json
import math
import stat
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from data_prep.files import DataError
from data_prep.schema import Clip
from data_prep.video.files import VideoError
from data_prep.video.folder import clip_problem, frames_of_folder

_DIGITS = 6  # of a second


@dataclass(frozen=True)
class FramePlan:
    """Which frames of a clip are shown, and at what size.

    Attributes:
        video: Path of the file.
        num_bytes: Size of the file when the plan was made; a file that changes changes its hash.
        times_s: Seconds from the file's first frame, T of them, in the order in which they are
            shown: the frame that the file presents then.
        fps: Frames per second at which the clip is shown (after the limits on T).
        height: Height of a shown frame, pixels.
        width: Width of a shown frame, pixels.
        changed_ns: When the file was last changed, nanoseconds; part of the hash as well.
        is_image: Whether the file is a still image (`image.plan_image`); T is 1 then.
        folder_fps: Frames per second of a folder of frames (`folder`); None for a file.
        before: Still images that the prompt shows before it, each by a plan of its own.
    """

    video: str
    num_bytes: int
    times_s: tuple[float, ...]
    fps: float
    height: int
    width: int
    changed_ns: int = 0
    is_image: bool = False
    folder_fps: float | None = None
    before: tuple["FramePlan", ...] = ()

    @property
    def shown(self) -> "tuple[FramePlan, ...]":
        """All that the prompt shows, in order: the images before it, and itself."""
        return (*self.before, self)

    @property
    def num_images(self) -> int:
        """Still images among all that the prompt shows."""
        return sum(plan.is_image for plan in self.shown)

    @property
    def num_frames(self) -> int:
        """T, the number of frames shown."""
        return len(self.times_s)

    @property
    def timestamps_s(self) -> tuple[float, ...]:
        """Seconds from the start of the clip, one for each frame."""
        return tuple(i / self.fps for i in range(self.num_frames))

    @cached_property
    def hash(self) -> str:
        """32 hexadecimal digits that name this plan."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class FileState:
    """What a video file was when it was looked at; zeros if it was not there.

    Attributes:
        num_bytes: Its size; of a folder, that of its frames together.
        changed_ns: When it was last changed, nanoseconds; of a folder, it or one of its frames.
        is_folder: Whether it is a folder of frames.
    """

    num_bytes: int = 0
    changed_ns: int = 0
    is_folder: bool = False

    @classmethod
    def of(cls, path: str | Path) -> Self:
        """The state of a file now."""
        try:
            status = Path(path).stat()
            if stat.S_ISDIR(status.st_mode):
                frames = [frame.stat() for frame in frames_of_folder(path)]
                latest = max(status.st_mtime_ns, *(frame.st_mtime_ns for frame in frames))
                return cls(sum(frame.st_size for frame in frames), latest, is_folder=True)
        except (OSError, ValueError, VideoError):
            return cls()
        return cls(status.st_size, status.st_mtime_ns)


def plan_frames(
    clip: Clip,
    state: FileState | None = None,
    /,
    *,
    fps: float,
    min_frames: int,
    max_frames: int,
    min_pixels: int,
    max_pixels: int,
    factor: int,
) -> FramePlan:
    """Choose the frames of a clip: `fps` a second from its start, within the limits.

    Where the clip would give more than `max_frames` (fewer than `min_frames`), that many frames
    are spread evenly over the clip instead and the plan's `fps` says at what rate.

    Args:
        clip: The clip; its `video` must exist, or its state be given.
        state: What the file was when the run began: frames of it that are cached are shown whatever
            became of it since. Nothing is looked at then.
        fps: Frames per second wanted.
        min_frames: Fewest frames.
        max_frames: Most frames.
        min_pixels: Fewest pixels of ONE frame.
        max_pixels: Most pixels of ONE frame.
        factor: Height and width are multiples of this (patch size times merge size).

    Raises:
        VideoError: if the file is missing or empty.
    """
    if state is None:
        if problem := clip_problem(clip.video):
            raise VideoError(f"{clip.video}: {problem.message} (clip {clip.id!r})")
        state = FileState.of(clip.video)
    times_s, fps = plan_times(clip, fps=fps, min_frames=min_frames, max_frames=max_frames)
    height, width = fit_size(
        clip.height, clip.width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels
    )
    return FramePlan(
        video=str(Path(clip.video).absolute()),
        num_bytes=state.num_bytes,
        times_s=times_s,
        fps=fps,
        height=height,
        width=width,
        changed_ns=state.changed_ns,
        folder_fps=clip.video_fps if state.is_folder else None,
    )


def plan_times(
    clip: Clip, *, fps: float, min_frames: int, max_frames: int
) -> tuple[tuple[float, ...], float]:
    """Seconds in the file and the rate of a plan; the file need not be there."""
    wanted = math.floor(clip.duration_s * fps + 1e-6)
    num_frames = min(max(wanted, min_frames, 1), max_frames)
    if num_frames != wanted:
        fps = num_frames / clip.duration_s
    times = np.round(clip.start_s + np.arange(num_frames) / fps, _DIGITS)
    return tuple(times.tolist()), float(fps)


def fit_size(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Size of a frame within a pixel budget, keeping the aspect ratio as multiples allow.

    Both sides are rounded to a multiple of `factor`; the area is then brought within
    [min_pixels, max_pixels] (the rule of Qwen-VL's image processor, applied to ONE frame).
    """
    if height <= 0 or width <= 0:
        raise DataError(f"frame size {width}x{height}, expected positive numbers of pixels")
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width

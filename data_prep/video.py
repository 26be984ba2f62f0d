"""Reading video: one frame plan and one reader, used by SFT, GRPO, evaluation and inference alike.

A plan says which frames of a clip a model sees and at what size. It is made from metadata alone
(nothing is decoded), is small enough to travel between processes in place of pixels, and has a
hash by which caches and assertions know it.

Times of a plan count from the start of the clip, because that is what the model is asked about.
"""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import cv2
import decord
import numpy as np

from data_prep.schema import Clip, DataError

# What decord and FFmpeg put before their messages: a time and a place in the source.
_LOG_PREFIX = re.compile(r"\[(\d\d:\d\d:\d\d\] \S+:\d+:|\w+ @ 0x\w+\]) ")


class VideoError(DataError):
    """A video that is missing, empty or cannot be decoded; the message names the file."""


@dataclass(frozen=True)
class FramePlan:
    """Which frames of a clip are shown, and at what size.

    Attributes:
        video: Path of the file.
        num_bytes: Size of the file when the plan was made; a file that changes changes its hash.
        indices: Frame numbers in the file, T of them, in the order in which they are shown.
        fps: Frames per second at which the clip is shown (after the limits on T).
        height: Height of a shown frame, pixels.
        width: Width of a shown frame, pixels.
    """

    video: str
    num_bytes: int
    indices: tuple[int, ...]
    fps: float
    height: int
    width: int

    @property
    def num_frames(self) -> int:
        """T, the number of frames shown."""
        return len(self.indices)

    @property
    def timestamps_s(self) -> tuple[float, ...]:
        """Seconds from the start of the clip, one for each frame."""
        return tuple(i / self.fps for i in range(self.num_frames))

    @cached_property
    def hash(self) -> str:
        """32 hexadecimal digits that name this plan."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def plan_frames(
    clip: Clip,
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
        clip: The clip; its `video` must exist.
        fps: Frames per second wanted.
        min_frames: Fewest frames.
        max_frames: Most frames.
        min_pixels: Fewest pixels of ONE frame.
        max_pixels: Most pixels of ONE frame.
        factor: Height and width are multiples of this (patch size times merge size).

    Raises:
        VideoError: if the file is missing or empty.
    """
    if problem := file_problem(clip.video):
        raise VideoError(f"{clip.video}: {problem.message} (clip {clip.id!r})")
    indices, fps = plan_indices(clip, fps=fps, min_frames=min_frames, max_frames=max_frames)
    height, width = fit_size(
        clip.height, clip.width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels
    )
    return FramePlan(
        video=str(Path(clip.video)),
        num_bytes=Path(clip.video).stat().st_size,
        indices=indices,
        fps=fps,
        height=height,
        width=width,
    )


def plan_indices(
    clip: Clip, *, fps: float, min_frames: int, max_frames: int
) -> tuple[tuple[int, ...], float]:
    """Frame numbers in the file and the rate of a plan; the file need not be there."""
    wanted = math.floor(clip.duration_s * fps + 1e-6)
    num_frames = min(max(wanted, min_frames, 1), max_frames)
    if num_frames != wanted:
        fps = num_frames / clip.duration_s
    last = max(clip.num_frames - 1, 0)
    times = clip.start_s + np.arange(num_frames) / fps
    indices = np.minimum(np.floor(times * clip.video_fps + 0.5).astype(int), last)
    return tuple(int(i) for i in indices), float(fps)


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


def read_frames(plan: FramePlan) -> np.ndarray:
    """Decode a plan's frames: uint8 RGB, shape [T, height, width, 3].

    Raises:
        VideoError: if the file cannot be decoded or ends before the plan's last frame.
    """
    reader = open_video(plan.video)
    frames = np.empty((plan.num_frames, plan.height, plan.width, 3), dtype=np.uint8)
    places = np.argsort(plan.indices, kind="stable")  # the file is read from front to back
    indices = [plan.indices[i] for i in places]
    for i, frame in zip(places, decode_frames(reader, plan.video, indices), strict=True):
        frames[i] = _resize(frame, plan.height, plan.width)
    return frames


def decode_frames(
    reader: decord.VideoReader, path: str, indices: Sequence[int]
) -> Iterator[np.ndarray]:
    """Decode frames one by one at the file's own size: uint8 RGB [H, W, 3] each.

    Args:
        reader: The opened video.
        path: Its name, for errors.
        indices: Frame numbers, not decreasing. One that is repeated is decoded once.

    Raises:
        VideoError: if the file cannot be decoded or ends before the last index.
    """
    if indices and indices[-1] >= len(reader):
        raise VideoError(f"{path}: holds {len(reader)} frames, the plan needs frame {indices[-1]}")
    previous, frame = -1, np.empty(0)
    for index in indices:
        if index != previous:
            previous, frame = index, _decode(reader, path, index)
        yield frame


def _decode(reader: decord.VideoReader, path: str, index: int) -> np.ndarray:
    """One frame [H, W, 3].

    decord's batches are not used: at some small widths (32, 96, 144, ...) they fail, and they hold
    many frames of full size at once. Rising single frames are as fast, since the reader goes on
    where it is. At those widths a frame comes as [H, W, 4] or more: rows of 3 W bytes with the
    decoder's padding behind them.
    """
    try:
        frame = reader[index].asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(f"{path}: cannot be decoded{_reason(error)}") from error
    height, width, depth = frame.shape
    if depth == 3:
        return np.asarray(frame)
    return np.asarray(frame.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3))


def _resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize one frame [H, W, 3]. (decord's own resizing fails at small widths.)"""
    if frame.shape[:2] == (height, width):
        return frame
    is_smaller = height * width < frame.shape[0] * frame.shape[1]
    method = cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(frame, (width, height), interpolation=method))


@dataclass(frozen=True)
class FileProblem:
    """Why a path cannot be a video, from the file system alone.

    Attributes:
        kind: `missing_video`, `unreadable_video` or `empty_video`.
        message: In words.
    """

    kind: str
    message: str


def file_problem(path: str | Path) -> FileProblem | None:
    """What keeps a path from being read as a video; None if it is a file that holds something."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        what = "the link leads nowhere" if Path(path).is_symlink() else "no such video"
        return FileProblem("missing_video", what)
    except OSError as error:  # a loop of links, a name too long, a folder that may not be entered
        return FileProblem("unreadable_video", (error.strerror or "cannot be read").lower())
    except ValueError:
        return FileProblem("missing_video", "no such video: not a path")
    if stat.S_ISDIR(status.st_mode):
        return FileProblem("unreadable_video", "a folder, expected a video file")
    if not stat.S_ISREG(status.st_mode):
        return FileProblem("unreadable_video", "not a regular file, expected a video file")
    if not os.access(path, os.R_OK):
        return FileProblem("unreadable_video", "permission denied")
    if status.st_size == 0:
        return FileProblem("empty_video", "the file is empty")
    if missing := _missing_bytes(Path(path), status.st_size):
        return FileProblem("undecodable_video", f"cut short: {missing:,} bytes are missing")
    return None


def _missing_bytes(path: Path, size: int) -> int:
    """By how much the index or the frames of an mp4 reach beyond the end of its file; else 0.

    The decoder does not always say so: from a file whose index comes first it may hand out other
    frames than those that are not there.
    """
    with path.open("rb") as file:
        start = 0
        while start + 8 <= size:
            file.seek(start)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if start == 0 and kind != b"ftyp":
                return 0  # not an mp4
            if length == 1:  # a 64-bit length follows
                length = int.from_bytes(head[8:16], "big")
            if length < 8:  # 0: up to the end of the file; else not a box
                return 0
            start += length
            if start > size and kind in (b"mdat", b"moov"):
                return start - size
    return 0


def open_video(path: str | Path) -> decord.VideoReader:
    """Open a video with one decoding thread.

    Raises:
        VideoError: naming the file and why it cannot be opened.
    """
    if problem := file_problem(path):
        raise VideoError(f"{path}: {problem.message}")
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(f"{path}: cannot be opened as a video{_reason(error)}") from error
    if len(reader) == 0:
        raise VideoError(f"{path}: holds no video frames")
    return reader


def clip_of_video(path: str | Path, *, action: str = "unknown") -> Clip:
    """A clip that spans a whole video file, with no labels, for counting in a file at hand."""
    reader = open_video(path)
    height, width = _decode(reader, str(path), 0).shape[:2]
    fps = float(reader.get_avg_fps())
    return Clip(
        id=Path(path).stem,
        dataset="file",
        split="test",
        video=str(Path(path).absolute()),
        start_s=0.0,
        end_s=len(reader) / fps,
        video_fps=fps,
        num_frames=len(reader),
        width=width,
        height=height,
        action=action,
        count=0,
    )


def check_videos(clips: Sequence[Clip]) -> None:
    """Refuse a list of clips whose videos cannot all be opened, before any work is done on them.

    Raises:
        VideoError: naming the first bad file and how many there are.
    """
    problems = []
    for path, clip_id in {clip.video: clip.id for clip in clips}.items():
        try:
            open_video(path)
        except VideoError as error:
            problems.append(f"{error} [clip {clip_id!r}]")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise VideoError(problems[0] + more)


def without_prefix(line: str) -> str:
    """A message of decord or FFmpeg without the times and places in their source."""
    return _LOG_PREFIX.sub("", line).strip()


def _reason(error: Exception) -> str:
    """What decord says, in brackets; nothing where it only repeats that it failed."""
    lines = [without_prefix(line) for line in str(error).splitlines() if line.strip()]
    is_empty = not lines or lines[0].startswith("Error reading ")
    return "" if is_empty else f" ({lines[0][:200]})"

"""Decoding by presentation time: the frame that is shown at a second, never another.

    want 3.2 s ─► is a key frame nearer than where the decoder is? ─► seek, else go on
                  decode until a frame is presented later than 3.2 s; the one before it is shown

Frames come out of the decoder in the order in which they are shown. Seeks are made only in
containers with an index of key frames, and a seek whose first frame is not one of the file's own
times, or lies behind what was wanted, is undone: the file is read from its start.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, Self

import av
import cv2
import numpy as np

from data_prep.video.container import choose_stream, decoded_frames, open_container, reason_of
from data_prep.video.files import VideoError
from data_prep.video.folder import frames_of_folder
from data_prep.video.image import read_image
from data_prep.video.plan import FramePlan
from data_prep.video.probe import Probe, probe

EPSILON_S = 1e-3
"""A frame counts as shown this much early: containers round time stamps to milliseconds."""

_MANY_PIXELS = 640 * 360  # from here on a frame is shrunk so far that block edges do not show
_LUMA_FIRST = frozenset(["yuv420p", "yuv422p", "yuv444p", "nv12", "gray", "yuvj420p", "yuvj422p"])
_FULL_RANGE = frozenset(["gray", "yuvj420p", "yuvj422p"])
_JPEG = 2  # AVCOL_RANGE_JPEG: 0 .. 255; else 16 .. 235
_WIDENED = np.clip(np.round((np.arange(256) - 16) * 255.0 / 219.0), 0, 255).astype(np.uint8)


def read_frames(plan: FramePlan) -> np.ndarray:
    """Decode the frames of a plan, or its image: uint8 RGB, shape [T, height, width, 3].

    Raises:
        VideoError: if the file cannot be decoded or ends before the plan's last second.
    """
    if plan.is_image:
        return resized(read_image(plan.video), plan.height, plan.width)[None]
    frames = np.empty((plan.num_frames, plan.height, plan.width, 3), dtype=np.uint8)
    if plan.folder_fps is not None:
        for at, frame in folder_frames(plan.video, plan.times_s, plan.folder_fps):
            frames[at] = resized(frame, plan.height, plan.width)
        return frames
    places = np.argsort(plan.times_s, kind="stable")  # the file is read from front to back
    with Video(plan.video) as video:
        shown = video.frames_at([plan.times_s[i] for i in places])
        for place, frame in zip(places, shown, strict=True):
            frames[place] = resized(frame, plan.height, plan.width)
    return frames


def read_luma(plan: FramePlan) -> np.ndarray:
    """Decode a plan's frames cheaply: uint8 grey values 0 .. 255, shape [T, height, width].

    The frames are those of `read_frames`, at the same times. Pixels are the stored brightness,
    without a conversion to colours and, where they are many, without the decoder's smoothing of
    block edges, which no longer shows once they are shrunk; frames that are not asked for and that
    no other refers to are left out.

    Raises:
        VideoError: as `read_frames` does.
    """
    frames = np.empty((plan.num_frames, plan.height, plan.width), dtype=np.uint8)
    if plan.folder_fps is not None:
        for at, frame in folder_frames(plan.video, plan.times_s, plan.folder_fps):
            grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            frames[at] = shrunk(grey, plan.height, plan.width)
        return frames
    places = np.argsort(plan.times_s, kind="stable")
    with Video(plan.video, is_cheap=True) as video:
        shown = video.frames_at([plan.times_s[i] for i in places])
        for place, frame in zip(places, shown, strict=True):
            frames[place] = shrunk(frame, plan.height, plan.width)
    return frames


def folder_frames(
    path: str, times_s: Sequence[float], fps: float
) -> Iterator[tuple[list[int], np.ndarray]]:
    """The frames of a folder that are shown at some seconds, at their own size, one at a time.

    Args:
        path: The folder.
        times_s: Seconds from its first frame, in any order.
        fps: Frames a second.

    Yields:
        Each frame that is shown, once, in the order of the folder: at which of the seconds (their
        indices in `times_s`), and uint8 RGB [H, W, 3].

    Raises:
        VideoError: naming the frame that cannot be read or has another size than the others, or
            the folder that ends before a second that is asked for.
    """
    paths = frames_of_folder(path)
    end_s, last_s = len(paths) / fps, max(times_s)
    if last_s >= end_s + max(2.0 / fps, 0.1):
        raise VideoError(
            f"{path}: ends after {end_s:.3f} s ({len(paths)} frames at {fps:g} a second), the plan "
            f"needs second {last_s:.3f}"
        )
    asked: dict[int, list[int]] = {}  # by frame, the seconds that show it
    for k, second in enumerate(times_s):
        asked.setdefault(min(int((second + EPSILON_S) * fps), len(paths) - 1), []).append(k)
    first: tuple[int, ...] | None = None
    for i in sorted(asked):
        frame = read_image(paths[i])
        height, width = frame.shape[:2]
        first = first or (height, width)
        if (height, width) != first:
            raise VideoError(
                f"{paths[i]}: is {width}x{height} pixels, other frames are {first[1]}x{first[0]}"
            )
        yield asked[i], frame


class Video:
    """An open video; a context manager.

    Args:
        path: The file.
        is_cheap: Give grey values [H, W] instead of RGB, decoded as `read_luma` says.

    Attributes:
        probe: What the file holds.
        num_decoded: Frames that left the decoder so far, shown or not.
        num_seeks: Times that it leapt to a key frame.

    Raises:
        VideoError: naming the file and why it cannot be read.
    """

    def __init__(self, path: str | Path, *, is_cheap: bool = False) -> None:
        self.probe: Probe = probe(path)
        self._is_cheap = is_cheap
        self._wanted: frozenset[int] | None = None  # time stamps; None: all
        self.num_decoded = 0
        self.num_seeks = 0
        self._may_seek = not self.probe.counts_frames
        self._stack = ExitStack()
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        """(second, uint8 RGB [H, W, 3]) of every frame in the order in which they are shown."""
        for second, frame in self._from_start():
            yield second, self._image(second, frame)

    def frames_at(self, times_s: Sequence[float]) -> Iterator[np.ndarray]:
        """The frames shown at some seconds, at the file's own size: uint8 RGB [H, W, 3] each.

        Args:
            times_s: Seconds from the first frame, not falling. A frame that is shown at several of
                them is decoded once.

        Raises:
            VideoError: if the file cannot be decoded, or ends before the last second.
        """
        self._check_end(times_s)
        if self._is_cheap:
            self._wanted = self._stamps_at(times_s)
        decoder = self._from_start()
        upcoming = next(decoder, None)
        current, image = upcoming, None
        for time_s in times_s:
            if upcoming is not None and (goal := self._better_start(time_s, upcoming[0])):
                decoder = self._from(goal, time_s)
                current = upcoming = next(decoder, None)
                image = None
            while upcoming is not None and upcoming[0] <= time_s + EPSILON_S:
                current, image = upcoming, None
                upcoming = next(decoder, None)
            if current is None:
                raise VideoError(f"{self.probe.path}: cannot be decoded (no frame comes out)")
            self._check_shown(current[0], time_s)
            if image is None:
                image = self._image(*current)
            yield image

    @property
    def _slack_s(self) -> float:
        """How far ends that were rounded may lie beyond the file's."""
        return max(2.0 / self.probe.fps, 0.1)

    def _image(self, second: float, frame: Any) -> np.ndarray:
        """A decoded frame as it is shown, at its own size: uint8 RGB [H, W, 3], or [H, W]."""
        if frame.is_corrupt:  # its neighbour would be another frame than the one asked for
            raise VideoError(
                f"{self.probe.path}: cannot be decoded (the frame of {second:.3f} s is damaged)"
            )
        stored = luma_of(frame) if self._is_cheap else frame.to_ndarray(format="rgb24")
        return self.probe.orientation.apply(stored)

    def _check_shown(self, shown_s: float, time_s: float) -> None:
        """Whether the frame found is the one that the file's own times name."""
        times = self.probe.times_s
        i = int(np.searchsorted(times, time_s + EPSILON_S, side="right")) - 1
        if abs(float(times[max(i, 0)]) - shown_s) > 2.0 / self.probe.fps + EPSILON_S:
            raise VideoError(
                f"{self.probe.path}: cannot be decoded (at {time_s:.3f} s the decoder gives the "
                f"frame of {shown_s:.3f} s, not that of {times[max(i, 0)]:.3f} s)"
            )

    def _check_end(self, times_s: Sequence[float]) -> None:
        if times_s and times_s[-1] >= self.probe.end_s + self._slack_s:
            raise VideoError(
                f"{self.probe.path}: ends after {self.probe.end_s:.3f} s "
                f"({self.probe.num_frames} frames), the plan needs second {times_s[-1]:.3f}"
            )

    # --- where the decoder is

    def _better_start(self, time_s: float, position_s: float) -> float:
        """The key frame to go on from, if one lies between here and there; else 0."""
        if not self._may_seek:
            return 0.0
        keys = self.probe.keyframes_s
        i = int(np.searchsorted(keys, time_s + EPSILON_S, side="right")) - 1
        # One key frame earlier than the last: its time is only about right.
        goal = float(keys[i - 1]) if i >= 1 else 0.0
        return goal if goal > position_s + EPSILON_S else 0.0

    def _open(self) -> None:
        self._stack.close()
        self._container = self._stack.enter_context(open_container(self.probe.path))
        self._stream = choose_stream(self.probe.path, self._container)
        self._stream.thread_type = "NONE"
        if self._is_cheap and self.probe.width * self.probe.height >= _MANY_PIXELS:
            self._stream.codec_context.options = {"skip_loop_filter": "all"}

    def _stamps_at(self, times_s: Sequence[float]) -> frozenset[int] | None:
        """Time stamps of the frames that are shown at some seconds; None where there are none."""
        if self.probe.counts_frames or not len(times_s):
            return None
        times = self.probe.times_s
        places = np.searchsorted(times, np.asarray(times_s) + EPSILON_S, side="right") - 1
        shown = np.unique(times[np.maximum(places, 0)])
        stamps = np.round(shown / self.probe.time_base_s).astype(int) + self.probe.first_pts
        return frozenset(stamps.tolist())

    def _from_start(self) -> Iterator[tuple[float, Any]]:
        self._open()
        return self._decode()

    def _from(self, goal_s: float, time_s: float) -> Iterator[tuple[float, Any]]:
        """Frames from a key frame on, for a frame that is shown at a later second.

        From the start where the seek did not land on a key frame before that, at one of the file's
        own times; no more seeks are tried then.
        """
        stamp = self.probe.first_pts + round(goal_s / self.probe.time_base_s)
        self._open()
        self.num_seeks += 1
        try:
            self._container.seek(stamp, stream=self._stream, backward=True)
            decoder = self._decode()
            first = next(decoder, None)
        except (VideoError, av.FFmpegError):
            first = None
        if (
            first is None
            or first[0] > time_s + EPSILON_S
            or not first[1].key_frame
            or not self._is_known(first[0])
        ):
            self._may_seek = False
            return self._from_start()
        return chain((first,), decoder)

    def _is_known(self, time_s: float) -> bool:
        times = self.probe.times_s
        i = int(np.searchsorted(times, time_s))
        near = times[max(i - 1, 0) : i + 1]
        return bool(np.abs(near - time_s).min() <= EPSILON_S)

    def _decode(self) -> Iterator[tuple[float, Any]]:
        """(second, frame) from where the container stands; damage ends in an error."""
        probe, number, previous = self.probe, 0, -1.0
        frames = decoded_frames(self._container, self._stream, self._wanted)
        while True:
            try:
                frame = next(frames)
            except StopIteration:
                return
            except (av.FFmpegError, OSError) as error:
                raise VideoError(f"{probe.path}: cannot be decoded{reason_of(error)}") from error
            if probe.counts_frames:
                if number >= probe.num_frames:
                    return
                second = float(probe.times_s[number])
            else:
                if frame.pts is None:
                    raise VideoError(f"{probe.path}: a frame has no time stamp")
                second = (frame.pts - probe.first_pts) * probe.time_base_s
                if second < previous:
                    raise VideoError(
                        f"{probe.path}: cannot be decoded (the frame of {second:.3f} s comes after "
                        f"that of {previous:.3f} s)"
                    )
            number, previous = number + 1, second
            self.num_decoded += 1
            yield second, frame


def luma_of(frame: Any) -> np.ndarray:
    """Brightness of a decoded frame, 0 black to 255 white: uint8 [H, W]."""
    if frame.format.name not in _LUMA_FIRST:
        return np.asarray(frame.to_ndarray(format="gray"))
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    luma = rows[: frame.height, : frame.width]
    is_full = frame.format.name in _FULL_RANGE or frame.color_range == _JPEG
    return np.asarray(luma if is_full else cv2.LUT(luma, _WIDENED))


def resized(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize one frame [H, W, 3] or [H, W]."""
    if frame.shape[:2] == (height, width):
        return frame
    is_smaller = height * width < frame.shape[0] * frame.shape[1]
    method = cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(frame, (width, height), interpolation=method))


def shrunk(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize one frame [H, W] cheaply: by a whole number first, which is seven times faster.

    What the number leaves over, less than it in pixels, is cut off at the edges.
    """
    by = min(frame.shape[0] // height, frame.shape[1] // width) // 2
    if by > 1:
        rows, columns = frame.shape[0] // by, frame.shape[1] // by
        top, left = (frame.shape[0] - rows * by) // 2, (frame.shape[1] - columns * by) // 2
        whole = frame[top : top + rows * by, left : left + columns * by]
        frame = np.asarray(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA))
    return resized(frame, height, width)

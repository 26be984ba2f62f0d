"""What a video file is: one description, shared by converters, validator, planner and reader.

Owns which stream is read, the size at which it is shown, and when each of its frames is presented.
Times are the file's own time stamps (after edit lists), in seconds from the first frame that is
shown; a frame's number times a rate is never taken for its time.

    mp4, mov    the index, where frames lie at equal distances and are shown as they are decoded
    most        the packets' time stamps
    the rest    those of the frames, which are decoded once: where packets lack stamps, follow the
                order of decoding (AVI, ASF and MXF with B-frames, packed MPEG-4) or hold fields

A probe costs a look at every packet (0.003 ms each) and one decoded frame, or all of them; it is
remembered by the file's identity (device, inode, size, time of change).
"""

import os
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np

from data_prep.video.container import (
    Orientation,
    choose_stream,
    decoded_frames,
    open_container,
    orientation_of,
    reason_of,
)
from data_prep.video.files import VideoError, file_problem, holds_offsets

_OF_DECODING_ORDER = frozenset(
    ("avi", "asf", "mxf", "mpegvideo", "m4v", "mjpeg", "h261", "h263", "h264", "hevc", "vc1")
)
"""Where there are B-frames, stamps follow the packets and not the order of showing."""
_SEEKABLE = frozenset(("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"))
"""They have an index of key frames; in others a seek lands at a guess."""

_VP8_SHOWN = 0x10  # RFC 6386, 9.1
_MAX_FPS = 1000.0
_LONGEST_FRAME_S = 600.0  # beyond it a time stamp is taken for damaged
_LEAST_LEAD_S = 2e-3  # less is rounding of time stamps to milliseconds
NUM_REMEMBERED = 4096


@dataclass(frozen=True, eq=False)
class Probe:
    """What a video file holds.

    Attributes:
        path: The file.
        container: FFmpeg's name of its format.
        codec: FFmpeg's name of its codec.
        stream: Number of the stream that is read.
        times_s: When each frame is presented, seconds from the first: float64 [N], not falling.
        end_s: When the last frame ends.
        lead_s: When the first frame is presented on the clock of players, which starts with
            whatever comes first: by how much sound precedes the pictures.
        fps: Frames per second, on average.
        first_pts: Time stamp of the first frame, in units of the stream.
        time_base_s: One unit, seconds.
        keyframes_s: About when the key frames are presented: float64 [K], rising; empty where
            seeking is not sound.
        width: Of a frame as it is shown (rotation and pixel aspect applied), pixels.
        height: Likewise.
        orientation: How a stored picture becomes the one that is shown.
        counts_frames: Whether the i-th frame shown has the i-th time, whatever its own stamp.
        is_risky: Whether decoders have been seen to give other frames after a seek: groups of
            pictures that are open, and files that are cut by an edit list.
    """

    path: str
    container: str
    codec: str
    stream: int
    times_s: np.ndarray
    end_s: float
    lead_s: float
    fps: float
    first_pts: int
    time_base_s: float
    keyframes_s: np.ndarray
    width: int
    height: int
    orientation: Orientation
    counts_frames: bool
    is_risky: bool

    @property
    def num_frames(self) -> int:
        """Frames that are presented."""
        return len(self.times_s)

    @property
    def drift_s(self) -> float:
        """How far a frame lies from its number divided by the rate, at most, seconds."""
        even = np.arange(self.num_frames) / self.fps
        return float(np.abs(self.times_s - even).max())

    def time_of_frame(self, number: float) -> float:
        """When a frame is presented; between two frames in proportion, seconds from the first.

        Args:
            number: From 0, in the order in which frames are shown; the end is `num_frames`.
        """
        if 0 <= number <= self.num_frames:
            before = int(number)
            share = number - before
            start = self._start_of(before)
            return start if not share else (self._start_of(before + 1) - start) * share + start
        beyond = number - (self.num_frames if number > 0 else 0)
        return float((self.end_s if number > 0 else 0.0) + beyond / self.fps)

    def _start_of(self, frame: int) -> float:
        """When a whole frame is presented; plain indexing, for every mark of a table asks."""
        return float(self.times_s[frame]) if frame < self.num_frames else self.end_s


def probe(path: str | Path) -> Probe:
    """Describe a video.

    Raises:
        VideoError: naming the file and why it cannot be read: no video, damaged, or time stamps
            that are missing, go back or leap.
    """
    return _probe(*identity_of(path))


def identity_of(path: str | Path) -> tuple[str, tuple[int, ...]]:
    """A file's absolute path, and what changes when the file does.

    Raises:
        VideoError: if it cannot be a video, from the file system alone.
    """
    path = os.path.abspath(path)  # noqa: PTH100 - a name with a colon is no protocol then
    if problem := file_problem(path):
        raise VideoError(f"{path}: {problem.message}")
    status = Path(path).stat()
    return path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=NUM_REMEMBERED)
def _probe(path: str, identity: tuple[int, ...]) -> Probe:
    del identity  # only names what is remembered
    with open_container(path) as container:
        stream = choose_stream(path, container)
        has_index = "mov" in container.format.name and not holds_offsets(path)
        if has_index and (index := _index(stream)) is not None:
            _check_order(path, index)
            first = _first_frame(path, container, stream)
            if not _may_hold_fields(stream, first):
                times = _shown_times(index, first)
                return _describe(path, container, stream, first, index, times)
    with open_container(path) as container:
        stream = choose_stream(path, container)
        entries = _entries(container, stream)
    _check_order(path, entries)
    with open_container(path) as container:  # its packets have been read
        stream = choose_stream(path, container)
        first = _first_frame(path, container, stream)
        if _must_be_decoded(entries, container.format.name, stream, first):
            times = _decoded_times(path, container, stream, first)
        else:
            times = _shown_times(entries, first)
        return _describe(path, container, stream, first, entries, times)


def _must_be_decoded(entries: "_Entries", container: str, stream: Any, first: Any) -> bool:
    """Whether only the frames themselves say when they are shown."""
    codec = stream.codec_context.name
    has_b_frames = bool(stream.codec_context.has_b_frames)
    return (
        not entries.is_complete
        or (has_b_frames and (container in _OF_DECODING_ORDER or codec == "mpeg4"))
        or _may_hold_fields(stream, first)
    )


def _may_hold_fields(stream: Any, first: Any) -> bool:
    """Whether a packet may be one of the two fields of a frame."""
    return first.interlaced_frame and stream.codec_context.name in ("h264", "hevc")


@dataclass(frozen=True)
class _Entries:
    """Packets that hold frames that are shown, in the order of the file.

    Attributes:
        num: How many.
        pts: Time stamps of presentation, of those that have one: int64 [N].
        dts: Of decoding, of those that have one: int64 [M].
        is_key: Of those of `pts`: bool [N].
        is_cut: Whether packets are left out by an edit list.
    """

    num: int
    pts: np.ndarray
    dts: np.ndarray
    is_key: np.ndarray
    is_cut: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether all have a time stamp of presentation."""
        return len(self.pts) == self.num


def _entries(container: Any, stream: Any) -> _Entries:
    packets = [packet for packet in container.demux(stream) if packet.size]
    if stream.codec_context.name == "vp8":  # frames that are only referred to are not shown
        packets = [packet for packet in packets if bytes(packet)[0] & _VP8_SHOWN]
    rows = [(p.pts, p.dts, p.is_keyframe) for p in packets if not p.is_discard]
    shown = [(pts, is_key) for pts, _, is_key in rows if pts is not None]
    return _Entries(
        num=len(rows),
        pts=np.array([pts for pts, _ in shown], np.int64),
        dts=np.array([dts for _, dts, _ in rows if dts is not None], np.int64),
        is_key=np.array([is_key for _, is_key in shown], bool),
        is_cut=len(rows) < len(packets),
    )


def _index(stream: Any) -> _Entries | None:
    """The index of an mp4, if it alone tells when frames are presented.

    That is where they lie at equal distances and are shown in the order of the file: the index
    holds times of decoding.
    """
    index = list(stream.index_entries)  # each look at it makes an object an entry
    if (
        stream.codec_context.has_b_frames
        or len(index) < 3
        or len(index) != stream.frames  # of a fragmented file, only what was read so far
        or any(entry.is_discard for entry in index)
    ):
        return None
    dts = np.array([entry.timestamp for entry in index], np.int64)
    steps = np.diff(dts)
    if steps.min() <= 0 or steps.max() != steps.min():
        return None
    is_key = np.array([entry.is_keyframe for entry in index])
    return _Entries(len(dts), dts - dts[0] + (stream.start_time or 0), dts, is_key)


def _is_open(entries: _Entries) -> bool:
    """Whether frames are shown before a key frame that they follow in the file."""
    latest_key = np.maximum.accumulate(
        np.where(entries.is_key, entries.pts, np.iinfo(np.int64).min)
    )
    return bool((entries.pts < latest_key).any())


def _check_order(path: str, entries: _Entries) -> None:
    """Refuse a file without frames, or whose stamps go back, as where two recordings were joined.

    Raises:
        VideoError: naming the file and where.
    """
    if not entries.num:
        raise VideoError(f"{path}: holds no video frames")
    back = np.flatnonzero(np.diff(entries.dts) < 0)
    if len(back):
        raise VideoError(
            f"{path}: time stamps go back at frame {back[0] + 1} of {len(entries.dts)}, expected "
            f"them to rise: two recordings in one file? {_REMEDY}"
        )


_REMEDY = "write it anew, for example with ffmpeg -i IN -vf setpts=N/FRAME_RATE/TB OUT.mp4"


def _first_frame(path: str, container: Any, stream: Any) -> Any:
    try:
        return next(decoded_frames(container, stream))
    except StopIteration:
        raise VideoError(f"{path}: cannot be decoded (no frame comes out)") from None
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be decoded{reason_of(error)}") from error


@dataclass(frozen=True)
class _Times:
    """When frames are presented.

    Attributes:
        pts: Time stamps, not falling: int64 [N].
        is_counted: Whether the i-th frame has the i-th, whatever its own stamp.
    """

    pts: np.ndarray
    is_counted: bool = False


def _shown_times(entries: _Entries, first: Any) -> _Times:
    """By the packets; a recording may begin with frames whose reference it lacks."""
    pts = np.sort(entries.pts)
    return _Times(pts if first.pts is None else pts[pts >= first.pts])


def _decoded_times(path: str, container: Any, stream: Any, first: Any) -> _Times:
    """By decoding all frames; one without a stamp follows its predecessor at the usual rate.

    Raises:
        VideoError: if the file cannot be decoded, or nothing says how far frames are apart.
    """
    rate = stream.average_rate or stream.guessed_rate
    stamps: list[int | None] = [first.pts]
    try:
        stamps += [frame.pts for frame in decoded_frames(container, stream)]
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be decoded{reason_of(error)}") from error
    is_complete = None not in stamps
    if not is_complete and not rate:
        raise VideoError(f"{path}: its frames have no time stamps and no rate; {_REMEDY}")
    step = round(1 / (rate * stream.time_base)) if rate else 0
    pts: list[int] = []
    for stamp in stamps:
        pts.append(((pts[-1] + step) if pts else 0) if stamp is None else stamp)
    found = np.array(pts, np.int64)
    is_rising = is_complete and bool((np.diff(found) >= 0).all())
    return _Times(np.sort(found), is_counted=not is_rising)


def _describe(
    path: str,
    container: Any,
    stream: Any,
    first: Any,
    entries: _Entries,
    found: _Times,
) -> Probe:
    unit, pts = stream.time_base, found.pts
    ticks = pts - pts[0]
    times = ticks * unit.numerator / unit.denominator  # one rounding: 61440 / 12288 is 5
    steps = np.diff(ticks)
    rate = stream.average_rate or stream.guessed_rate
    last = round(float(np.median(steps))) if len(steps) else 0
    if not last and rate:
        last = round(1 / (rate * unit))
    length = int(ticks[-1]) + last
    end = length * unit.numerator / unit.denominator
    fps = len(times) * unit.denominator / (length * unit.numerator) if length else float("inf")
    longest = float(steps.max(initial=0) * unit)
    if not fps <= _MAX_FPS or longest > _LONGEST_FRAME_S:
        raise VideoError(
            f"{path}: {len(times)} frames in {end:.3f} s, one of them shown for {longest:.3f} s: "
            f"expected time stamps of a video (at most {_MAX_FPS:g} frames a second, none longer "
            f"than {_LONGEST_FRAME_S:g} s); {_REMEDY}"
        )
    keyframes = np.zeros(0)
    if container.format.name in _SEEKABLE and entries.is_complete:
        keyframes = np.sort(entries.pts[entries.is_key] - pts[0]) * float(unit)
        keyframes = keyframes[keyframes >= 0]
    orientation = orientation_of(path, first)
    width, height = _shown_size(first, stream, orientation)
    return Probe(
        path=path,
        container=container.format.name,
        codec=stream.codec_context.name,
        stream=stream.index,
        times_s=times,
        end_s=end,
        lead_s=_lead_s(container, int(pts[0]) * unit),
        fps=fps,
        first_pts=int(pts[0]),
        time_base_s=float(unit),
        keyframes_s=keyframes,
        width=width,
        height=height,
        orientation=orientation,
        counts_frames=found.is_counted,
        is_risky=entries.is_cut or _is_open(entries),
    )


def _lead_s(container: Any, first_s: Fraction) -> float:
    """How long after the start of the recording its first frame is presented.

    FFmpeg and players count from the earliest stream, but not from before 0, where coders of sound
    keep what they need to start with. In containers whose stamps are those of decoding, the first
    frame's says how late the decoder is, and nothing of that kind.
    """
    if container.format.name in _OF_DECODING_ORDER or container.start_time is None:
        return 0.0
    start_s = max(Fraction(container.start_time, av.time_base), Fraction(0))
    lead_s = round(float(first_s - start_s), 6)
    return lead_s if lead_s > _LEAST_LEAD_S else 0.0


def _shown_size(frame: Any, stream: Any, orientation: Orientation) -> tuple[int, int]:
    """(width, height) of a frame as it is shown: pixels made square, then turned."""
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    if aspect and aspect > 0 and aspect != 1:
        width = max(1, round(width * float(aspect)))
    return (height, width) if orientation.turns % 2 else (width, height)

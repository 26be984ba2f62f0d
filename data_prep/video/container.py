"""An open container: what counts as a video, which stream is read, frames as they come, upright."""

import math
import re
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from data_prep.video.files import VideoError

# Containers of video, by FFmpeg's names. A still picture, a playlist and a text (which FFmpeg
# renders as pictures of a terminal) are no videos.
CONTAINERS = frozenset(
    (
        "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "asf", "mpegts", "mpeg", "flv",
        "live_flv", "ogg", "gif", "apng", "mxf", "nut", "nsv", "rm", "wtv", "dv", "ivf",
        "yuv4mpegpipe",
        "mpegvideo", "m4v", "mjpeg", "h261", "h263", "h264", "hevc", "vc1", "vc1test", "av1", "obu",
    )
)  # fmt: skip
_PICTURES = frozenset((b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"))
"""Brands of still pictures in the container of mp4."""

_LOG_PREFIX = re.compile(r"\[(\d\d:\d\d:\d\d\] \S+:\d+:|\w+ @ 0x\w+\]) ")
_QUARTER = 90  # degrees
_SLACK_DEGREES = 1.0


@contextmanager
def open_container(path: str) -> Iterator["av.container.InputContainer"]:
    """Open a file as a video; only local files, only containers of video, and no other file.

    Raises:
        VideoError: if it is none, or a packet cannot be read inside.
    """
    try:
        # A playlist in the guise of a video must open neither addresses nor other files.
        options = {"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS)}
        with Path(path).open("rb") as file:
            brand = file.read(12)
        if brand[4:8] == b"ftyp" and brand[8:12] in _PICTURES:
            raise VideoError(f"{path}: cannot be opened as a video (a picture)")
        with av.open(path, metadata_errors="replace", options=options) as container:
            yield container
    except av.ArgumentError as error:
        raise VideoError(
            f"{path}: cannot be opened as a video (no container of video: a text, a playlist, a "
            "picture?)"
        ) from error
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be opened as a video{reason_of(error)}") from error


def choose_stream(path: str, container: "av.container.InputContainer") -> "av.VideoStream":
    """The stream that is read: the largest picture that is no cover; the first of equals."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError(f"{path}: cannot be opened as a video (no video stream in it)")
    sizes = [
        s.codec_context.width * s.codec_context.height if s.codec_context else 0 for s in streams
    ]
    if not max(sizes):
        raise VideoError(f"{path}: cannot be opened as a video (no decoder, or no size of frames)")
    stream = streams[sizes.index(max(sizes))]
    stream.codec_context.thread_count = 1
    return stream


def reason_of(error: BaseException) -> str:
    """What FFmpeg says, in brackets."""
    text = getattr(error, "strerror", None) or str(error)
    return f" ({without_prefix(text)[:200]})" if text else ""


def without_prefix(line: str) -> str:
    """A message of FFmpeg without the times and places in its source."""
    return _LOG_PREFIX.sub("", line).strip()


def decoded_frames(
    container: Any, stream: Any, wanted: Collection[int] | None = None
) -> Iterator[Any]:
    """Frames in the order in which they are shown.

    Packets of no bytes, by which some containers repeat a frame, are left out.

    Args:
        container: An open container.
        stream: Of it.
        wanted: Time stamps of the frames that are needed: others come out only where the decoder
            needs them itself. None: all.
    """
    for packet in container.demux(stream):
        if wanted is not None:
            is_needed = packet.pts is None or packet.pts in wanted
            stream.codec_context.skip_frame = "DEFAULT" if is_needed else "NONREF"
        if packet.size or packet.dts is None:  # the last one asks the decoder for what it holds
            yield from packet.decode()


@dataclass(frozen=True)
class Orientation:
    """How a stored picture becomes the one that is shown: mirrored first, then turned.

    Attributes:
        turns: Quarter turns against the clock.
        is_mirrored: Whether left and right are exchanged before that.
    """

    turns: int = 0
    is_mirrored: bool = False

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The picture as it is shown: [H, W, 3] of it."""
        if self.is_mirrored:
            image = image[:, ::-1]
        return np.ascontiguousarray(np.rot90(image, self.turns))


def orientation_of(path: str, frame: Any) -> Orientation:
    """By a frame's display matrix (ISO/IEC 14496-12, 6.2.2), nine numbers of 32 bits.

    Raises:
        VideoError: if it turns by other than quarter turns.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    is_mirrored = a * d - b * c < 0
    if is_mirrored:
        a, b = -a, -b
    # FFmpeg's angle is with the clock, the matrix's own against it.
    degrees = -math.degrees(math.atan2(b, a))
    turns = round(degrees / _QUARTER)
    if (a, b) == (0, 0) or abs(degrees - turns * _QUARTER) > _SLACK_DEGREES:
        raise VideoError(
            f"{path}: shown turned by {degrees:.1f} degrees, expected quarter turns: write it anew"
        )
    return Orientation(turns % 4, is_mirrored)

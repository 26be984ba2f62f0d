"""The folder of videos: names that may not leave it, and headers read without decoding.

Owns what an annotation file may name. Annotation files come from elsewhere: a path in one is
relative and stays below the folder. Symbolic links that the user put there are followed.
"""

import errno
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import av
from av.stream import Disposition

from data_prep.converters.rows import BadRowError
from data_prep.schema import DataError

_SEPARATORS = re.compile(r"[/\\]")
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
_NUM_HEADERS = 4096  # remembered: rows of one video lie near each other
_MAX_FPS = 1000.0


@dataclass(frozen=True)
class VideoHeader:
    """What a video file says about itself.

    Attributes:
        fps: Frames per second, on average.
        num_frames: Frames of the file.
        width: Of a frame as it is shown (rotation applied), pixels.
        height: Of a frame as it is shown, pixels.
    """

    fps: float
    num_frames: int
    width: int
    height: int

    @property
    def duration_s(self) -> float:
        """Length of the video in seconds."""
        return self.num_frames / self.fps


class VideoFolder:
    """The videos of a set, by their names below a folder.

    Names stay strings: a `Path` for each of 100,000 rows would go into Python's table of interned
    strings and double the time.

    Args:
        root: The folder that names are relative to.

    Raises:
        DataError: if it is not a folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder, expected the folder of the videos")
        self._read_header = lru_cache(maxsize=_NUM_HEADERS)(read_header)

    def find(self, names: Sequence[str]) -> str:
        """The first of some names that is a file.

        Raises:
            BadRowError: if a name leaves the folder, or none is there.
        """
        for name in names:
            check_name(name)
        other = ""
        for name in names:
            mode = _mode(self._path(name))
            if mode is not None and stat.S_ISREG(mode):
                return name
            if mode is not None:
                other = name
        if other:
            raise BadRowError("not_a_file", f"{other!r} is not a file, expected a video")
        detail = f"{names[0]!r} is not in {self.root}"
        raise BadRowError("missing_video", detail, video=names[0])

    def header(self, name: str) -> VideoHeader:
        """The header of a video that was found.

        Raises:
            BadRowError: if it is not the header of a video.
        """
        return self._read_header(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


def check_name(name: str) -> None:
    """Refuse a name that would leave the folder.

    Raises:
        BadRowError: naming it.
    """
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        raise BadRowError("absolute_path", f"{name[:200]!r} is absolute, expected a relative path")
    if ".." in _SEPARATORS.split(name):
        raise BadRowError("path_traversal", f"{name[:200]!r} has a part '..'")
    if not name.strip() or "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise BadRowError("bad_video_name", f"{name[:200]!r}, expected a path")


def _mode(path: str) -> int | None:
    """The kind of a file, None if there is none."""
    try:
        return os.stat(path).st_mode  # noqa: PTH116 (see VideoFolder)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        if error.errno == errno.ELOOP:
            raise BadRowError("symlink_loop", f"{path[-80:]!r}: links go in circles") from error
        reason = "bad_video_name" if error.errno == errno.ENAMETOOLONG else "unreadable_video"
        raise BadRowError(reason, f"{path[-80:]!r}: {error.strerror}") from error


def read_header(video: str | Path) -> VideoHeader:
    """Read the header of a video; no frame is decoded.

    Where a container does not hold the number of frames (Matroska), its packets are counted.

    Raises:
        BadRowError: if it is not the header of a video.
    """
    path = Path(video)
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if not start:
            raise BadRowError("unreadable_video", f"{path.name}: the file is empty")
        # Trying one format in place of all halves the time.
        form = "mov" if start[4:] == b"ftyp" else None
        # `file` alone: a playlist in the guise of a video must not make us open addresses.
        options = {"protocol_whitelist": "file"}
        with av.open(str(path), format=form, metadata_errors="replace", options=options) as opened:
            header = _header_of(path, opened)
        if form == "mov" and _is_rotated(path):
            header = VideoHeader(header.fps, header.num_frames, header.height, header.width)
    except (av.FFmpegError, OSError, struct.error) as error:
        detail = getattr(error, "strerror", None) or str(error)
        raise BadRowError("unreadable_video", f"{path.name}: {detail}") from error
    return header


def _header_of(path: Path, container: "av.container.InputContainer") -> VideoHeader:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise BadRowError("unreadable_video", f"{path.name}: no video in the file")
    stream = streams[0]
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate else 0.0
    num_frames = stream.frames
    if not num_frames:
        num_frames = sum(packet.size > 0 for packet in container.demux(stream))
    width, height = stream.codec_context.width, stream.codec_context.height
    if not (0.0 < fps <= _MAX_FPS and num_frames > 0 and width > 0 and height > 0):
        raise BadRowError(
            "unreadable_video",
            f"{path.name}: {num_frames} frames of {width}x{height} at {fps:g} fps",
        )
    return VideoHeader(fps, num_frames, width, height)


def _is_rotated(path: Path) -> bool:
    """Whether an mp4 or mov is shown on its side: the matrix of its first video track (tkhd)."""
    with path.open("rb") as file:
        for track in _boxes(file, b"moov", b"trak", b"tkhd"):
            # The last 44 bytes: matrix of nine 32-bit numbers, then width and height.
            a, b, _, c, d, *_, width, _ = struct.unpack(">11i", track[-44:])
            if width:
                return a == d == 0 and b != 0 and c != 0
    return False


def _boxes(file: BinaryIO, *path: bytes, end: int | None = None) -> Iterator[bytes]:
    """Contents of the boxes at a path of an ISO base media file (ISO/IEC 14496-12, 4.2)."""
    while end is None or file.tell() < end:
        start = file.tell()
        head = file.read(8)
        if len(head) < 8:
            return
        size, kind = struct.unpack(">I4s", head)
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8))
        if size == 0 or size < file.tell() - start:
            return
        if kind == path[0]:
            if len(path) == 1:
                yield file.read(min(size, 4096) - (file.tell() - start))
            else:
                yield from _boxes(file, *path[1:], end=start + size)
        file.seek(start + size)

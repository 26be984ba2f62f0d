"""What can be said of a video file before it is opened, and the error that every reader raises."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_prep.files import DataError


class VideoError(DataError):
    """A video that is missing, empty or cannot be read rightly; the message names the file."""


@dataclass(frozen=True)
class FileProblem:
    """Why a path cannot be a video, from the file system alone.

    Attributes:
        kind: `missing_video`, `unreadable_video`, `empty_video` or `undecodable_video`.
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


def holds_offsets(path: str | Path) -> bool:
    """Whether the index of an mp4 tells frames' times of showing apart from those of decoding.

    They lie in a box `ctts` (ISO/IEC 14496-12, 8.6.1.3), which FFmpeg's index entries leave out. A
    compressed index (`cmov`) may hold one.
    """
    with Path(path).open("rb") as file:
        for kind, start, length in _boxes(file, Path(path).stat().st_size):
            if kind == b"moov":
                file.seek(start)
                index = file.read(length)
                return b"ctts" in index or b"cmov" in index
    return False


def _missing_bytes(path: Path, size: int) -> int:
    """By how much the index or the frames of an mp4 reach beyond the end of its file; else 0.

    A decoder does not always say so: from a file whose index comes first it may hand out other
    frames than those that are not there.
    """
    with path.open("rb") as file:
        for kind, start, length in _boxes(file, size):
            if start + length > size and kind in (b"mdat", b"moov"):
                return start + length - size
    return 0


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, bytes) of the boxes of an mp4, one after the other; none of another file."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if start == 0 and kind != b"ftyp":
            return  # not an mp4
        if length == 1:  # a 64-bit length follows
            length = int.from_bytes(head[8:16], "big")
        if length == 0:
            yield kind, start, size - start  # up to the end of the file
        if length < 8:
            return
        yield kind, start, length
        start += length

"""A video that is given as a folder of its frames, each an image, shown at a stated rate.

Frames are the images that lie in the folder itself, in the natural order of their names: 2.png
comes before 10.png. Hidden files, as `._2.png` of macOS, are none. The i-th is shown from second
i / fps on; the rate is the row's `video_fps`, since nothing in a folder says it.
"""

import os
import re
from pathlib import Path

from data_prep.video.files import FileProblem, VideoError, file_problem

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp"))
"""By which a file of a folder counts as a frame; others are left alone."""

_DIGITS = re.compile(r"(\d+)")


def frames_of_folder(folder: str | Path) -> list[Path]:
    """The frames of a folder, in the natural order of their names.

    Raises:
        VideoError: naming the folder that cannot be read or holds no image.
    """
    try:
        with os.scandir(folder) as entries:
            found = [one for one in entries if _is_frame(one.name)]
    except OSError as error:
        raise VideoError(f"{folder}: {(error.strerror or 'cannot be read').lower()}") from error
    if not found:
        raise VideoError(f"{folder}: {_EMPTY}")
    for one in found:
        if not one.is_file(follow_symlinks=False):  # a link may lead out of where rows may look
            raise VideoError(f"{folder}: {one.name} is a link or a folder, expected an image")
    return [Path(folder, name) for name in sorted((one.name for one in found), key=_natural)]


def is_folder(path: str | Path) -> bool:
    """Whether it is a folder; a name that no file can have is none."""
    return os.path.isdir(path)  # noqa: PTH112 - that of `Path` raises for a name too long


def clip_problem(path: str | Path) -> FileProblem | None:
    """As `file_problem`, of a row: a folder of frames is none."""
    if not is_folder(path):
        return file_problem(path)
    try:
        frames_of_folder(path)
    except VideoError as error:
        return FileProblem("unreadable_video", str(error).removeprefix(f"{path}: "))
    return None


def _is_frame(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


_EMPTY = f"a folder without frames, expected images ({', '.join(sorted(SUFFIXES))})"


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """By which names are sorted: digits as the number that they write."""
    words = [(int(word), "") if word.isdecimal() else (-1, word) for word in _DIGITS.split(name)]
    return words, name

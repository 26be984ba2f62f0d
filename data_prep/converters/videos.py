"""The folder of videos: names that may not leave it, and what the files of these names hold.

Owns what an annotation file may name. Annotation files come from elsewhere: a path in one is
relative and stays below the folder, also where a link leads, unless the user names other folders.
"""

import errno
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from data_prep.converters.rows import BadRowError
from data_prep.files import DataError
from data_prep.roots import VideoRoots
from data_prep.video import Probe, VideoError
from data_prep.video.guard import probe_guarded

_SEPARATORS = re.compile(r"[/\\]")
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")


class VideoFolder:
    """The videos of a set, by their names below a folder.

    Names stay strings: a `Path` for each of 100,000 rows would go into Python's table of interned
    strings and double the time.

    Args:
        root: The folder that names are relative to.
        allow_outside: Other folders that links in it may lead to.

    Raises:
        DataError: if it is not a folder.
    """

    def __init__(self, root: str | Path, allow_outside: Sequence[str] = ()) -> None:
        self.root = Path(root)
        self._roots = VideoRoots(root, allow_outside)
        self._last: tuple[str, Probe] | None = None  # rows of one video follow each other
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder, expected the folder of the videos")

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
                if outside := self._roots.problem(name):
                    raise BadRowError("link_outside", f"{outside}, expected {self._roots.expected}")
                return name
            if mode is not None:
                other = name
        if other:
            raise BadRowError("not_a_file", f"{other!r} is not a file, expected a video")
        detail = f"{names[0]!r} is not in {self.root}"
        raise BadRowError("missing_video", detail, video=names[0])

    def probe(self, name: str) -> Probe:
        """What a video that was found holds.

        Raises:
            BadRowError: if it cannot be read.
        """
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        path = self._path(name)
        try:
            self._last = name, probe_guarded(path)
            return self._last[1]
        except VideoError as error:
            detail = str(error).removeprefix(f"{path}: ")
            raise BadRowError("unreadable_video", f"{Path(name).name}: {detail}") from error

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

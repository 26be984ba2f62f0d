"""Where the videos of an annotation file may lie: below its folder, and wherever its user says.

Owns that rule for every reader. A file of clips comes from elsewhere: by a path that is absolute,
goes up with `..` or passes a link it must not have other files of the user read, shown to a model
or sent to a teacher. What counts is where a path leads, links followed.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path


class VideoRoots:
    """Folders that videos may lie in.

    Args:
        folder: The folder of the annotation file, which relative paths start from.
        allow_outside: Other folders, absolute or relative to the working directory.
    """

    def __init__(self, folder: str | Path, allow_outside: Sequence[str | Path] = ()) -> None:
        self.folder = os.path.abspath(folder)  # noqa: PTH100 - a `Path` for each row is slow
        roots = [os.path.realpath(root) for root in (self.folder, *allow_outside)]
        self._roots = tuple(root.rstrip(os.sep) + os.sep for root in roots)
        self._real = lru_cache(maxsize=1024)(os.path.realpath)  # rows share their folders

    def problem(self, video: str) -> str:
        """What keeps a path from being read, in words; empty if nothing does.

        Args:
            video: As it is written in the file.
        """
        path = os.path.normpath(os.path.join(self.folder, video))  # noqa: PTH118 - as it is opened
        try:
            if os.path.islink(path):  # noqa: PTH114
                real = os.path.realpath(path)
            else:
                folder, name = os.path.split(path)
                real = os.path.join(self._real(folder), name)  # noqa: PTH118
        except ValueError:  # a NUL: no file has such a name
            return ""
        if real.startswith(self._roots):
            return ""
        leads = "" if real == path else f" (leads to {real[:200]!r})"
        return f"{video[:200]!r}{leads}"

    @property
    def expected(self) -> str:
        """Where videos may lie, for the message."""
        return f"a path in {self.folder}, or in a folder that data.allow_outside names"

"""A cache's folder (`cache_folder`) that is kept under a size: what was longest not used goes.

To look at every file after every write would cost more than what is cached, so a process looks when
its own writes could have passed the bound, or came to 1/16 of it; with P processes the folder can
pass it by P/16. A reader that has a removed file mapped keeps its pages, as POSIX promises.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from actrep_ray.media.cache_folder import CacheFolder

_log = logging.getLogger(__name__)


class BoundedFolder(CacheFolder):
    """The files of a cache, bounded.

    Args:
        path: See `CacheFolder`.
        names: Likewise; other files of the folder are not counted either.
        max_bytes: Size that its files are kept under, in bytes, the newest one excepted.
        consequence: Of a folder that cannot be written to, for a warning, for example "clips are
            decoded each time".
        is_shared: See `CacheFolder`.
    """

    def __init__(
        self,
        path: str | Path,
        names: re.Pattern[str],
        max_bytes: int,
        consequence: str,
        *,
        is_shared: bool = False,
    ) -> None:
        super().__init__(path, names, is_shared=is_shared)
        self._max_bytes = max_bytes
        self._consequence = consequence
        self._num_bytes_seen = 0  # in the folder, when it was last looked at
        self._num_bytes_written = max_bytes  # since then; the first write looks
        self._is_full_told = False

    def store(self, name: str, write: Callable[[BinaryIO], object], num_bytes: int) -> None:
        """Keep a file if it can be written, and remove others where they are too much.

        Args:
            name: Of the file.
            write: Writes it.
            num_bytes: About what it takes.
        """
        try:
            with self.writing(name) as out:
                write(out)
        except OSError as error:  # no room, or a folder that is only read
            if not self._is_full_told:
                _log.warning("%s: %s; %s", self.path, error.strerror, self._consequence)
                self._is_full_told = True
            return
        self._num_bytes_written += num_bytes
        may_exceed = self._num_bytes_seen + self._num_bytes_written > self._max_bytes
        if may_exceed or self._num_bytes_written > self._max_bytes // 16:
            self._evict(keep=name)

    def _evict(self, keep: str) -> None:
        files = self.files()
        self._num_bytes_seen = sum(file.num_bytes for file in files)
        self._num_bytes_written = 0
        # What videos hold is small, and all that is left of one that has vanished: it goes last.
        for file in sorted(files, key=lambda f: (f.name.endswith(".video"), f.used_ns, f.name)):
            if self._num_bytes_seen <= self._max_bytes:
                return
            if file.name != keep:
                self.remove(file.name)
                self._num_bytes_seen -= file.num_bytes

"""A folder of cached files that can be trusted: nobody else's, and nothing in it is followed.

    private (the default)   0700, owned by this user; files 0600. What another user owns is foreign.
    shared                  02770, files 0660: whoever is in the folder's group is trusted with what
                            a model is shown. Only where a recipe says so (`video.shared_cache`).

Each access opens the folder anew, checks it, and reaches its files by name from there: neither a
link in place of the folder or of a file, nor a folder that is swapped meanwhile, leads elsewhere.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_prep.files import DataError
from data_prep.partial_files import is_leftover, partial_of

_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO does not wait
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def default_folder() -> Path:
    """Where caches of this user lie: `ACTREP_CACHE`, else `actrep` in the XDG cache folder.

    Raises:
        DataError: if `ACTREP_CACHE` is no absolute path: workers run in other folders.
    """
    if given := os.environ.get("ACTREP_CACHE"):
        if not Path(given).is_absolute():
            raise DataError(f"ACTREP_CACHE={given!r}, expected an absolute path")
        return Path(given)
    xdg = Path(os.environ.get("XDG_CACHE_HOME") or "relative")
    # A relative one is to be ignored, says the XDG base directory specification.
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "actrep"


@dataclass(frozen=True)
class CachedFile:
    """A file of the folder, as eviction sees it.

    Attributes:
        name: Its name.
        num_bytes: Its size.
        used_ns: When it was last read or written, nanoseconds.
    """

    name: str
    num_bytes: int
    used_ns: int


class CacheFolder:
    """The files of a cache in one folder.

    Args:
        path: The folder; made if missing.
        names: What the names of the cache's own files match; no other file is ever removed.
        is_shared: Whether other users read and write it too.

    Raises:
        DataError: if the folder is a link, another user's, or others may write to it.
    """

    def __init__(
        self, path: str | Path, names: re.Pattern[str], *, is_shared: bool = False
    ) -> None:
        self.path = Path(path)
        self.is_shared = is_shared
        self.file_mode = 0o660 if is_shared else 0o600
        self._names = names
        self._partial = re.compile(rf"\.(?:{names.pattern})\..*\.partial", re.DOTALL)
        with self._opened():
            pass

    @contextmanager
    def reading(self, name: str) -> Iterator[tuple[int, os.stat_result] | None]:
        """An open file and what is known of it; None where there is none that could be ours."""
        with self._opened() as folder:
            try:
                file = os.open(name, _OPEN_FILE, dir_fd=folder)
            except OSError:  # none there, a link, or not for us to read: it is made anew
                file = None
            if file is None:
                yield None
                return
            try:
                status = os.fstat(file)
                yield (file, status) if self._may_be_ours(status) else None
            finally:
                os.close(file)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file that appears under its name, in place of what is there, when the block ends.

        It is not synced: what a loss of power takes from a cache is made again.

        Raises:
            OSError: if it cannot be written.
        """
        with self._opened() as folder, partial_of(self.path / name) as partial:
            file = os.open(partial.name, _NEW_FILE, self.file_mode, dir_fd=folder)
            with os.fdopen(file, "wb") as out:
                if self.is_shared:  # whatever the mask says
                    os.fchmod(file, self.file_mode)
                yield out
            os.rename(partial.name, name, src_dir_fd=folder, dst_dir_fd=folder)

    def touch(self, file: int, status: os.stat_result, now_ns: int) -> None:
        """Note that an open file was used, in its time of access alone."""
        with suppress(PermissionError):  # a file of another user
            os.utime(file, ns=(now_ns, status.st_mtime_ns))

    def files(self) -> list[CachedFile]:
        """The cache's own files, and what dead writers left of such."""
        found = []
        with self._opened() as folder, os.scandir(folder) as entries:
            for entry in entries:
                is_left = self._partial.fullmatch(entry.name) and is_leftover(entry.name)
                if not is_left and not self._names.fullmatch(entry.name):
                    continue
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if self._may_be_ours(status):
                        used_ns = 0 if is_left else status.st_atime_ns
                        found.append(CachedFile(entry.name, status.st_size, used_ns))
        return found

    def remove(self, name: str) -> None:
        """Remove a file, if it is still there and ours to remove."""
        with self._opened() as folder, suppress(FileNotFoundError, PermissionError):
            os.unlink(name, dir_fd=folder)

    def _may_be_ours(self, status: os.stat_result) -> bool:
        is_trusted = self.is_shared or status.st_uid == os.geteuid()
        return is_trusted and stat.S_ISREG(status.st_mode)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        folder = self._open(makes=True)
        try:
            self._check(os.fstat(folder))
            yield folder
        finally:
            os.close(folder)

    def _open(self, *, makes: bool) -> int:
        try:
            return os.open(self.path, _OPEN_FOLDER)
        except FileNotFoundError as error:
            if not makes:
                raise DataError(f"{self.path}: {error.strerror}, expected a folder") from error
        except OSError as error:
            what = "a symbolic link" if self.path.is_symlink() else error.strerror
            raise DataError(f"{self.path}: {what}, expected a folder of this user") from error
        self._make()
        return self._open(makes=False)

    def _make(self) -> None:
        mode = 0o2770 if self.is_shared else 0o700
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode)
            if self.is_shared:  # whatever the mask says
                self.path.chmod(mode)
        except FileExistsError:  # another process was faster, or a link leads nowhere
            return
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}, expected to make a cache") from error

    def _check(self, status: os.stat_result) -> None:
        mode = stat.S_IMODE(status.st_mode)
        if self.is_shared:
            if mode & stat.S_IWOTH:
                raise DataError(
                    f"{self.path}: everybody may write to it (mode {mode:04o}), expected only its "
                    "owner and group: chmod o-w"
                )
            return
        remedy = "set video.cache_dir to another one, or video.shared_cache=true to trust its group"
        if status.st_uid != os.geteuid():
            raise DataError(
                f"{self.path}: belongs to user {status.st_uid}, expected a folder of user "
                f"{os.geteuid()}: {remedy}"
            )
        if mode & _BY_OTHERS:
            raise DataError(
                f"{self.path}: others may write to it (mode {mode:04o}), expected 0700: chmod 700, "
                f"or {remedy}"
            )

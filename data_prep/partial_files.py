"""What is being written, under a name of its own: `.NAME.HOST.PID.TOKEN.partial`.

Owns that name, and tells by it what a dead process left: it is removed by the next process that
writes into the folder.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_PARTIAL = re.compile(r"\..*\.(?P<host>[^.]*)\.(?P<pid>\d+)\.[0-9a-f]{8}\.partial", re.DOTALL)
_MAX_NAME_BYTES = 120  # of the name within the name of a partial file; file systems allow 255

_being_written: set[str] = set()  # names of this process's partial files


def remove_leftovers(folder: str | Path, *, are_all_dead: bool = False) -> None:
    """Remove what writers that are gone left in a folder.

    Args:
        folder: Where they wrote.
        are_all_dead: Whether the caller knows that nobody else writes there now. Without, a file
            is removed if the process in its name, on this machine, is gone.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(".partial")]
    for name in names:
        if are_all_dead or is_leftover(name):
            _remove(Path(folder, name))


def is_leftover(name: str) -> bool:
    """Whether a file's name is that of a partial file whose writer is gone."""
    found = _PARTIAL.fullmatch(name)
    if found is None or found["host"] != _host():
        return False  # another machine's processes cannot be asked
    pid = int(found["pid"])
    if pid == os.getpid():  # ours, or of a process whose number came back to us
        return name not in _being_written
    return not Path(f"/proc/{pid}").exists()


@contextmanager
def partial_of(path: Path) -> Iterator[Path]:
    """A name of its own beside `path`; whatever is left under it is removed in the end."""
    _clean_once(path.parent.absolute(), os.getpid())
    stem = os.fsdecode(os.fsencode(path.name)[:_MAX_NAME_BYTES])
    partial = path.with_name(f".{stem}.{_host()}.{os.getpid()}.{os.urandom(4).hex()}.partial")
    _being_written.add(partial.name)
    try:
        yield partial
    finally:
        _remove(partial)
        _being_written.discard(partial.name)


@cache
def _clean_once(folder: Path, _pid: int) -> None:
    """A process looks at a folder once: it may hold as many files as a cache."""
    with suppress(PermissionError):  # a folder that may be written to and not listed
        remove_leftovers(folder)


@cache
def _host() -> str:
    return re.sub(r"[^\w-]", "-", os.uname().nodename)[:64]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

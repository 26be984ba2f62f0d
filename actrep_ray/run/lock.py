"""One run at a time in a folder: a lock that says who holds it and is taken from the dead.

    FOLDER/.lock-000007    the highest number is the holder's; JSON: who, where, since when

Each file is made under a name that must not exist, which a file system does for one process alone,
a network file system too; so a lock that is free, or whose holder is dead, has one winner however
many try. A holder on this machine is dead when the kernel knows no process of its number and start
time. Of a holder elsewhere (another host, or a container with processes of its own) it is known
only whether it still touches its file: it does so every 10 s, and is dead after 60 s without, for
which whoever wants the lock waits. Ages are told by the clock of the file system, so those of hosts
may differ.

A holder that was given up for dead and comes back finds a higher number: `check_holder` raises.
"""

import errno
import json
import logging
import os
import re
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from data_prep.files import DataError, read_object
from data_prep.partial_files import partial_of
from data_prep.processes import process_start

TOUCH_EVERY_S = 10.0
STALE_AFTER_S = 60.0
_LOOK_EVERY_S = 1.0

_NAME = re.compile(r"\.lock-(\d{6,})")
_log = logging.getLogger(__name__)


class HeldError(DataError):
    """A folder that another run works in; the message names it."""


class LockLostError(RuntimeError):
    """This process was given up for dead, and another one works in its folder."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        host: Name of the machine.
        machine: What tells its processes from those of others: boot and process namespace.
        pid: Process id.
        start: When the process started, as the kernel counts; a number used again has another.
        what: What it does, for messages.
        is_released: Whether it let go.
    """

    host: str
    machine: str
    pid: int
    start: str
    what: str
    is_released: bool = False

    def __str__(self) -> str:
        return f"{self.what}, process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether its process is one that this machine can be asked about."""
        return self.machine == _machine()


class FolderLock:
    """A held lock; `acquire` makes one. It is let go by `release`, and where nothing refers to it.

    Args:
        path: Its file.
        holder: This process.
    """

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path = path
        self.holder = holder
        stop = threading.Event()
        threading.Thread(target=_touch, args=(path, stop), name="lock", daemon=True).start()
        self._let_go = weakref.finalize(self, _let_go, path, holder, stop)

    @classmethod
    def acquire(cls, folder: Path, what: str) -> Self:
        """Take the lock of a folder, which is made if missing.

        Args:
            folder: What one process at a time may write into.
            what: What it does there, for the message that refuses another.

        Raises:
            HeldError: if another process, or this one, holds it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        me = Holder(os.uname().nodename, _machine(), os.getpid(), _start(os.getpid()), what)
        with partial_of(folder / ".lock") as partial:
            partial.write_text(json.dumps(asdict(me)) + "\n", encoding="utf-8")
            while True:
                newest = _newest(folder)
                found = None if newest is None else _read(newest)
                if newest and found and not _is_gone(folder, newest, found, now=partial):
                    continue  # it has changed hands meanwhile
                path = folder / f".lock-{_number(newest) + 1:06d}"
                with suppress(FileExistsError):
                    _claim(path, partial)
                    break
        if _newest(folder) != path:  # the folder was read late: others have come and gone since
            path.unlink()
            return cls.acquire(folder, what)
        for old in _files(folder)[:-1]:
            old.unlink(missing_ok=True)
        if found is not None and not found.is_released:
            _log.warning("%s: taken over from %s, which is gone", folder, found)
        return cls(path, me)

    def release(self) -> None:
        """Let go; another process may take it. Once is enough, twice is no harm."""
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def check_holder(folder: Path) -> None:
    """Refuse to go on in a folder that another process has taken over from this one.

    Raises:
        LockLostError: naming it.
    """
    newest = _newest(folder)
    found = None if newest is None else _read(newest)
    if found is None or found.is_released:
        return
    if (found.machine, found.pid, found.start) != (_machine(), os.getpid(), _start(os.getpid())):
        raise LockLostError(
            f"{folder}: {found} has taken over, since this process gave no sign for "
            f"{STALE_AFTER_S:g} s; nothing more is written"
        )


def _is_gone(folder: Path, path: Path, holder: Holder, now: Path) -> bool:
    """Whether a lock's holder let go or is dead; False if its file went while that was watched.

    Args:
        folder: What is locked.
        path: The holder's file.
        holder: Who it names.
        now: A file of ours, by which the file system tells its time.

    Raises:
        HeldError: if the holder lives.
    """
    if holder.is_released:
        return True
    if holder.is_here:
        if process_start(holder.pid) == holder.start:
            raise HeldError(f"{folder}: held by {holder}")
        return True
    try:
        first = path.stat().st_mtime
        if _time_of(now) - first < STALE_AFTER_S:
            _log.warning("%s: waiting for a sign of %s", folder, holder)
        while _time_of(now) - first < STALE_AFTER_S:
            time.sleep(_LOOK_EVERY_S)
            if (_read(path) or holder).is_released:
                return False
            if path.stat().st_mtime != first:
                raise HeldError(f"{folder}: held by {holder}, which gave a sign just now")
    except FileNotFoundError:
        return False
    return True


def _time_of(path: Path) -> float:
    """The file system's time, by touching a file of ours."""
    os.utime(path)
    return path.stat().st_mtime


def _claim(path: Path, written: Path) -> None:
    """Make `path`, with the content of another file; FileExistsError if it is there."""
    try:
        os.link(written, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        with path.open("xb") as file:  # a file system without links; empty for a moment
            file.write(written.read_bytes())


def _touch(path: Path, stop: threading.Event) -> None:
    while not stop.wait(TOUCH_EVERY_S):
        with suppress(OSError):  # removed with its folder, or a file system that is away
            os.utime(path)


def _let_go(path: Path, holder: Holder, stop: threading.Event) -> None:
    stop.set()
    if os.getpid() != holder.pid:  # a fork's copy
        return
    released = json.dumps(asdict(holder) | {"is_released": True}) + "\n"
    with suppress(OSError):  # whoever finds it sees that this process is gone
        if path.exists():
            with partial_of(path) as partial:
                partial.write_text(released, encoding="utf-8")
                partial.replace(path)


def _read(path: Path) -> Holder | None:
    """Who a file names; None for one that is gone."""
    try:
        return Holder(**read_object(path, "the holder of a lock"))
    except (DataError, TypeError):  # emptied by a loss of power, or of another version
        is_there = path.exists()
        return (
            Holder("a machine unknown", "", 0, "", f"{path.name}, which cannot be read")
            if (is_there)
            else None
        )


def _files(folder: Path) -> list[Path]:
    """The lock files of a folder, the newest last."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _NAME.fullmatch(entry.name)]
    return sorted((folder / name for name in names), key=_number)


def _newest(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    return files[-1] if (files := _files(folder)) else None


def _number(path: Path | None) -> int:
    if path is None:
        return 0
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def _start(pid: int) -> str:
    return process_start(pid) or "unknown"


def _machine() -> str:
    """Two processes with the same value can be asked about each other by their ids."""
    parts = [os.uname().nodename]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(Path("/proc/self/ns/pid").readlink().name)
    return " ".join(parts)

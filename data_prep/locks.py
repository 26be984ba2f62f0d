"""Locks between processes, and threads, of one machine: freed by the kernel, waited for in time."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_prep.files import DataError

_POLL_S = 0.02


class BusyError(DataError):
    """A lock that was not free in time; the message says whose work was waited for."""


@contextmanager
def locked(
    path: str | Path, *, timeout_s: float, waits_for: str, mode: int = 0o644
) -> Iterator[None]:
    """Hold a lock that other processes, and other threads, of this machine wait for.

    The kernel frees it when its holder dies. Its file is removed with it.

    Args:
        path: The lock's file, which nothing else is in; the folder is made if missing.
        timeout_s: Longest wait, seconds; 0 tries once.
        waits_for: Whose work is waited for, for the message, for example "the process that decodes
            a.mp4".
        mode: Permissions of the lock's file: whoever waits for it must be able to write to it.

    Raises:
        BusyError: if the lock is not free in time.
    """
    from filelock import FileLock, Timeout  # slow to import, and the command line shows help only

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=timeout_s, mode=mode)
    try:
        lock.acquire(poll_interval=_POLL_S)
    except Timeout as error:
        waited = f"waited {timeout_s:g} s for " if timeout_s else "held by "
        raise BusyError(f"{path}: {waited}{waits_for}") from error
    try:
        yield
    finally:
        # While it is held: whoever gets the lock of a file without a name tries again.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()

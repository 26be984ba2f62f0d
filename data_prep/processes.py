"""Processes: workers that do not outlive the one that started them, and who is still alive."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def die_with(parent: int) -> None:
    """Let the kernel end this process when its parent ends, however that happens (Linux only).

    Args:
        parent: Process id of the one that started this process.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before we could ask
        os._exit(1)


def process_start(pid: int) -> str | None:
    """When a living process started, as its kernel counts; None for one that is gone.

    A process that has ended and that nobody has asked about yet (a zombie) is gone.
    """
    if sys.platform != "linux":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:  # of another user
            pass
        return "unknown"
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes that start meanwhile have one thread for matrices: theirs are small.

    With more, two processes on two cores took twice the processor time for 60 clips.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

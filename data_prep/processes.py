"""Processes: workers that do not outlive the one that started them, and who is still alive."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_IN_THIS_PROCESS = 8  # items for which starting others takes longer than the work
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


@contextmanager
def shared_map(
    function: Callable[[ItemT], ResultT],
    items: Sequence[ItemT],
    num_processes: int | None = None,
    *,
    chunk: int = 1,
) -> Iterator[Iterator[ResultT]]:
    """`map` over processes that share the items, in order; over a few items in this process.

    At the end of the context what was not begun is given up.

    Args:
        function: Found by its name in a new process.
        items: Its arguments, one each.
        num_processes: None: one for each CPU, at most 16.
        chunk: Items that a process is given at a time.
    """
    num_processes = num_processes or min(16, os.cpu_count() or 1)
    if num_processes == 1 or len(items) <= _IN_THIS_PROCESS:
        yield map(function, items)
        return
    # spawn: the caller may hold threads (Ray, torch), which a forked child must not inherit
    context = get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=_one_opencv_thread)
    try:
        with one_thread_each():
            results = pool.map(function, items, chunksize=chunk)
        yield results
    finally:
        pool.shutdown(cancel_futures=True)


def _one_opencv_thread() -> None:
    import cv2

    cv2.setNumThreads(1)

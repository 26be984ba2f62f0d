"""Reading frames with a deadline: a file that hangs or crashes the decoder is an error of its clip.

Processes stay warm: one for each thread that reads at a time, started when it is first needed.
What they read comes back through a pipe, which is little beside the work of decoding it.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data_prep.video.files import VideoError
from data_prep.video.plan import FramePlan
from data_prep.video.process import DecodingProcess, Failure
from data_prep.video.reader import read_frames

DEADLINE_S = 120.0  # for one plan; minutes of full HD take some 20 s on a slow core

_idle: list[DecodingProcess] = []
_lock = threading.Lock()
# Linux ends a bound child with the THREAD that started it: this one stays.
_starter = ThreadPoolExecutor(1, thread_name_prefix="decoding-processes")


def _start_anew() -> None:
    """A forked child has neither the processes nor the thread of its parent."""
    global _lock, _starter  # noqa: PLW0603
    _idle.clear()
    _lock = threading.Lock()
    _starter = ThreadPoolExecutor(1, thread_name_prefix="decoding-processes")


os.register_at_fork(after_in_child=_start_anew)


def read_guarded(plan: FramePlan, deadline_s: float = DEADLINE_S) -> np.ndarray:
    """As `read_frames`, in a process of its own that may take no longer than the deadline.

    Raises:
        VideoError: if the file cannot be decoded, its decoder dies, or it takes too long.
    """
    found = _ask(plan, deadline_s)
    if isinstance(found, Failure) and found.kind == "decoder_crashed":
        found = _ask(plan, deadline_s)  # it may have been the kernel, short of memory
    if isinstance(found, Failure):
        raise VideoError(f"{plan.video}: {found.message}")
    return found


def _ask(plan: FramePlan, deadline_s: float) -> np.ndarray | Failure:
    process = _take()
    try:
        process.give(plan, deadline_s)
        found = process.wait()
    except VideoError:
        _put_back(process)
        raise
    except BaseException:
        process.end()
        raise
    if isinstance(found, Failure):
        return found
    _put_back(process)
    frames: np.ndarray = found.value
    return frames


def end_processes() -> None:
    """End the processes that are idle; they end with this process in any case."""
    with _lock:
        while _idle:
            _idle.pop().end()


def _take() -> DecodingProcess:
    with _lock:
        while _idle:
            process = _idle.pop()
            if process.is_alive:
                return process
            process.end()
    process = _starter.submit(DecodingProcess, read_frames).result()
    process.wait_ready()
    return process


def _put_back(process: DecodingProcess) -> None:
    with _lock:
        _idle.append(process)

"""Reading with a deadline: a file that hangs or crashes the decoder is an error of its clip.

Processes stay warm: one for each thread that reads at a time, started when it is first needed.
What they read comes back through a pipe, which is little beside the work of decoding it.
"""

import atexit
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.video.files import VideoError
from data_prep.video.plan import FramePlan
from data_prep.video.probe import NUM_REMEMBERED, Probe, identity_of, probe
from data_prep.video.process import Answer, DecodingProcess, Failure
from data_prep.video.reader import read_frames, read_luma

DEADLINE_S = 120.0  # for one plan; minutes of full HD take some 20 s on a slow core


@dataclass(frozen=True)
class Luma:
    """A plan of which only the brightness is wanted."""

    plan: FramePlan


Request = FramePlan | Luma | str
"""Frames, their brightness, or what is in the file of this name."""

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
    frames: np.ndarray = _answer(plan, plan.video, deadline_s)
    return frames


def luma_guarded(plan: FramePlan, deadline_s: float = DEADLINE_S) -> np.ndarray:
    """As `read_luma`, likewise.

    Raises:
        VideoError: as `read_guarded` does.
    """
    frames: np.ndarray = _answer(Luma(plan), plan.video, deadline_s)
    return frames


def probe_guarded(path: str | Path, deadline_s: float = DEADLINE_S) -> Probe:
    """As `probe`, likewise; what was found is remembered here for as long as the file stays.

    Raises:
        VideoError: if the file cannot be read, its decoder dies, or it takes too long.
    """
    return _remembered(*identity_of(path), deadline_s)


@lru_cache(maxsize=NUM_REMEMBERED)
def _remembered(path: str, identity: tuple[int, ...], deadline_s: float) -> Probe:
    del identity  # only names what is remembered
    found: Probe = _answer(path, path, deadline_s)
    return found


def look_at(request: Request) -> "np.ndarray | Probe":
    """The job of the processes: the frames of a plan, or what a file holds."""
    if isinstance(request, Luma):
        return read_luma(request.plan)
    return read_frames(request) if isinstance(request, FramePlan) else probe(request)


def _answer(request: Request, path: str, deadline_s: float) -> Any:
    found = _ask(request, deadline_s)
    if isinstance(found, Failure) and found.kind == "decoder_crashed":
        found = _ask(request, deadline_s)  # it may have been the kernel, short of memory
    if isinstance(found, Failure):
        raise VideoError(f"{path}: {found.message}")
    return found.value


def _ask(request: Request, deadline_s: float) -> Answer | Failure:
    process = _take()
    try:
        process.give(request, deadline_s)
        found = process.wait()
    except VideoError:
        _put_back(process)
        raise
    except BaseException:
        process.end()
        raise
    if isinstance(found, Answer):
        _put_back(process)
    return found


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
    process = _starter.submit(DecodingProcess, look_at).result()
    process.wait_ready()
    return process


def _put_back(process: DecodingProcess) -> None:
    with _lock:
        _idle.append(process)


atexit.register(end_processes)

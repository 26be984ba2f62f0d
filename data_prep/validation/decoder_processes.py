"""Decoding videos in processes that may die: each file ends in a `VideoFacts`, whatever it does.

A damaged file can make a decoder raise, crash (a signal, out of memory) or hang. Each worker is a
process of its own that is given one file at a time and a deadline; one that dies or is late is
killed and replaced, and the file it was at is told apart from the rest. Workers cannot outlive
their parent: the kernel kills them when it is gone, and ctrl-C leaves none.

Linux: a worker also dumps no core, may take no more than `_MEMORY_LIMIT_BYTES`, and is the first
to go where memory runs out.
"""

import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

from data_prep.processes import die_with
from data_prep.validation.video_facts import Check, VideoFacts, VideoTask, check_video
from data_prep.video import without_prefix

_START_LIMIT_S = 120.0  # imports on a busy machine
_REAP_LIMIT_S = 10.0
_MEMORY_LIMIT_BYTES = 12 * 2**30


def check_in_processes(
    tasks: Iterable[VideoTask],
    *,
    num_workers: int,
    deadline_s: float,
    check: Check = check_video,
) -> Generator[VideoFacts, None, None]:
    """Check files in processes, in the order in which they are done; one answer for each task.

    Close the generator (or exhaust it) to end the processes.

    Args:
        tasks: The files.
        num_workers: Processes at a time, at least 1.
        deadline_s: Seconds that one file may take.
        check: What the processes run; found there by its module and name.

    Raises:
        RuntimeError: if a process cannot be started, with what it wrote.
    """
    waiting = deque(tasks)
    workers: list[_Worker] = []
    with tempfile.TemporaryDirectory(prefix="actrep-decode-") as folder:
        try:
            while waiting or workers:
                num_starting = sum(worker.task is None for worker in workers)
                for _ in range(min(num_workers - len(workers), len(waiting) - num_starting)):
                    workers.append(_Worker(Path(folder), check, deadline_s))
                for worker in _ready(workers):
                    if facts := worker.receive():
                        yield facts
                    if worker.task is None and not worker.is_gone:
                        worker.give(waiting.popleft()) if waiting else worker.end()
                workers = [worker for worker in workers if not worker.is_gone]
        finally:
            for worker in workers:
                worker.end()


class _Worker:
    """A process, and the file that it is at."""

    def __init__(self, folder: Path, check: Check, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        handle, name = tempfile.mkstemp(dir=folder, suffix=".log")
        os.close(handle)
        self._log = Path(name)
        self.task: VideoTask | None = None
        self.is_gone = False
        self.due = time.monotonic() + _START_LIMIT_S
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, check, name, os.getpid())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        # A process inherits the mask: ctrl-C is for the parent, also while the child imports.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
        theirs.close()

    def give(self, task: VideoTask) -> None:
        """Send it a file; its deadline starts now."""
        self.task = task
        self.due = time.monotonic() + self._deadline_s
        with suppress(BrokenPipeError):  # it has died already; `receive` will find out
            self.connection.send(task)

    def receive(self) -> VideoFacts | None:
        """What it has to say: its facts, its end, or nothing yet."""
        if self.connection.poll():
            try:
                message = self.connection.recv()
            except (EOFError, ConnectionResetError):
                return self._has_died()
            task, self.task = self.task, None
            if task is None:  # it has started
                return None
            assert isinstance(message, VideoFacts), f"{message!r} from a decoding process"
            return self._with_log(message)
        return self._is_late() if time.monotonic() >= self.due else None

    def end(self) -> None:
        """Kill the process and wait for it."""
        self.is_gone = True
        self._process.kill()
        self._process.join(_REAP_LIMIT_S)
        self.connection.close()

    def _has_died(self) -> VideoFacts:
        self._process.join(_REAP_LIMIT_S)
        code, said = self._process.exitcode or 0, self._said()
        self.end()
        if self.task is None:
            raise RuntimeError(f"a decoding process ended with code {code} at its start: {said}")
        task, self.task = self.task, None
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
        message = f"the decoder's process {how}"
        return VideoFacts(task.path, "decoder_crashed", f"{message}: {said}" if said else message)

    def _is_late(self) -> VideoFacts:
        said = self._said()
        self.end()
        if self.task is None:
            limit = f"{_START_LIMIT_S:g} s"
            raise RuntimeError(f"a decoding process did not start within {limit}: {said}")
        task, self.task = self.task, None
        message = f"not decoded within the deadline of {self._deadline_s:g} s"
        return VideoFacts(task.path, "decoder_hung", message)

    def _with_log(self, facts: VideoFacts) -> VideoFacts:
        said = self._said().removeprefix(f"ERROR opening: {facts.path}, ")
        if facts.problem != "undecodable_video" or not said or said in facts.message:
            return facts
        return replace(facts, message=f"{facts.message}; {said}")

    def _said(self) -> str:
        """The last line that the process wrote about this file, or about its own start."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return without_prefix(lines[-1])[:300] if lines else ""


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """Wait until a worker has something to say or is late."""
    timeout = min(worker.due for worker in workers) - time.monotonic()
    ready = wait([worker.connection for worker in workers], max(timeout, 0.0))
    now = time.monotonic()
    return [worker for worker in workers if worker.connection in ready or now >= worker.due]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- in the process


def _serve(connection: Connection, check: Check, log: str, parent: int) -> None:
    """Answer tasks until the other end is closed."""
    _bind_to(parent)
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(handle, descriptor)
    connection.send(None)
    while True:
        try:
            task = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        os.ftruncate(handle, 0)
        connection.send(check(task))


def _bind_to(parent: int) -> None:
    """Die with the parent, leave no core, and take no more memory than allowed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    die_with(parent)
    if sys.platform != "linux":
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))
    with suppress(OSError):  # where /proc is not ours to write, the kernel chooses by itself
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")

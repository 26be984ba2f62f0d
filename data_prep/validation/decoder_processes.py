"""Checking videos in processes that may die: each file ends in a `VideoFacts`, whatever it does.

A damaged file can make a decoder raise, crash (a signal, out of memory) or hang. Each process is
given one file at a time and a deadline; one that dies or is late is replaced, and the file it was
at is told apart from the rest.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from multiprocessing.connection import wait

from data_prep.validation.video_facts import Check, VideoFacts, VideoTask, check_video
from data_prep.video.process import DecodingProcess, Failure


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
    try:
        while waiting or workers:
            num_starting = sum(worker.task is None for worker in workers)
            for _ in range(min(num_workers - len(workers), len(waiting) - num_starting)):
                workers.append(_Worker(check))
            for worker in _ready(workers):
                if facts := worker.receive():
                    yield facts
                process = worker.process
                if worker.task is None and process.is_ready and not process.is_gone:
                    if waiting:
                        worker.give(waiting.popleft(), deadline_s)
                    else:
                        process.end()
            workers = [worker for worker in workers if not worker.process.is_gone]
    finally:
        for worker in workers:
            worker.process.end()


class _Worker:
    """A process, and the file that it is at."""

    def __init__(self, check: Check) -> None:
        self.process = DecodingProcess(check)
        self.task: VideoTask | None = None

    def give(self, task: VideoTask, deadline_s: float) -> None:
        """Have a file checked."""
        self.task = task
        self.process.give(task, deadline_s)

    def receive(self) -> VideoFacts | None:
        """What was found; None if that is nothing yet, or only that the process is ready."""
        found = self.process.receive()
        if found is None:
            return None
        task, self.task = self.task, None
        assert task is not None, "an answer without a task"
        if isinstance(found, Failure):
            return VideoFacts(task.path, found.kind, found.message)
        facts = found.value
        assert isinstance(facts, VideoFacts), f"{facts!r} from a decoding process"
        if facts.problem != "undecodable_video" or not found.said or found.said in facts.message:
            return facts
        return replace(facts, message=f"{facts.message}; {found.said}")


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """Wait until a process has something to say or is late."""
    processes = [worker.process for worker in workers]
    timeout = min(process.due for process in processes) - time.monotonic()
    ready = wait([process.connection for process in processes], max(timeout, 0.0))
    now = time.monotonic()
    return [w for w in workers if w.process.connection in ready or now >= w.process.due]

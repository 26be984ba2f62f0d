"""A warm process that does one job at a time on files which may crash or hang a decoder.

    parent   give(argument) ─► pipe ─► child runs its job      receive() ─► Answer or Failure
             late? the child is killed     died? the kernel closes the pipe

The child is a fresh interpreter with the parent's import path: it inherits neither locks nor CUDA,
and does not import the parent's main module. It dies with its parent, dumps no core, takes no more
than `_MEMORY_LIMIT_BYTES` and is the first to go where memory runs out (Linux).
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from data_prep.processes import die_with
from data_prep.video.container import without_prefix
from data_prep.video.files import VideoError

START_LIMIT_S = 120.0  # imports on a busy machine
_REAP_LIMIT_S = 10.0
_MEMORY_LIMIT_BYTES = 12 * 2**30

Job = Callable[[Any], Any]
"""A function of a module, found in the process by its name; argument and result are pickled."""


@dataclass(frozen=True)
class Answer:
    """What a job returned, and the last line that the process wrote meanwhile."""

    value: Any
    said: str


@dataclass(frozen=True)
class Failure:
    """How a job ended without an answer; the process is gone.

    Attributes:
        kind: `decoder_crashed` or `decoder_hung`.
        message: In words.
    """

    kind: str
    message: str


class DecodingProcess:
    """A process for one kind of job; it counts as starting until `is_ready`.

    Args:
        job: What it runs. A `VideoError` that it raises is raised here; any other ends the process.
    """

    def __init__(self, job: Job) -> None:
        self.is_ready = False
        self.is_gone = False
        self.due = time.monotonic() + START_LIMIT_S
        self._deadline_s = 0.0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self.connection, theirs = Pipe()
        code = "from data_prep.video.process import serve; serve()"
        words = [str(theirs.fileno()), str(os.getpid()), str(self._log.fileno())]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
        }
        # A process inherits the mask: ctrl-C is for the parent, also while the child imports.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, *words],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(), self._log.fileno()),
                env=environment,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
            theirs.close()
        with suppress(BrokenPipeError):  # it died at its start; `receive` will find out
            self.connection.send(job)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return not self.is_gone and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until it has started.

        Raises:
            RuntimeError: if it cannot be started, with what it wrote.
        """
        while not self.is_ready:
            self.connection.poll(max(self.due - time.monotonic(), 0.0))
            self.receive()

    def give(self, argument: Any, deadline_s: float) -> None:
        """Hand its job an argument; it must be ready, and have no other."""
        self._deadline_s = deadline_s
        self.due = time.monotonic() + deadline_s
        with suppress(BrokenPipeError):  # it has died already; `receive` will find out
            self.connection.send(argument)

    def wait(self) -> Answer | Failure:
        """What comes of its job, at the latest when that is due.

        Raises:
            VideoError: if the job raised one.
        """
        while True:
            self.connection.poll(max(self.due - time.monotonic(), 0.0))
            if (found := self.receive()) is not None:
                return found

    def receive(self) -> Answer | Failure | None:
        """What it has to say; None if that is nothing yet, or only that it is ready.

        Raises:
            VideoError: if the job raised one.
            RuntimeError: if it cannot be started, with what it wrote.
        """
        if self.connection.poll():
            try:
                is_error, value = self.connection.recv()
            except (EOFError, ConnectionResetError):
                return self._has_died()
            if not self.is_ready:
                self.is_ready = True
                return None
            if is_error:
                raise value
            return Answer(value, self._said())
        return self._is_late() if time.monotonic() >= self.due else None

    def end(self) -> None:
        """Kill the process."""
        self.is_gone = True
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_LIMIT_S)
        self.connection.close()
        self._log.close()

    def _has_died(self) -> Failure:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_LIMIT_S)
        code, said = self._process.returncode or 0, self._said()
        self.end()
        if not self.is_ready:
            raise RuntimeError(f"a decoding process ended with code {code} at its start: {said}")
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
        message = f"the decoder's process {how}"
        return Failure("decoder_crashed", f"{message}: {said}" if said else message)

    def _is_late(self) -> Failure:
        said = self._said()
        self.end()
        if not self.is_ready:
            limit = f"{START_LIMIT_S:g} s"
            raise RuntimeError(f"a decoding process did not start within {limit}: {said}")
        message = f"not decoded within the deadline of {self._deadline_s:g} s"
        return Failure("decoder_hung", message)

    def _said(self) -> str:
        """The last line that the process wrote about this job, or about its own start."""
        text = os.pread(self._log.fileno(), 2**16, 0).decode("utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return without_prefix(lines[-1])[:300] if lines else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- in the process


def serve() -> None:
    """Do jobs until the other end is closed; called in the child."""
    handle, parent, log = (int(word) for word in sys.argv[1:4])
    _bind_to(parent)
    connection = Connection(handle)
    job: Job = connection.recv()  # imports what it needs
    connection.send((False, None))
    while True:
        try:
            argument = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        os.ftruncate(log, 0)
        os.lseek(log, 0, os.SEEK_SET)
        try:
            result = (False, job(argument))
        except VideoError as error:
            result = (True, error)
        connection.send(result)


def _bind_to(parent: int) -> None:
    """Die with the parent, leave no core, and take no more memory than allowed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    die_with(parent)
    if sys.platform != "linux":
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))
    with suppress(OSError):  # where /proc is not ours to write, the kernel chooses by itself
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")

"""Being asked to stop: by ctrl-C, SIGTERM, SIGUSR1 or a file, and what a loop makes of it.

    signal ─┐         ┌─► `abandoning`: what is waited for is given up at once
    file ───┴─ asked ─┼─► `check`: the loop ends between two steps
                 │    └─► `giving_way`: 1/4 of `run.stop_s` later, if it is not over by then
                 └─ 3/4 of `run.stop_s` later ─► `InterruptError`; all of it ─► the process ends

Both raise `StopError`, on which the run's checkpoint is written (`driver/checkpoints.py`). Where
none of that is possible, while workers start for example, a signal raises `InterruptError`: nothing
more is saved. A second ctrl-C is always one.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self, TypeAlias

from actrep_ray.cluster.mailbox import Mailbox

Handler: TypeAlias = Callable[[int, FrameType | None], None] | signal.Handlers

_WORDS = {signal.SIGINT: "ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}
_POLL_S = 0.5  # of the file
_HURRY = 0.25  # of the time to stop; an update that ends sooner is not given up
_SOFT = 0.75  # of the time to stop; the rest is for workers to end
_log = logging.getLogger(__name__)


class InterruptError(KeyboardInterrupt):
    """A command is ended before its end.

    Args:
        message: For the person who asked.
        code: Exit code, by convention 128 and the number of the signal.

    Attributes:
        saved_step: Step of the run's newest checkpoint, if there is a run and it has one.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
        self.saved_step: int | None = None


class StopError(InterruptError):
    """A run was asked to stop, and what it has done is to be saved."""


class AbandonedError(RuntimeError):
    """Work was left half done because somebody wished so; nothing was changed."""


# Of each notice what this process found first: workers load for minutes before a run listens, and
# again when one of them was lost.
_SEEN: dict[Path, tuple[int, int] | None] = {}


class StopRequest:
    """Listens for whoever asks a run to stop; a context manager around its loop.

    Args:
        notice: File that announces that the machine will be taken away, by appearing or changing;
            "" if there is none.
        within_s: Seconds from the request to the end of the process.
        mended: Errors after which a run starts again; not of one that was asked to stop.
        hurry: Called once, by a thread, when a quarter of the time has passed: what is still going
            on may raise `AbandonedError`.
    """

    def __init__(
        self,
        notice: str,
        within_s: float,
        mended: tuple[type[Exception], ...] = (),
        hurry: Callable[[], None] = lambda: None,
    ) -> None:
        self._hurry = hurry
        self.within_s = within_s
        self._mended = mended
        self._notice = Path(notice) if notice else None
        self._reason = ""
        self._code = 0
        self._too_late = ""
        self._listening: tuple[Mailbox, ...] = ()
        self._abandons: int | None = None  # the thread that gives up
        self._over = threading.Event()
        self._handlers = ExitStack()

    @property
    def is_asked(self) -> bool:
        """Whether somebody has asked."""
        return bool(self._reason)

    def __enter__(self) -> Self:
        for number in _WORDS:
            self._handlers.enter_context(handled(number, self._on_signal))
        if self._notice is not None:
            remember_notice(str(self._notice))
            before = _SEEN[self._notice]
            thread = threading.Thread(
                target=self._watch, args=(before,), name="notice", daemon=True
            )
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._handlers.close()
        if self.is_asked and isinstance(error, self._mended):
            words = f"stopped by {self._reason}, and could not save: {error}"
            raise InterruptError(words, self._code) from error

    def check(self) -> None:
        """End the loop here if somebody has asked.

        Raises:
            StopError: saying who.
        """
        if self.is_asked:
            raise StopError(f"stopped by {self._reason}", self._code)

    @contextmanager
    def abandoning(self, *mailboxes: Mailbox) -> Iterator[None]:
        """Do what may be given up: this thread's wait in these mailboxes ends when somebody asks.

        Another thread that waits in one of them goes on: what it raised would be met later, where
        nothing may be given up.

        Raises:
            StopError: from the wait, or at once.
        """
        self._listening, self._abandons = mailboxes, threading.get_ident()
        try:
            self.check()
            yield
        finally:
            self._listening = ()

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """Do what may be given up by whoever does it, when `hurry` says so.

        Raises:
            StopError: in place of `AbandonedError`.
        """
        try:
            yield
        except AbandonedError:
            self.check()
            raise

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        word = _WORDS[signal.Signals(number)]
        if self.is_asked and number == signal.SIGINT:
            raise InterruptError(f"stopped {self._too_late or 'without saving'}", self._code)
        self._ask(word, 128 + number)

    def _ask(self, reason: str, code: int) -> None:
        if self.is_asked:  # a scheduler that gave notice ends the job later: that is no second wish
            return
        self._reason, self._code = reason, code
        _log.warning(
            "asked to stop by %s: the last finished step is saved, in at most %g s (run.stop_s); "
            "ctrl-C leaves at once",
            reason,
            self.within_s,
        )
        threading.Thread(target=self._end_in_time, name="stop", daemon=True).start()
        for mailbox in self._listening:
            mailbox.post(self._leave)

    def _leave(self) -> None:
        is_over = not self._listening
        if not is_over and threading.get_ident() == self._abandons:
            self.check()

    def _end_in_time(self) -> None:
        """Let the main thread go on to the end when saving takes too long; then end the process."""
        soft_s, hurry_s = _SOFT * self.within_s, _HURRY * self.within_s
        if self._over.wait(hurry_s):
            return
        self._hurry()
        if self._over.wait(soft_s - hurry_s):
            return
        self._too_late = f"by {self._reason}; saving took longer than {soft_s:g} s (see run.stop_s)"
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        if self._over.wait(self.within_s - soft_s):
            return
        _log.error("still there %g s after %s: ended", self.within_s, self._reason)
        os._exit(self._code)

    def _watch(self, before: tuple[int, int] | None) -> None:
        assert self._notice is not None
        while not self._over.wait(_POLL_S):
            found = _stamp(self._notice)
            if found not in (None, before):
                self._ask(f"the notice {self._notice}", 128 + signal.SIGTERM)
                return
            before = found


def remember_notice(notice: str) -> None:
    """Whatever becomes of a file from now on is a notice, though nobody listens yet."""
    if notice:
        _SEEN.setdefault(Path(notice), _stamp(Path(notice)))


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler of signals where there is nothing to save."""
    word = _WORDS[signal.Signals(number)]
    raise InterruptError(f"stopped by {word} while no step was under way", 128 + number)


@contextmanager
def handled(number: signal.Signals, handler: Handler) -> Iterator[None]:
    """Have a signal handled, if this is the thread that may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino

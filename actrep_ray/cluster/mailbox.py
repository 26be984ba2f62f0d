"""Where background work leaves what is to be done next for the one thread that owns the state.

    Ray's callbacks ─┐
    threads ─────────┼─ post(call) ─► queue ─ wait(...) runs the calls, one after the other
    deadlines ───────┘

A driver and its pools may share one mailbox, so nothing of theirs needs a lock: whoever waits for
one thing runs all that arrives meanwhile. A wait has a deadline, and says what it waited for.
"""

import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

_LONGEST_SLEEP_S = 3600.0  # a queue cannot wait for an infinite time


class Mailbox:
    """Calls that wait for their turn."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._later: list[tuple[float, int, Callable[[], None]]] = []  # a heap
        self._numbers = itertools.count()
        self._owner: int | None = None  # the thread that waits

    def post(self, call: Callable[[], None]) -> None:
        """Leave a call, from any thread; it runs in the thread that waits."""
        self._calls.put(call)

    def post_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Leave a call that has its turn in so many seconds, from the thread that waits.

        What has arrived by then comes first: a deadline is not missed because nobody looked.
        """
        due = time.monotonic() + delay_s
        heapq.heappush(self._later, (due, next(self._numbers), call))

    def post_when_done(self, future: "Future[T]", then: Callable[["Future[T]"], None]) -> None:
        """Leave `then(future)` once the future is done."""
        future.add_done_callback(lambda done: self.post(partial(then, done)))

    def wait(
        self, is_done: Callable[[], Any], timeout_s: float, explain: Callable[[], str]
    ) -> None:
        """Run calls as they come until `is_done()`; a call may itself wait.

        Args:
            is_done: Looked at before the first and after every call.
            timeout_s: Longest wait, in seconds; what has arrived by then is still looked at.
            explain: What was waited for, for the error.

        Raises:
            TimeoutError: if it did not come to that in time.
            Exception: whatever a call raised.
        """
        outer, me = self._owner, threading.get_ident()
        assert outer in (None, me), "two threads wait in one mailbox"
        self._owner = me
        deadline, num_left = time.monotonic() + timeout_s, -1
        try:
            while not is_done():
                if num_left < 0 and time.monotonic() >= deadline:
                    num_left = self._calls.qsize()
                if num_left == 0:
                    raise TimeoutError(explain())
                num_left -= num_left > 0
                call = self._next(deadline)
                if call is not None:
                    call()
        finally:
            self._owner = outer

    def _next(self, deadline: float) -> Callable[[], None] | None:
        """The next call; None if there is none until the deadline, or until another is due."""
        try:
            return self._calls.get_nowait()
        except queue.Empty:
            pass
        now = time.monotonic()
        due = self._later[0][0] if self._later else deadline
        if self._later and due <= now:
            return heapq.heappop(self._later)[2]
        sleep_s = min(deadline - now, due - now, _LONGEST_SLEEP_S)
        try:
            return self._calls.get(timeout=max(sleep_s, 0.0))
        except queue.Empty:
            return None

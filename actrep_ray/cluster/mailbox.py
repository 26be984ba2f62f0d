"""Where background work leaves what is to be done next for the one thread that owns the state.

    Ray's callbacks ─┐
    threads ─────────┴─ post(call) ─► queue ─ wait(...) runs the calls, one after the other

A driver and its pools share one mailbox, so nothing of theirs needs a lock: whoever waits for one
thing runs all that arrives meanwhile. A wait has a deadline, and says what it waited for.
"""

import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Mailbox:
    """Calls that wait for their turn."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def post(self, call: Callable[[], None]) -> None:
        """Leave a call, from any thread; it runs in the thread that waits."""
        self._calls.put(call)

    def post_when_done(self, future: "Future[T]", then: Callable[["Future[T]"], None]) -> None:
        """Leave `then(future)` once the future is done."""
        future.add_done_callback(lambda done: self.post(partial(then, done)))

    def wait(
        self, is_done: Callable[[], Any], timeout_s: float, explain: Callable[[], str]
    ) -> None:
        """Run calls as they come until `is_done()`.

        Args:
            is_done: Looked at before the first and after every call.
            timeout_s: Longest wait, in seconds.
            explain: What was waited for, for the error.

        Raises:
            TimeoutError: if it did not come to that in time.
            Exception: whatever a call raised.
        """
        deadline = time.monotonic() + timeout_s
        while not is_done():
            try:
                call = self._calls.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                raise TimeoutError(explain()) from None
            call()

"""The calls of actors that are under way, and how long those took that have returned.

An actor does one call after the other, so the one at the head is what it is at: since it was sent,
or since the one before it returned.
"""

import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

_NUM_KEPT = 20  # times that a median is of
_ASIDE = ("status",)  # answered by a second thread while another call goes on


class Followed(Protocol):
    """A call of an actor; `supervision.Call` is one."""

    @property
    def role(self) -> str: ...

    @property
    def worker(self) -> int: ...

    @property
    def method(self) -> str: ...

    @property
    def ref(self) -> Any: ...


@dataclass(frozen=True)
class Head:
    """What a worker is at.

    Attributes:
        actor: Its id.
        call: The call.
        seconds: For how long.
    """

    actor: str
    call: Followed
    seconds: float


class CallLog:
    """Calls by actor; safe to use from several threads. Notes nothing until it `is_on`."""

    def __init__(self) -> None:
        self.is_on = False
        self._lock = threading.Lock()
        self._under_way: dict[str, dict[int, tuple[Followed, float]]] = {}
        self._freed: dict[str, float] = {}  # when an actor's last call returned
        self._seconds: dict[tuple[str, str], deque[float]] = defaultdict(
            lambda: deque(maxlen=_NUM_KEPT)
        )
        self._num = 0

    def note(self, call: Followed, future: "Future[Any]") -> None:
        """Enter a call that was sent; its future says when it has returned."""
        if not self.is_on or call.method in _ASIDE:
            return
        actor: str = call.ref.task_id().actor_id().hex()
        with self._lock:
            self._num += 1
            number = self._num
            self._under_way.setdefault(actor, {})[number] = (call, time.monotonic())
        future.add_done_callback(partial(self._on_done, actor, number))

    def heads(self) -> list[Head]:
        """What every worker is at that is at anything."""
        now = time.monotonic()
        with self._lock:
            firsts = {actor: next(iter(calls.values())) for actor, calls in self._under_way.items()}
            freed = dict(self._freed)
        return [
            Head(actor, call, now - max(sent, freed.get(actor, 0.0)))
            for actor, (call, sent) in firsts.items()
        ]

    def seconds_of(self, role: str, method: str) -> Sequence[float]:
        """How long the last calls of a method took, seconds."""
        with self._lock:
            return tuple(self._seconds.get((role, method), ()))

    def clear(self) -> None:
        """Forget everything; what returns later is no news."""
        with self._lock:
            self._under_way.clear()
            self._freed.clear()
            self._seconds.clear()

    def _on_done(self, actor: str, number: int, future: "Future[Any]") -> None:
        now = time.monotonic()
        has_worked = future.exception() is None
        with self._lock:
            calls = self._under_way.get(actor, {})
            if number not in calls:
                return
            call, sent = calls.pop(number)
            if has_worked:
                began = max(sent, self._freed.get(actor, 0.0))
                self._seconds[call.role, call.method].append(now - began)
            self._freed[actor] = now
            if not calls:
                del self._under_way[actor]


CALLS = CallLog()
"""Those of this process, as `supervision.follow` enters them."""


def limit_of(seconds: Sequence[float], *, factor: float, floor_s: float, ceiling_s: float) -> float:
    """How long a turn may take: `factor` times the median of those before, within bounds.

    >>> limit_of([2.0, 3.0, 40.0], factor=10, floor_s=5, ceiling_s=600)
    30.0
    >>> limit_of([0.1] * 3, factor=10, floor_s=5, ceiling_s=600)
    5.0

    Of fewer than three turns nothing follows: the ceiling.
    """
    if len(seconds) < 3:
        return ceiling_s
    return min(max(factor * statistics.median(seconds), floor_s), ceiling_s)


TURNS: Mapping[str, tuple[str, ...]] = {
    "rollout": ("advance",),
    "learner": ("update", "sft_step"),
}
"""What workers do again and again, by role: its time is measured, and others' follow no rule."""

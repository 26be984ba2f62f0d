"""Looks after the calls that are under way: says what is waited for, and ends who does not go on.

    call at the head of a worker ─► its process shows no sign for `run.silence_s` ───┐
                                └─► it takes longer than such turns do (`limit_of`) ─┴─► stacks,
                                                                                         SIGKILL
A sign is a beat of the worker's own thread, or CPU time: a process that is stopped has neither, one
that computes without letting Python on has the second. One that has not beaten yet is starting, and
may wait for a disk as long as its call may take. What follows is a loss like any other: the pools
give the work to others and start the worker again.

Processes of other nodes are looked at, and ended, by a task on their node.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from actrep_ray.cluster import presence
from actrep_ray.cluster.calls import CALLS, TURNS, Head, limit_of
from actrep_ray.cluster.processes import Host, host_of, on_node
from actrep_ray.cluster.supervision import name_of
from actrep_ray.config import Recipe

_SAY_FIRST_S = 60.0  # and then after twice as long, each time
_DECODES = 3  # times video.decode_timeout_s: another process's, the engine's own, and some room
_OF_WAIT = 0.9  # of the pool's own wait, for calls whose time is not measured
_log = logging.getLogger(__name__)


@dataclass
class Silence:
    """The last signs of a worker, and since when they are the same."""

    signs: presence.Signs
    since: float

    def is_held_up(self, still_s: float, silence_s: float) -> bool:
        """Whether a process that gave no sign for `still_s` is stopped or frozen.

        One that is runnable waits for a CPU, which others have; one that never beat is starting.
        """
        is_quiet = bool(self.signs.beat) and self.signs.status != "running"
        return still_s >= silence_s and (is_quiet or self.signs.status == "stopped")


class Watchdog:
    """A thread that looks at all workers of this process's pools.

    Args:
        recipe: Settings: `run`, and the longest waits of each role.
        stacks: Folder that stacks are written into; made when there are any.
    """

    def __init__(self, recipe: Recipe, stacks: Path) -> None:
        self.cfg = recipe.run
        self.stacks = stacks
        self._waits = {
            "rollout": recipe.rollout.timeout_s,
            "learner": recipe.learner.timeout_s,
        }
        least_s = _DECODES * recipe.video.decode_timeout_s  # a clip that is refused takes its time
        self._floors = {"rollout": max(self.cfg.turn_floor_s, least_s)}
        self._every_s = min(self.cfg.silence_s / 6, 5.0)
        self._silences: dict[str, Silence] = {}
        self._say_at: dict[str, float] = {}
        self._ended: dict[str, float] = {}  # when, by actor
        self._is_over = threading.Event()

    def run(self) -> None:
        """Look again and again, until `end`."""
        while not self._is_over.wait(self._every_s):
            try:
                self._look_at_all()
            except Exception as error:  # noqa: BLE001 - nobody would miss a watchdog until too late
                _log.warning("the watchdog could not look at the workers: %s", error)

    def end(self) -> None:
        """Look no more."""
        self._is_over.set()

    def limit_s(self, head: Head) -> float:
        """How long what a worker is at may take; reward workers have a deadline of their own."""
        role, method = head.call.role, head.call.method
        longest = self._waits.get(role, float("inf")) * _OF_WAIT
        if method not in TURNS.get(role, ()):
            return longest
        return limit_of(
            CALLS.seconds_of(role, method),
            factor=self.cfg.turn_factor,
            floor_s=self._floors.get(role, self.cfg.turn_floor_s),
            ceiling_s=min(self.cfg.turn_ceiling_s, longest),
        )

    # ---------------------------------------------------------------- looking

    def _look_at_all(self) -> None:
        heads = CALLS.heads()
        living = {head.actor for head in heads}
        for known in (self._silences, self._say_at, self._ended):
            for actor in known.keys() - living:
                del known[actor]
        for head in heads:
            if head.actor in self._ended:
                self._end_again(head)
            elif head.seconds < self._every_s:
                self._silences.pop(head.actor, None)
            else:
                self._look_at(head, heads)

    def _look_at(self, head: Head, heads: list[Head]) -> None:
        limit_s = self.limit_s(head)
        host = host_of(head.actor)
        if host is None:  # Ray has not found room for it yet
            self._say(head, limit_s, "it has no process yet")
            return
        signs = on_node(host.node, partial(presence.look, host.pid))
        if signs is None or signs.status == "gone":  # Ray will tell of the loss
            return
        now = time.monotonic()
        last = self._silences.get(head.actor)
        if last is None or last.signs.beat != signs.beat or last.signs.cpu_s != signs.cpu_s:
            self._silences[head.actor] = last = Silence(signs, now)
        last.signs, still_s = signs, now - last.since
        if last.is_held_up(still_s, self.cfg.silence_s):
            words = f"shows no sign of life for {still_s:.0f} s (run.silence_s), it is"
            self._act(head, heads, host, f"{words} {signs.status}")
        elif head.seconds >= limit_s:
            words = f"is at it for {head.seconds:.0f} s, longer than the {limit_s:.0f} s"
            self._act(head, heads, host, f"{words} that are allowed (run.turn_factor)")
        else:
            self._say(head, limit_s, signs.status)

    def _say(self, head: Head, limit_s: float, state: str) -> None:
        """Tell what is waited for, less and less often."""
        say_at = self._say_at.setdefault(head.actor, _SAY_FIRST_S)
        if head.seconds < _SAY_FIRST_S:
            self._say_at[head.actor] = _SAY_FIRST_S
        elif head.seconds >= say_at:
            self._say_at[head.actor] = 2 * head.seconds
            path = self._write_stacks([head])
            _log.warning(
                "waiting for %s: `%s` for %.0f s (%s; allowed: %.0f s); stacks: %s",
                _name(head), head.call.method, head.seconds, state, limit_s, path,
            )  # fmt: skip

    # ---------------------------------------------------------------- acting

    def _act(self, head: Head, heads: list[Head], host: Host, why: str) -> None:
        """Write down what all workers of the role are at, then end this one."""
        concerned = [head, *(o for o in heads if o.call.role == head.call.role and o is not head)]
        path = self._write_stacks(concerned)
        _log.error(
            "%s %s in `%s`: ended (process %d); stacks: %s",
            _name(head), why, head.call.method, host.pid, path,
        )  # fmt: skip
        self._end(head, host)

    def _end(self, head: Head, host: Host) -> None:
        self._ended[head.actor] = time.monotonic()
        on_node(host.node, partial(presence.kill, host.pid))

    def _end_again(self, head: Head) -> None:
        """End a worker whose call goes on long after it was ended: its node may not have heard."""
        if time.monotonic() - self._ended[head.actor] < self.cfg.silence_s:
            return
        host = host_of(head.actor)
        if host is not None:
            _log.warning("%s was ended and is still there: ended again", _name(head))
            self._end(head, host)

    def _write_stacks(self, heads: list[Head]) -> Path | None:
        """One file with what some workers are at; None if it cannot be written."""
        parts = []
        for head in heads:
            host = host_of(head.actor)
            told = None
            if host is not None:
                told = on_node(host.node, partial(presence.stacks_of, host.pid))
            title = f"{_name(head)}: `{head.call.method}` for {head.seconds:.0f} s"
            parts.append(f"{title}\n{told or 'nothing can be seen of it'}\n")
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = self.stacks / f"{stamp}-{_name(heads[0]).replace(' ', '-')}.txt"
        try:
            self.stacks.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(parts))
        except OSError as error:
            _log.warning("%s: %s", path, error.strerror)
            return None
        return path


@contextmanager
def watched(recipe: Recipe, stacks: Path) -> Iterator[None]:
    """Have all calls looked after that are made inside; in a running cluster."""
    watchdog = Watchdog(recipe, stacks)
    CALLS.is_on = True
    threading.Thread(target=watchdog.run, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        watchdog.end()
        CALLS.is_on = False
        CALLS.clear()


def _name(head: Head) -> str:
    return name_of(head.call.role, head.call.worker)

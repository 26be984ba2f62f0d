"""Whose fault a failure is, and what it means that a worker was lost: said once for every pool.

    infrastructure   a process, a node or an object is gone; a worker hangs, or has no memory: its
                     work is given to another one, after a pause, as long as the budget lasts
    data             a clip cannot be read, or its prompt is too long: its row is quarantined
    defect           anything else: the run ends at once

    call of an actor ─► follow ─► mailbox ─► then(result)       what it returned
                                        ├──► on_loss(Loss)      the worker or its result is gone
                                        └──► on_error(error)    what the call itself raised

A loss is of a process, of a node with all of its processes, or of an object in the object store;
a worker that hangs is ended by its pool, which makes it one too, and so is one whose call raised
for want of memory or time. How many losses a pool bears in an hour is counted by a `Budget`, which
also says how long to wait before the next start; one too many is a `WorkerLostError`.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any, TypeVar

import ray

from actrep_ray.cluster.background import in_background
from actrep_ray.cluster.calls import CALLS
from actrep_ray.cluster.mailbox import Mailbox
from actrep_ray.cluster.worker_logs import add_last_lines
from actrep_ray.records import BAD_DATA
from data_prep.locks import BusyError

T = TypeVar("T")

CAUSE_S = 120.0
"""Longest wait for the cause of a loss; Ray gives a node up after about 15 s."""

HOUR_S = 3600.0
"""In which the losses of a pool are counted against its budget."""

_POLL_S = 2.0
_PAUSE_S = 0.5
_NAMES = {"learner": "learner rank", "rollout": "rollout worker", "reward": "reward worker"}
_PROCESS_LOSSES = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.WorkerCrashedError,
)
_OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")  # the second is torch's
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_CALM_S = 60.0  # a pool that lost nobody for so long starts the next worker at once


class Fault(Enum):
    """Whose fault a failure is, which decides what becomes of it."""

    INFRASTRUCTURE = "infrastructure"  # the work is done again, by another worker
    DATA = "data"  # the row is quarantined, another one takes its place
    DEFECT = "defect"  # the run ends


class LossKind(Enum):
    """Kinds of a loss."""

    PROCESS = "process"  # of a worker: it died, or was killed
    NODE = "node"  # with all of its workers, by no fault of theirs
    OBJECT = "object"  # of the object store, whose owner or node is gone
    HANG = "hang"  # a worker that did not answer in time, and was ended
    MEMORY = "memory"  # a worker that could not get the memory that it asked for, and was ended
    UNREACHABLE = "unreachable"  # a worker; Ray does not know yet whether its node is lost too


@dataclass(frozen=True)
class Loss:
    """A worker that was lost.

    Attributes:
        role: One of `placement.ROLES`.
        worker: Its number among those of its role.
        kind: What was lost.
        method: What it was called for.
        error: What the call raised.
    """

    role: str
    worker: int
    kind: LossKind
    method: str
    error: Exception

    @property
    def name(self) -> str:
        """The worker in words: "learner rank 1"."""
        return name_of(self.role, self.worker)

    @property
    def is_defect(self) -> bool:
        """Whether another worker in its place would be lost as well: it raised as it started."""
        return kind_of_loss(self.error) is not None and fault_of(self.error) is Fault.DEFECT

    @property
    def cause(self) -> str:
        """The last line of the error, where Ray says what happened, without its guesses at why."""
        lines = [line.strip() for line in str(self.error).splitlines() if line.strip()]
        last = lines[-1] if lines else type(self.error).__name__
        return last.partition(" Some common causes include")[0]

    def __str__(self) -> str:
        return f"{self.name} died in `{self.method}`: {self.cause}"


def name_of(role: str, worker: int) -> str:
    """A worker in words: "learner rank 1"."""
    return f"{_NAMES[role]} {worker}"


class WorkerLostError(RuntimeError):
    """A worker was lost that its pool cannot do without.

    Args:
        message: Which one, at what.
        loss: The same for programs.
    """

    def __init__(self, message: str, loss: Loss) -> None:
        super().__init__(message)
        self.loss = loss
        self.__cause__ = loss.error
        add_last_lines(self, loss.error)


class Budget:
    """How many losses or failures a pool bears, and how long it waits before it starts a worker.

    Args:
        setting: Key of the recipe that limits them, for messages.
        limit: Its value.
        spares_nodes: Whether a worker that is lost with its node does not count.
        window_s: Older ones are forgiven; by default none is.
        clock: Seconds that only rise.
    """

    def __init__(
        self,
        setting: str,
        limit: int,
        *,
        spares_nodes: bool = False,
        window_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.setting = setting
        self.limit = limit
        self.spares_nodes = spares_nodes
        self.window_s = window_s
        self.spent = Counter[str]()  # by reason, those that are forgiven among them
        self._clock = clock
        self._times: list[float] = []  # of those that are not

    @property
    def num_spent(self) -> int:
        """What was counted, whatever the reason and however long ago."""
        return self.spent.total()

    @property
    def num_recent(self) -> int:
        """What counts against the limit now."""
        oldest = self._clock() - self.window_s
        self._times = [at for at in self._times if at > oldest]
        return len(self._times)

    @property
    def pause_s(self) -> float:
        """How long to wait, after what was counted last, before a worker is started again."""
        num_in_a_row = min(len(self._times), 1)
        for before, after in zip(self._times[-2::-1], self._times[:0:-1], strict=True):
            if after - before >= _CALM_S:
                break
            num_in_a_row += 1
        return pause_after(num_in_a_row)

    def spares(self, loss: Loss) -> bool:
        """Whether a loss does not count."""
        return self.spares_nodes and loss.kind is LossKind.NODE

    def spend(self, reason: str) -> bool:
        """Count one more; whether the pool bears it."""
        self.spent[reason] += 1
        self._times.append(self._clock())
        return self.num_recent <= self.limit

    def describe(self) -> str:
        """What is used of it: "2 of 3 in an hour (rollout.max_restarts)"."""
        return f"{self.num_recent} of {self.limit} in an hour ({self.setting})"

    def describe_excess(self) -> str:
        """That it is used up: "these are 4 in an hour, more than rollout.max_restarts=3"."""
        return f"these are {self.num_recent} in an hour, more than {self.setting}={self.limit}"


def restart_budget(role: str, limit: int) -> Budget:
    """The budget of a role's losses, for `<role>.max_restarts`.

    A rank is lost with all workers of its run, whose node is no excuse: it counts either way.
    """
    setting = f"{role}.max_restarts"
    return Budget(setting, limit, spares_nodes=role != "learner", window_s=HOUR_S)


def pause_after(num_in_a_row: int) -> float:
    """Seconds before a pool that lost so many workers in a row starts the next one.

    None after the first, then 1 s, and twice as long each time, up to half a minute.
    """
    if num_in_a_row < 2:
        return 0.0
    doublings = min(num_in_a_row - 2, 10)
    return min(_FIRST_PAUSE_S * 2.0**doublings, _LONGEST_PAUSE_S)


@dataclass(frozen=True)
class Call:
    """A call of an actor that is under way.

    Attributes:
        role: One of `placement.ROLES`.
        worker: The actor's number among those of its role.
        method: What is called.
        ref: Of the result.
    """

    role: str
    worker: int
    method: str
    ref: Any


def fault_of(error: BaseException) -> Fault:
    """Whose fault an error is, as a call of an actor raised it or as the worker did.

    A worker that raises while it starts would do so again: that is a defect, but for memory that
    the one before it may not have given back yet.
    """
    if isinstance(error, WorkerLostError):
        return Fault.INFRASTRUCTURE
    if isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed:
        is_short = _type_in_last_line(str(error)) in _OUT_OF_MEMORY
        return Fault.INFRASTRUCTURE if is_short else Fault.DEFECT
    if kind_of_loss(error) is not None:
        return Fault.INFRASTRUCTURE
    return Fault.DATA if isinstance(_raised(error), tuple(BAD_DATA)) else Fault.DEFECT


def kind_of_loss(error: BaseException) -> LossKind | None:
    """What is lost if a call of an actor raises this; None if the worker can go on.

    A worker without memory, or one that waited in vain, may not be what it was: it is lost too.
    """
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return LossKind.UNREACHABLE
    if isinstance(error, ray.exceptions.ActorDiedError) and "node has died" in str(error):
        return LossKind.NODE
    if isinstance(error, _PROCESS_LOSSES):
        return LossKind.PROCESS
    if isinstance(error, ray.exceptions.ObjectLostError):
        return LossKind.OBJECT
    raised = _raised(error)
    if type(raised).__name__ in _OUT_OF_MEMORY:
        return LossKind.MEMORY
    return LossKind.HANG if isinstance(raised, TimeoutError | BusyError) else None


def as_raised(error: Exception) -> Exception:
    """An error of a call as the worker raised it, its traceback behind."""
    if isinstance(error, ray.exceptions.RayTaskError):
        cause: Exception = error.cause
        cause.__cause__ = error
        return cause
    return error


def follow(
    mailbox: Mailbox,
    call: Call,
    *,
    then: Callable[[Any], None],
    on_loss: Callable[[Loss], None],
    on_error: Callable[[Exception], None],
    is_wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Leave what becomes of a call in a mailbox.

    Args:
        mailbox: Where to.
        call: What to follow.
        then: Gets what the call returned.
        on_loss: Gets the loss, if the worker or the result was lost. See `find_cause`.
        on_error: Gets what the call itself raised.
        is_wanted: Asked when it is there; what nobody waits for any more is dropped.
    """

    def report(future: Any) -> None:
        if not is_wanted():
            return
        error = future.exception()
        if error is None:
            then(future.result())
        elif (kind := kind_of_loss(error)) is not None:
            on_loss(Loss(call.role, call.worker, kind, call.method, error))
        else:
            raised = as_raised(error)
            if fault_of(error) is Fault.DEFECT:
                add_last_lines(raised, error)
            on_error(raised)

    future = call.ref.future()
    CALLS.note(call, future)
    mailbox.post_when_done(future, report)


def find_cause(mailbox: Mailbox, actor: Any, loss: Loss, then: Callable[[Loss], None]) -> None:
    """Call `then` with a loss whose kind is known: at once, or when Ray has found out.

    An actor that may live on is ended: whoever asks gives its work to others.
    """
    if loss.kind is LossKind.UNREACHABLE:
        cause = in_background(partial(cause_of_loss, actor, loss.error), f"cause: {loss.name}")
        mailbox.post_when_done(cause, lambda done: then(_with_cause(loss, done.result())))
        return
    if loss.kind in (LossKind.OBJECT, LossKind.MEMORY, LossKind.HANG):
        end_worker(actor)
    then(loss)


def cause_of_loss(actor: Any, error: Exception) -> Exception:
    """Why calls of an actor fail, when Ray knows; the actor has ended then.

    Of an actor whose node was lost Ray says at first only that it cannot be reached; a little
    later, whether its process or its node has died. An actor that answers again is ended: whoever
    asks has given its work to others.

    Args:
        actor: Its handle.
        error: What a call raised.
    """
    deadline = time.monotonic() + CAUSE_S
    while isinstance(error, ray.exceptions.ActorUnavailableError):
        try:
            ray.get(actor.__ray_ready__.remote(), timeout=_POLL_S)
            break
        except ray.exceptions.GetTimeoutError:
            pass
        except _PROCESS_LOSSES as found:
            error = found
            time.sleep(_PAUSE_S)
        if time.monotonic() > deadline:
            break
    end_worker(actor)
    return error


def end_worker(actor: Any) -> None:
    """End an actor at once; one that has ended already is no harm."""
    ray.kill(actor)


def wait_for(
    mailbox: Mailbox,
    is_done: Callable[[], Any],
    what: Callable[[], str],
    *,
    timeout_s: float,
    setting: str,
) -> None:
    """Handle what arrives in a mailbox until `is_done()`.

    Args:
        mailbox: Of the pool that waits.
        is_done: Looked at after everything that arrives.
        what: What is waited for, and on whom, for the error.
        timeout_s: Longest wait.
        setting: Key of the recipe that says how long that is.

    Raises:
        TimeoutError: if it takes longer.
    """
    mailbox.wait(is_done, timeout_s, lambda: f"waited {timeout_s:g} s ({setting}) for {what()}")


def _with_cause(loss: Loss, error: Exception) -> Loss:
    kind = kind_of_loss(error)
    is_known = kind is not None and kind is not LossKind.UNREACHABLE
    return replace(loss, kind=kind if kind and is_known else LossKind.PROCESS, error=error)


def _raised(error: BaseException) -> BaseException:
    """What the worker raised, if Ray brought it."""
    return error.cause if isinstance(error, ray.exceptions.RayTaskError) else error


def _type_in_last_line(text: str) -> str:
    """The name of the exception that a traceback ends with, its module left out."""
    last = text.strip().rpartition("\n")[2].strip()
    match = re.match(r"[\w.]+", last)
    return match[0].rpartition(".")[2] if match else ""

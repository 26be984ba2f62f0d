"""What it means that a worker was lost, said once for every pool.

    call of an actor ─► follow ─► mailbox ─► then(result)       what it returned
                                        ├──► on_loss(Loss)      the worker or its result is gone
                                        └──► on_error(error)    what the call itself raised

A loss is of a process, of a node with all of its processes, or of an object in the object store;
a worker that hangs is ended by its pool, which makes it one too. How many losses a run bears is
counted by a `Budget`; one too many is a `WorkerLostError`.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any, TypeVar

import ray

from actrep_ray.cluster.background import in_background
from actrep_ray.cluster.mailbox import Mailbox

T = TypeVar("T")

CAUSE_S = 120.0
"""Longest wait for the cause of a loss; Ray gives a node up after about 15 s."""

_POLL_S = 2.0
_PAUSE_S = 0.5
_NAMES = {"learner": "learner rank", "rollout": "rollout worker", "reward": "reward worker"}
_PROCESS_LOSSES = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)


class LossKind(Enum):
    """Kinds of a loss."""

    PROCESS = "process"  # of a worker: it died, or was killed
    NODE = "node"  # with all of its workers, by no fault of theirs
    OBJECT = "object"  # of the object store, whose owner or node is gone
    HANG = "hang"  # a worker that did not answer in time, and was ended
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
        return f"{_NAMES[self.role]} {self.worker}"

    @property
    def cause(self) -> str:
        """The last line of the error, where Ray says what happened."""
        lines = [line.strip() for line in str(self.error).splitlines() if line.strip()]
        return lines[-1] if lines else type(self.error).__name__

    def __str__(self) -> str:
        return f"{self.name} died in `{self.method}`: {self.cause}"


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


class Budget:
    """How many losses and failures a run bears.

    Args:
        setting: Key of the recipe that limits them, for messages.
        limit: Its value.
        spares_nodes: Whether a worker that is lost with its node does not count.
    """

    def __init__(self, setting: str, limit: int, *, spares_nodes: bool = False) -> None:
        self.setting = setting
        self.limit = limit
        self.spares_nodes = spares_nodes
        self.spent = Counter[str]()  # by reason

    @property
    def num_spent(self) -> int:
        """What was counted, whatever the reason."""
        return self.spent.total()

    def spares(self, loss: Loss) -> bool:
        """Whether a loss does not count."""
        return self.spares_nodes and loss.kind is LossKind.NODE

    def spend(self, reason: str) -> bool:
        """Count one more; whether the run bears it."""
        self.spent[reason] += 1
        return self.num_spent <= self.limit


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


def kind_of_loss(error: BaseException) -> LossKind | None:
    """What was lost if a call of an actor raises this; None if the call itself raised it."""
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return LossKind.UNREACHABLE
    if isinstance(error, ray.exceptions.ActorDiedError) and "node has died" in str(error):
        return LossKind.NODE
    if isinstance(error, _PROCESS_LOSSES):
        return LossKind.PROCESS
    if isinstance(error, ray.exceptions.ObjectLostError):
        return LossKind.OBJECT
    return None


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
            on_error(as_raised(error))

    mailbox.post_when_done(call.ref.future(), report)


def find_cause(mailbox: Mailbox, actor: Any, loss: Loss, then: Callable[[Loss], None]) -> None:
    """Call `then` with a loss whose kind is known: at once, or when Ray has found out.

    An actor that may live on is ended: whoever asks gives its work to others.
    """
    if loss.kind is LossKind.UNREACHABLE:
        cause = in_background(partial(cause_of_loss, actor, loss.error), f"cause: {loss.name}")
        mailbox.post_when_done(cause, lambda done: then(_with_cause(loss, done.result())))
        return
    if loss.kind is LossKind.OBJECT:
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

"""Losses told apart, counted and delivered, without a cluster."""

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray import exceptions
from ray.core.generated.common_pb2 import ActorDiedErrorContext

from actrep_ray.cluster.mailbox import Mailbox
from actrep_ray.cluster.supervision import (
    Budget,
    Call,
    Loss,
    LossKind,
    WorkerLostError,
    find_cause,
    follow,
    kind_of_loss,
    wait_for,
)

NODE_LOST = exceptions.ActorDiedError(
    ActorDiedErrorContext(
        actor_id=b"1" * 16, error_message="The actor died because its node has died."
    )
)
ERRORS = [
    (exceptions.ActorDiedError(), LossKind.PROCESS),
    (NODE_LOST, LossKind.NODE),
    (exceptions.ActorUnavailableError("no reply", b"1" * 16), LossKind.UNREACHABLE),
    (exceptions.OutOfMemoryError("killed"), LossKind.PROCESS),
    (exceptions.ObjectLostError("1" * 56, None, ""), LossKind.OBJECT),
    (exceptions.OwnerDiedError("1" * 56, None, ""), LossKind.OBJECT),
    (exceptions.RayTaskError("score", "traceback", ValueError("no")), None),
    (ValueError("no"), None),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS, ids=lambda value: type(value).__name__)
def test_every_error_of_a_call_is_of_one_kind(error: Exception, kind: LossKind | None) -> None:
    assert kind_of_loss(error) is kind


@dataclass
class Ref:
    """A result on its way."""

    result: "Future[Any]" = field(default_factory=Future)

    def future(self) -> "Future[Any]":
        return self.result


class Report:
    """What became of a call."""

    def __init__(self, *, is_wanted: bool = True) -> None:
        self.mailbox = Mailbox()
        self.ref = Ref()
        self.got: list[Any] = []
        follow(
            self.mailbox,
            Call("rollout", 3, "advance", self.ref),
            then=self.got.append,
            on_loss=self.got.append,
            on_error=self.got.append,
            is_wanted=lambda: is_wanted,
        )

    def received(self) -> list[Any]:
        over: list[None] = []
        self.mailbox.post(lambda: over.append(None))
        self.mailbox.wait(lambda: over, 5.0, lambda: "a report")
        return self.got


def test_a_result_a_loss_and_an_error_arrive_as_what_they_are() -> None:
    result, loss, error = Report(), Report(), Report()
    result.ref.result.set_result([1])
    loss.ref.result.set_exception(NODE_LOST)
    cause = ValueError("clip 7 is too long")
    task_error = exceptions.RayTaskError("advance", "traceback", cause)
    error.ref.result.set_exception(task_error.as_instanceof_cause())
    assert result.received() == [[1]]
    [found] = loss.received()
    assert (found.role, found.worker, found.kind) == ("rollout", 3, LossKind.NODE)
    assert str(found).startswith("rollout worker 3 died in `advance`: The actor died because")
    assert error.received() == [cause]  # as the worker raised it


def test_what_nobody_waits_for_is_dropped() -> None:
    report = Report(is_wanted=False)
    report.ref.result.set_exception(NODE_LOST)
    assert report.received() == []


class Actor:
    """A handle of an actor that cannot be reached until Ray knows why."""

    def __init__(self, cause: Exception) -> None:
        self.__ray_ready__ = self
        self.cause = cause

    def remote(self) -> Exception:
        return self.cause


def test_the_cause_of_a_worker_out_of_reach_is_found_in_the_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[Any] = []

    def get(error: Exception, timeout: float) -> None:
        raise error

    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr("ray.kill", ended.append)
    mailbox, actor = Mailbox(), Actor(NODE_LOST)
    unreachable = exceptions.ActorUnavailableError("no reply", b"1" * 16)
    loss = Loss("reward", 1, LossKind.UNREACHABLE, "score", unreachable)
    found: list[Loss] = []
    find_cause(mailbox, actor, loss, found.append)
    assert found == []  # the driver goes on meanwhile
    mailbox.wait(lambda: found, 10.0, lambda: "the cause")
    assert found == [Loss("reward", 1, LossKind.NODE, "score", NODE_LOST)]
    assert ended == [actor]


def test_a_budget_counts_by_reason_and_spares_what_it_says() -> None:
    lost = Loss("rollout", 0, LossKind.NODE, "advance", NODE_LOST)
    spares = Budget("rollout.max_restarts", 2, spares_nodes=True)
    assert spares.spares(lost)
    assert not Budget("learner.max_restarts", 2).spares(lost)
    assert not spares.spares(Loss("rollout", 0, LossKind.PROCESS, "advance", NODE_LOST))
    assert [spares.spend(reason) for reason in ("process", "hang", "process")] == [
        True,
        True,
        False,
    ]
    assert spares.spent == {"process": 2, "hang": 1}
    assert not Budget("reward.max_failures", 0).spend("hang")


def test_the_error_of_a_pool_carries_the_loss() -> None:
    loss = Loss("learner", 1, LossKind.PROCESS, "update", exceptions.ActorDiedError())
    error = WorkerLostError(str(loss), loss)
    assert str(error).startswith("learner rank 1 died in `update`: ")
    assert error.loss is loss


# --- the mailbox


def test_what_has_arrived_comes_before_a_deadline_that_has_passed() -> None:
    mailbox, order = Mailbox(), []
    mailbox.post_later(0.0, lambda: order.append("deadline"))
    mailbox.post_later(0.05, lambda: order.append("later"))
    mailbox.post(lambda: order.append("result"))
    mailbox.wait(lambda: len(order) == 3, 5.0, lambda: "all three")
    assert order == ["result", "deadline", "later"]


def test_a_wait_ends_in_time_even_if_something_always_arrives() -> None:
    mailbox = Mailbox()

    def again() -> None:
        time.sleep(0.001)
        mailbox.post(again)

    again()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"waited 0.1 s \(reward.timeout_s\) for nothing"):
        wait_for(
            mailbox, lambda: False, lambda: "nothing", timeout_s=0.1, setting="reward.timeout_s"
        )
    assert time.monotonic() - began < 5.0


def test_a_call_may_wait_itself_but_no_second_thread() -> None:
    mailbox, order = Mailbox(), []

    def inner() -> None:
        mailbox.wait(lambda: "second" in order, 5.0, lambda: "the second")
        order.append("first")

    mailbox.post(inner)
    mailbox.post(lambda: order.append("second"))
    mailbox.wait(lambda: "first" in order, 5.0, lambda: "the first")
    assert order == ["second", "first"]

    errors: list[BaseException] = []

    def intrude() -> None:
        try:
            mailbox.wait(lambda: False, 0.0, lambda: "")
        except BaseException as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    def start() -> None:
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()

    mailbox.post(start)
    mailbox.wait(lambda: errors, 5.0, lambda: "the other thread")
    assert isinstance(errors[0], AssertionError)

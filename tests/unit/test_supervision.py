"""Losses told apart, counted and delivered, without a cluster."""

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray import exceptions
from ray.core.generated.common_pb2 import ActorDiedErrorContext

from actrep_ray.cluster.mailbox import Mailbox
from actrep_ray.cluster.supervision import (
    Budget,
    Call,
    Fault,
    Loss,
    LossKind,
    WorkerLostError,
    fault_of,
    find_cause,
    follow,
    kind_of_loss,
    pause_after,
    wait_for,
)
from actrep_ray.cluster.worker_logs import last_lines
from actrep_ray.config import ConfigError
from actrep_ray.records import PromptTooLongError
from data_prep.locks import BusyError
from data_prep.video import VideoError

NODE_LOST = exceptions.ActorDiedError(
    ActorDiedErrorContext(
        actor_id=b"1" * 16, error_message="The actor died because its node has died."
    )
)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def task_error(cause: Exception, text: str = "traceback") -> Any:
    return exceptions.RayTaskError("advance", text, cause)


def raised_by_worker(cause: Exception) -> Exception:
    """An error as Ray brings it from a call."""
    error: Exception = task_error(cause).as_instanceof_cause()
    return error


def raised_at_start(line: str) -> Any:
    """An error of a worker's start, of which Ray keeps the text alone."""
    return exceptions.ActorDiedError(task_error(RuntimeError(), f"Traceback\n  a line\n{line}"))


ERRORS = [
    (exceptions.ActorDiedError(), LossKind.PROCESS),
    (exceptions.WorkerCrashedError(), LossKind.PROCESS),
    (raised_by_worker(OutOfMemoryError("CUDA out of memory")), LossKind.MEMORY),
    (raised_by_worker(MemoryError()), LossKind.MEMORY),
    (raised_by_worker(TimeoutError("waited 5 s for rank 1")), LossKind.HANG),
    (raised_by_worker(BusyError("waited 480 s")), LossKind.HANG),
    (raised_by_worker(VideoError("a.mp4: no such video")), None),
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


INFRASTRUCTURE, DATA, DEFECT = Fault.INFRASTRUCTURE, Fault.DATA, Fault.DEFECT
FAULTS = [
    *[(error, INFRASTRUCTURE) for error, kind in ERRORS if kind is not None],
    (
        WorkerLostError("gone", Loss("reward", 0, LossKind.HANG, "score", TimeoutError())),
        INFRASTRUCTURE,
    ),
    (raised_at_start("torch.OutOfMemoryError: CUDA out of memory."), INFRASTRUCTURE),
    (raised_at_start("MemoryError"), INFRASTRUCTURE),
    (raised_at_start("actrep_ray.config.section.ConfigError: m: no model"), DEFECT),
    (raised_at_start("ValueError: OutOfMemoryError: is only what it says"), DEFECT),
    (VideoError("a.mp4: no such video"), DATA),
    (raised_by_worker(VideoError("a.mp4: cut short")), DATA),
    (raised_by_worker(PromptTooLongError("clip 'a': 900 prompt tokens")), DATA),
    (raised_by_worker(ConfigError("rollout.engine")), DEFECT),
    (raised_by_worker(ZeroDivisionError()), DEFECT),
    (KeyError("a"), DEFECT),
    (exceptions.RayTaskError("score", "traceback", ValueError("no")), DEFECT),
]


@pytest.mark.parametrize(("error", "fault"), FAULTS, ids=lambda value: type(value).__name__)
def test_every_failure_is_somebodys_fault(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault


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


def test_a_budget_forgives_what_is_an_hour_old() -> None:
    now = 0.0
    budget = Budget("rollout.max_restarts", 2, window_s=3600.0, clock=lambda: now)
    borne = []
    for now in (0.0, 1800.0, 3599.0, 3600.0, 5400.0, 7300.0):  # noqa: B007 - the clock reads it
        borne.append(budget.spend("process"))
    # In the hour before: 1, 2, 3, 3 (the first is forgiven), 3 (the second), 2.
    assert borne == [True, True, False, False, False, True]
    assert (budget.num_spent, budget.num_recent) == (6, 2)
    assert budget.describe() == "2 of 2 in an hour (rollout.max_restarts)"


def test_pauses_double_up_to_a_limit_and_begin_anew_after_a_calm() -> None:
    table = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 6: 16, 7: 30, 8: 30, 5000: 30}
    assert {number: pause_after(number) for number in table} == table
    now = 0.0
    budget = Budget("rollout.max_restarts", 9, window_s=3600.0, clock=lambda: now)
    assert budget.pause_s == 0
    pauses = []
    for now in (10.0, 20.0, 79.0, 80.0, 140.0, 150.0):  # noqa: B007 - the clock reads it
        budget.spend("process")
        pauses.append(budget.pause_s)
    assert pauses == [0, 1, 2, 4, 0, 1]  # 60 s without a loss before the fifth


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


# --- what a worker wrote last


def test_the_last_lines_of_a_process_are_found_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "worker-ab-01000000-77.out").write_text(":job_id:01000000\n:actor_name:Worker\n")
    lines = [f"line {number}" for number in range(40_000)]
    (tmp_path / "worker-ab-01000000-77.err").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "worker-ab-01000000-777.err").write_text("of another process\n")
    [(path, found)] = last_lines(tmp_path, 77)
    assert path.name == "worker-ab-01000000-77.err"
    assert found == lines[-20:]
    assert list(last_lines(tmp_path, 7)) == []

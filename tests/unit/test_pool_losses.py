"""What pools make of lost workers, with handles whose calls end as a test says; without Ray."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from ray import exceptions
from ray.core.generated.common_pb2 import ActorDiedErrorContext

from actrep_ray.cluster.supervision import LossKind, WorkerLostError
from actrep_ray.config import Recipe, load_recipe
from actrep_ray.learner.pool import LearnerPool, LearnerWorkerError
from actrep_ray.records import Prompt, RolloutGroup
from actrep_ray.rollout.delivery import Delivery
from actrep_ray.rollout.dispatch import Backlog, Member, PendingPrompt, Weights
from actrep_ray.rollout.engine import SamplingSettings, make_rollout
from actrep_ray.rollout.pool import RolloutPool, RolloutWorkerError, WeightsLostError
from actrep_ray.rollout.worker import Loaded
from actrep_ray.scoring.pool import RewardPool, RewardWorkerError
from actrep_ray.scoring.worker import GroupScores
from data_prep.video import FramePlan
from rewards.reference import Reference

KILLED = exceptions.ActorDiedError()
NODE_LOST = exceptions.ActorDiedError(
    ActorDiedErrorContext(actor_id=b"1" * 16, error_message="it died because its node has died.")
)
OBJECT_LOST = exceptions.ObjectLostError("1" * 56, None, "")
PLAN = FramePlan("a.mp4", 1, (0, 1), 4.0, 32, 32)


class Ref:
    """A result on its way."""

    def __init__(self) -> None:
        self.result: Future[Any] = Future()

    def future(self) -> "Future[Any]":
        return self.result


class Method:
    """A method of a handle; `remote` notes the call."""

    def __init__(self, handle: "Handle", name: str) -> None:
        self.handle = handle
        self.name = name

    def remote(self, *arguments: Any) -> Ref:
        ref = Ref()
        self.handle.calls.setdefault(self.name, []).append(ref.result)
        self.handle.arguments.setdefault(self.name, []).append(arguments)
        if self.name == "ready":
            ref.result.set_result(0)
        return ref


class Handle:
    """A worker whose calls end when and as a test says."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Future[Any]]] = {}
        self.arguments: dict[str, list[tuple[Any, ...]]] = {}

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)


def recipe(*settings: str) -> Recipe:
    return load_recipe(None, ["device=cpu", "stage=grpo", *settings])


def make_group(name: str) -> RolloutGroup:
    prompt = Prompt(name, "clip", "How many?", PLAN)
    answer = make_rollout(
        prompt, 0, token_ids=[1], log_probs=[0.0], text="2", is_stopped=True, policy_version=0
    )
    return RolloutGroup(prompt, (answer,), 1)


# --- rewards


class Rewards:
    """A pool of one reward worker, and what it made of four groups: each is a call of its own."""

    def __init__(self, max_failures: int) -> None:
        self.handles: list[Handle] = []
        settings = ["reward.num_workers=1", f"reward.max_failures={max_failures}"]
        pool = RewardPool(recipe(*settings), self.start)
        labels = {"clip": Reference(2, None, 3.0, "squat")}
        groups = [make_group(f"p{i}") for i in range(4)]
        waiting = ThreadPoolExecutor(1)
        self.scored = waiting.submit(pool.score, groups, labels)
        waiting.shutdown(wait=False)  # it ends when the groups are scored
        self.wait(lambda: len(self.calls()) == 4)

    def start(self) -> Handle:
        self.handles.append(Handle())
        return self.handles[-1]

    def calls(self) -> "list[Future[Any]]":
        """Those of the worker that was started last."""
        return self.handles[-1].calls.get("score", [])

    def wait(self, is_done: Callable[[], Any]) -> None:
        """Until the thread that scores has come so far."""
        deadline = time.monotonic() + 10.0
        while not is_done() and not self.scored.done():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        if self.scored.done():
            self.scored.result()

    def groups(self) -> list[RolloutGroup]:
        return self.scored.result(timeout=10.0)


def scores(value: float) -> list[GroupScores]:
    rewards = np.array([value], np.float32)
    return [GroupScores(rewards, rewards, {"obo": rewards}, (2,), ({"answer": 2},))]


def test_a_reward_worker_that_goes_with_its_node_is_nobodys_fault() -> None:
    rewards = Rewards(max_failures=0)
    first, *others = rewards.calls()
    for call in others:
        call.set_exception(NODE_LOST)
    first.set_result(scores(1.0))  # it was scored, and the news of that came last
    rewards.wait(lambda: len(rewards.calls()) == 3)
    assert len(rewards.handles) == 2
    for i, call in enumerate(rewards.calls()):
        call.set_result(scores(2.0 + i))
    assert [group.rewards.tolist() for group in rewards.groups()] == [[1.0], [2.0], [3.0], [4.0]]


def test_the_call_that_ended_a_reward_worker_is_found_one_by_one() -> None:
    rewards = Rewards(max_failures=1)
    for call in rewards.calls():
        call.set_exception(KILLED)
    rewards.wait(lambda: len(rewards.handles) == 2 and rewards.calls())
    [call] = rewards.calls()  # the new worker gets a call at a time
    call.set_result(scores(1.0))
    rewards.wait(lambda: len(rewards.calls()) == 2)
    rewards.calls()[1].set_exception(KILLED)
    rewards.wait(lambda: len(rewards.handles) == 3 and rewards.calls())
    [call] = rewards.calls()
    call.set_result(scores(3.0))
    rewards.wait(lambda: len(rewards.calls()) == 2)
    rewards.calls()[1].set_result(scores(4.0))
    reasons = [group.failure for group in rewards.groups()]
    assert reasons == ["", "reward_worker_died", "", ""]


def test_a_reward_worker_that_dies_once_too_often_says_which_loss_it_was() -> None:
    rewards = Rewards(max_failures=0)
    for call in rewards.calls():
        call.set_exception(KILLED)
    with pytest.raises(
        RewardWorkerError, match="died while it scored the rollouts of p0"
    ) as caught:
        rewards.groups()
    assert caught.value.loss.kind is LossKind.PROCESS


# --- learners


def call_two_ranks(ends: "Callable[[list[Future[Any]]], None]") -> Any:
    handles = [Handle(), Handle()]
    pool = LearnerPool(recipe("learner.num_workers=2", "learner.timeout_s=20"), handles)

    def end() -> None:
        ends([handle.calls["sft_loss"][0] for handle in handles])

    pool.mailbox.post(end)
    return pool.sft_loss([])


def test_the_answer_of_rank_0_is_the_learners() -> None:
    def ends(calls: "list[Future[Any]]") -> None:
        calls[1].set_result({"loss": 9.0})
        calls[0].set_result({"loss": 1.0})

    assert call_two_ranks(ends) == {"loss": 1.0}


def test_a_lost_rank_is_named_and_not_the_one_that_could_not_reach_it() -> None:
    def ends(calls: "list[Future[Any]]") -> None:
        error = exceptions.RayTaskError("sft_loss", "traceback", RuntimeError("no peer"))
        calls[0].set_exception(error.as_instanceof_cause())
        calls[1].set_exception(NODE_LOST)

    with pytest.raises(LearnerWorkerError, match="learner rank 1 died in `sft_loss`") as caught:
        call_two_ranks(ends)
    assert caught.value.loss.kind is LossKind.NODE


def test_what_a_rank_raises_is_raised_as_it_was() -> None:
    def ends(calls: "list[Future[Any]]") -> None:
        error = exceptions.RayTaskError("sft_loss", "traceback", ValueError("row-1: too long"))
        calls[1].set_exception(error.as_instanceof_cause())
        calls[0].set_result({"loss": 1.0})

    with pytest.raises(ValueError, match=r"^row-1: too long$"):
        call_two_ranks(ends)


# --- rollouts

SETTINGS = SamplingSettings(max_tokens=4, group_size=2)


def make_rollouts(max_restarts: int) -> tuple[RolloutPool, list[Handle]]:
    handles: list[Handle] = []

    def spawn(index: int) -> Handle:
        handles.append(Handle())
        return handles[-1]

    pool = RolloutPool(recipe(f"rollout.max_restarts={max_restarts}"), spawn)
    pool.add_workers(1)
    pool.wait_ready()
    return pool, handles


@pytest.mark.parametrize(("error", "num_restarts"), [(NODE_LOST, 0), (KILLED, 1)])
def test_the_prompts_of_a_lost_rollout_worker_go_to_the_next_one(
    error: Exception, num_restarts: int
) -> None:
    pool, handles = make_rollouts(max_restarts=1)
    pool.submit([make_group("p").prompt], SETTINGS, lambda group: None)
    handles[0].calls["advance"][0].set_exception(error)
    pool.wait(lambda: len(handles) == 2 and "advance" in handles[1].calls, lambda: "the new one")
    [[([prompt], _)]] = handles[1].arguments["advance"][0]
    assert (prompt.prompt_id, prompt.attempt) == ("p", 1)
    assert pool.num_restarts == num_restarts


def test_a_rollout_worker_too_many_stops_the_run() -> None:
    pool, handles = make_rollouts(max_restarts=0)
    pool.submit([make_group("p").prompt], SETTINGS, lambda group: None)
    handles[0].calls["advance"][0].set_exception(KILLED)
    with pytest.raises(RolloutWorkerError, match=r"restarts used: 0 of 0") as caught:
        pool.wait(lambda: False, lambda: "nothing")
    assert (caught.value.loss.role, caught.value.loss.kind) == ("rollout", LossKind.PROCESS)


def test_weights_that_are_gone_are_the_loss_of_the_rank_that_gave_them() -> None:
    pool, handles = make_rollouts(max_restarts=1)
    pool.start_load([], 3, lambda: None)
    handles[0].calls["load_weights"][0].set_exception(OBJECT_LOST)
    with pytest.raises(WeightsLostError, match="the learner rank that gave them") as caught:
        pool.wait(lambda: False, lambda: "nothing")
    assert isinstance(caught.value, WorkerLostError)
    assert (caught.value.loss.role, caught.value.loss.kind) == ("learner", LossKind.OBJECT)


def test_a_push_goes_on_when_the_worker_that_loads_is_lost() -> None:
    pool, handles = make_rollouts(max_restarts=1)
    arrived: list[int] = []
    pool.start_load([], 3, lambda: arrived.append(3))
    handles[0].calls["load_weights"][0].set_exception(KILLED)
    pool.wait(lambda: len(handles) == 2 and "load_weights" in handles[1].calls, lambda: "a start")
    assert arrived == []  # nobody that lives has them
    handles[1].calls["load_weights"][0].set_result(Loaded(3, 0.0, 1.0))
    pool.wait(lambda: arrived, lambda: "the push")
    assert pool.policy_versions() == [3]


def test_a_new_worker_loads_what_was_pushed_as_the_version_that_it_starts_with() -> None:
    """Version 0 may be other weights than the folder's, or an adapter that a worker lacks."""
    pool, handles = make_rollouts(max_restarts=1)
    pool.start_load(["weights"], 0, lambda: None)
    handles[0].calls["load_weights"][0].set_result(Loaded(0, 0.0, 1.0))
    pool.submit([make_group("p").prompt], SETTINGS, lambda group: None)
    pool.wait(lambda: "advance" in handles[0].calls, lambda: "the first one")
    handles[0].calls["advance"][0].set_exception(KILLED)
    pool.wait(lambda: len(handles) == 2 and handles[1].calls.keys() > {"ready"}, lambda: "a start")
    assert handles[1].calls.keys() == {"ready", "load_weights"}  # no prompt before
    assert handles[1].arguments["load_weights"] == [(0, "weights")]
    handles[1].calls["load_weights"][0].set_result(Loaded(0, 0.0, 1.0))
    pool.wait(lambda: "advance" in handles[1].calls, lambda: "the new one")


# --- who gets which prompt, and whose turn it is to load


def member(index: int, *, is_ready: bool = True) -> Member:
    return Member(index, None, policy_version=0, is_ready=is_ready)


def pending(*names: str) -> list[PendingPrompt]:
    return [PendingPrompt(make_group(name).prompt, SETTINGS, lambda group: None) for name in names]


def test_prompts_go_to_the_worker_with_the_most_room() -> None:
    backlog, members = Backlog(max_in_flight=4), [member(0), member(1), member(2, is_ready=False)]
    backlog.add(pending("a", "b", "c", "d", "e"))
    given = backlog.assign(members)
    names = {m.index: [one.prompt.prompt_id for one in some] for m, some in given.items()}
    assert names == {0: ["a", "c"], 1: ["b", "d"]}  # 2 answers each, 4 at a time
    assert [one.prompt.prompt_id for one in backlog.waiting] == ["e"]
    backlog.give_back(members[0])
    again = [(one.prompt.prompt_id, one.prompt.attempt) for one in backlog.waiting]
    assert again == [("a", 1), ("c", 1), ("e", 0)]


def test_half_of_the_engines_load_at_a_time_and_lost_ones_are_not_waited_for() -> None:
    loading: list[int] = []
    delivery = Delivery(lambda one, weights: loading.append(one.index))
    members, arrived = [member(i) for i in range(4)], []
    weights = Weights([], 0)  # the version that they started with
    delivery.start(weights, members, 2, lambda: arrived.append(True))
    delivery.go_on(members)
    assert loading == [0, 1]
    members[0].held = weights
    delivery.go_on(members)
    assert loading == [0, 1, 2]
    living = [members[0], members[2]]  # 1 and 3 are lost
    delivery.go_on(living)
    members[2].held = weights
    assert not arrived
    delivery.go_on(living)
    assert (loading, arrived) == ([0, 1, 2], [True])

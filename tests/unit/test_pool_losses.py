"""What pools make of lost workers, with handles whose calls end as a test says; without Ray."""

import gc
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ray import exceptions
from ray.core.generated.common_pb2 import ActorDiedErrorContext

from actrep_ray.cluster.supervision import Budget, LossKind, WorkerLostError
from actrep_ray.config import Recipe, load_recipe
from actrep_ray.driver.pools import Pools
from actrep_ray.learner.pool import LearnerPool, LearnerWorkerError
from actrep_ray.records import Prompt, Refusal, RefusedError, RolloutGroup
from actrep_ray.rollout.delivery import Delivery
from actrep_ray.rollout.dispatch import Backlog, Member, PendingPrompt, Weights
from actrep_ray.rollout.engine import SamplingSettings, make_rollout
from actrep_ray.rollout.pool import RolloutPool, RolloutWorkerError, WeightsLostError
from actrep_ray.rollout.worker import Loaded, Turn
from actrep_ray.scoring.dispatch import Item, Request
from actrep_ray.scoring.pool import RewardPool, RewardWorkerError
from actrep_ray.scoring.worker import GroupScores, GroupTexts
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
        if self.name == "ready" and isinstance(self.handle.start, Exception):
            ref.result.set_exception(self.handle.start)
        elif self.name == "ready":
            ref.result.set_result(self.handle.start)
        return ref


class Handle:
    """A worker whose calls end when and as a test says."""

    def __init__(self, start: Exception | int = 0) -> None:
        self.start = start  # what becomes of it
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

    def __init__(self, *settings: str) -> None:
        self.handles: list[Handle] = []
        pool = RewardPool(recipe("reward.num_workers=1", *settings), self.start)
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

    def call(self, number: int = 0) -> "Future[Any]":
        """One of them, once it is there; the worker has no other then."""
        self.wait(lambda: len(self.calls()) == number + 1)
        return self.calls()[number]

    def kill(self, number: int = 0) -> None:
        """Have the worker end in a call, and wait for the next one to have started."""
        call, num_started = self.call(number), len(self.handles)
        call.set_exception(KILLED)
        self.wait(lambda: len(self.handles) == num_started + 1)

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


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actrep_ray.cluster.supervision.pause_after", lambda number: 0.0)


def test_a_reward_worker_that_goes_with_its_node_is_nobodys_fault() -> None:
    rewards = Rewards("reward.max_restarts=0")
    first, *others = rewards.calls()
    for call in others:
        call.set_exception(NODE_LOST)
    first.set_result(scores(1.0))  # it was scored, and the news of that came last
    rewards.wait(lambda: len(rewards.calls()) == 3)
    assert len(rewards.handles) == 2
    for i, call in enumerate(rewards.calls()):
        call.set_result(scores(2.0 + i))
    assert [group.rewards.tolist() for group in rewards.groups()] == [[1.0], [2.0], [3.0], [4.0]]


def test_by_default_no_group_is_lost_with_a_killed_reward_worker() -> None:
    rewards = Rewards()
    for call in rewards.calls():
        call.set_exception(KILLED)
    for number, value in enumerate((1.0, 2.0, 3.0, 4.0)):  # the new worker gets a call at a time
        rewards.call(number).set_result(scores(value))
    assert [group.rewards.tolist() for group in rewards.groups()] == [[1.0], [2.0], [3.0], [4.0]]
    assert [group.failure for group in rewards.groups()] == [""] * 4


@pytest.mark.usefixtures("without_pauses")
def test_the_group_that_ends_reward_workers_is_found_one_by_one() -> None:
    rewards = Rewards("reward.max_failures=1", "reward.max_restarts=3")
    for call in rewards.calls():
        call.set_exception(KILLED)
    rewards.call().set_result(scores(1.0))  # the first was not it
    rewards.kill(1)  # the second may be, or chance
    rewards.kill()
    rewards.kill()  # three times is no chance
    rewards.call().set_result(scores(3.0))
    rewards.call(1).set_result(scores(4.0))
    reasons = [group.failure for group in rewards.groups()]
    assert reasons == ["", "reward_worker_died", "", ""]
    assert len(rewards.handles) == 5


@pytest.mark.usefixtures("without_pauses")
def test_a_group_that_ends_reward_workers_stops_a_run_that_may_drop_none() -> None:
    rewards = Rewards()
    for call in rewards.calls():
        call.set_exception(KILLED)
    rewards.kill()
    rewards.call().set_exception(KILLED)
    with pytest.raises(RewardWorkerError, match="died while it scored the rollouts of p0: "):
        rewards.groups()
    assert len(rewards.handles) == 4  # the last one for what is left, had it gone on


def test_one_reward_worker_too_many_stops_the_run_and_says_which_loss_it_was() -> None:
    rewards = Rewards("reward.max_restarts=0")
    for call in rewards.calls():
        call.set_exception(KILLED)
    told = r"scored the rollouts of p0: .*; these are 1 in an hour, more than reward.max_restarts=0"
    with pytest.raises(RewardWorkerError, match=told) as caught:
        rewards.groups()
    assert caught.value.loss.kind is LossKind.PROCESS


def test_a_reward_worker_without_memory_is_replaced_though_its_process_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[Handle] = []
    monkeypatch.setattr("ray.kill", ended.append)
    rewards = Rewards()
    first, *others = rewards.calls()
    error = exceptions.RayTaskError("score", "traceback", MemoryError())
    first.set_exception(error.as_instanceof_cause())
    for call in others:
        call.set_exception(KILLED)
    for number in range(4):
        rewards.call(number).set_result(scores(1.0))
    assert [group.failure for group in rewards.groups()] == [""] * 4
    assert ended == [rewards.handles[0]]


def test_scores_of_an_older_attempt_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    given: list[list[RolloutGroup]] = []
    request = Request([make_group("p0")], given.append)
    first = Item(request, 0, GroupTexts(("p0/0",), ("2",), (Reference(2, None, 3.0, "squat"),)))
    second = first.again(is_suspect=True)
    third = second.again(is_suspect=False)
    assert (second.attempt, second.num_suspected) == (1, 1)
    assert (third.attempt, third.num_suspected) == (2, 1)
    [late] = scores(1.0)
    assert not first.settle(late)
    assert not second.settle(late)
    assert not request.results
    assert "the scores of p0 are refused: of attempt 1, expected 2" in caplog.text
    assert third.settle(late)
    assert request.is_complete


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
    assert pool.restarts.num_spent == num_restarts


def test_a_rollout_worker_too_many_stops_the_run() -> None:
    pool, handles = make_rollouts(max_restarts=0)
    pool.submit([make_group("p").prompt], SETTINGS, lambda group: None)
    handles[0].calls["advance"][0].set_exception(KILLED)
    with pytest.raises(
        RolloutWorkerError, match=r"1 in an hour, more than rollout\.max_restarts=0"
    ) as caught:
        pool.wait(lambda: False, lambda: "nothing")
    assert (caught.value.loss.role, caught.value.loss.kind) == ("rollout", LossKind.PROCESS)


def test_by_default_three_lost_engines_in_an_hour_are_replaced_after_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handles: list[Handle] = []

    def spawn(index: int) -> Handle:
        handles.append(Handle())
        return handles[-1]

    pool = RolloutPool(recipe(), spawn)
    pool.add_workers(1)
    pool.wait_ready()
    pauses: list[float] = []

    def post_later(delay_s: float, call: Callable[[], None]) -> None:
        pauses.append(delay_s)
        assert pool.num_workers == 1  # it is to come, and counts: none more is started for it
        pool.mailbox.post(call)

    monkeypatch.setattr(pool.mailbox, "post_later", post_later)
    group = make_group("p")
    answered: list[RolloutGroup] = []
    pool.submit([group.prompt], SETTINGS, answered.append)
    for number in range(3):
        pool.wait(lambda n=number: "advance" in handles[n].calls, lambda: "its call")  # type: ignore[misc]
        handles[number].calls["advance"][0].set_exception(KILLED)
        pool.wait(lambda n=number: len(handles) == n + 2, lambda: "the next one")  # type: ignore[misc]
    assert pauses == [0.0, 1.0, 2.0]
    pool.wait(lambda: "advance" in handles[3].calls, lambda: "its call")
    latest = handles[3].arguments["advance"][0][0][0][0][0]
    assert (latest.prompt_id, latest.attempt) == ("p", 3)
    handles[3].calls["advance"][0].set_exception(KILLED)
    with pytest.raises(RolloutWorkerError, match="these are 4 in an hour"):
        pool.wait(lambda: False, lambda: "nothing")


def test_a_run_that_starts_again_forgives_no_loss() -> None:
    budgets: dict[str, Budget] = {}
    for number in (1, 2):
        pool, handles = make_rollouts(max_restarts=1)
        others: Any = RewardPool(recipe("reward.num_workers=1"), Handle)
        Pools(pool, others, others, others).share(budgets)
        pool.submit([make_group("p").prompt], SETTINGS, lambda group: None)
        handles[0].calls["advance"][0].set_exception(KILLED)
        if number == 1:
            pool.wait(lambda h=handles: len(h) == 2, lambda: "the new one")  # type: ignore[misc]
        else:
            with pytest.raises(RolloutWorkerError, match="these are 2 in an hour"):
                pool.wait(lambda: False, lambda: "nothing")
    assert budgets.keys() == {"rollout", "reward"}


@pytest.mark.parametrize("is_killed", [True, False])
def test_an_engine_that_is_killed_as_it_starts_is_replaced_and_one_that_raises_is_not(
    is_killed: bool,
) -> None:
    raised = exceptions.RayTaskError("__init__", "ConfigError: m: no model", RuntimeError())
    starts: list[Exception | int] = [KILLED if is_killed else exceptions.ActorDiedError(raised), 0]
    handles: list[Handle] = []

    def spawn(index: int) -> Handle:
        handles.append(Handle(start=starts[index]))
        return handles[-1]

    pool = RolloutPool(recipe("rollout.max_restarts=1"), spawn)
    pool.add_workers(1)
    if is_killed:
        pool.wait_ready()
        assert len(handles) == 2
    else:
        with pytest.raises(RolloutWorkerError, match="m: no model"):
            pool.wait_ready()


def test_an_answer_to_an_older_attempt_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    pool, handles = make_rollouts(max_restarts=1)
    group, answered = make_group("p"), list[RolloutGroup]()
    pool.submit([group.prompt], SETTINGS, answered.append)
    handles[0].calls["advance"][0].set_exception(KILLED)
    pool.wait(lambda: len(handles) == 2 and "advance" in handles[1].calls, lambda: "the new one")
    first, *_ = handles[1].calls["advance"]
    first.set_result(Turn([group], 0.0, 1.0))  # attempt 0, of which the lost one was asked
    pool.wait(lambda: len(handles[1].calls["advance"]) == 3, lambda: "the next call")
    assert answered == []
    assert "attempt 0 at p is refused, attempt 1 is expected" in caplog.text
    late = replace(group, prompt=replace(group.prompt, attempt=1))
    handles[1].calls["advance"][1].set_result(Turn([late], 0.0, 1.0))
    pool.wait(lambda: answered, lambda: "the answer")
    assert answered == [late]


def test_what_cannot_be_answered_is_told_beside_the_groups() -> None:
    pool, handles = make_rollouts(max_restarts=0)
    prompts = [make_group(name).prompt for name in ("p0", "p1")]
    refusal = Refusal(prompts[0], "unreadable_video", "a.mp4: no such video")

    def end() -> None:
        turn = Turn([make_group("p1")], 0.0, 1.0, [refusal])
        handles[0].calls["advance"][0].set_result(turn)

    pool.mailbox.post(end)
    groups, refused = pool.answer(prompts, SETTINGS)
    assert [group.prompt.prompt_id for group in groups] == ["p1"]
    assert refused == [refusal]
    stale = replace(refusal, prompt=replace(prompts[0], attempt=1))

    def end_again() -> None:
        last = handles[0].calls["advance"]
        last[-2].set_result(Turn([], 0.0, 1.0, [stale]))  # of an attempt that was not made
        last[-1].set_result(Turn([], 0.0, 1.0, [refusal]))

    pool.mailbox.post(end_again)
    with pytest.raises(RefusedError, match="no such video") as caught:
        pool.generate(prompts[:1], SETTINGS)
    assert caught.value.refused == (refusal,)


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


class Bucket:
    """Something that can be seen to be gone."""


def test_old_weights_are_gone_before_new_ones_come_and_a_new_worker_waits_for_these() -> None:
    """As a worker is lost while the learners give their weights."""
    pool, handles = make_rollouts(max_restarts=1)
    old = Bucket()
    seen = weakref.ref(old)
    arrived: list[int] = []
    pool.start_load([old], 1, lambda: arrived.append(1))
    handles[0].calls["load_weights"][0].set_result(Loaded(1, 0.0, 1.0))
    pool.wait(lambda: arrived, lambda: "the push")
    pool.submit([make_group("p").prompt], SETTINGS, lambda group: None)
    pool.wait(lambda: "advance" in handles[0].calls, lambda: "the first one")
    pool.let_go_of_weights()
    handles[0].arguments.clear()
    handles[0].calls.pop("load_weights")  # as Ray forgets a call that is over
    del old
    gc.collect()
    assert seen() is None
    handles[0].calls["advance"][0].set_exception(KILLED)
    pool.wait(lambda: len(handles) == 2, lambda: "a start")
    waited: list[int] = []
    pool.mailbox.post_later(0.1, lambda: waited.append(1))  # after what was to come of its start
    pool.wait(lambda: waited, lambda: "the start")
    assert handles[1].calls.keys() == {"ready"}
    arrived.clear()
    pool.start_load(["new"], 2, lambda: arrived.append(2))
    pool.wait(lambda: "load_weights" in handles[1].calls, lambda: "the new weights")
    assert handles[1].arguments["load_weights"] == [(2, "new")]
    assert arrived == []  # nobody that lives has them
    handles[1].calls["load_weights"][0].set_result(Loaded(2, 0.0, 1.0))
    pool.wait(lambda: arrived and "advance" in handles[1].calls, lambda: "the prompt")
    assert len(handles[1].calls["load_weights"]) == 1


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

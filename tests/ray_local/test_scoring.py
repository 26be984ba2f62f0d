"""Reward workers: order, parts, and failures that name the reward and the rollout."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actrep_ray.cluster.supervision import Call, follow
from actrep_ray.config import Recipe
from actrep_ray.records import Prompt, Rollout, RolloutGroup, RolloutStatus
from actrep_ray.scoring.pool import RewardPool, ScoringError, ScoringTimeoutError
from actrep_ray.scoring.worker import GroupFailure, RewardWorker, make_spec, texts_of
from data_prep.video import FramePlan
from rewards.compose import score
from rewards.grammar.write import Response, render
from rewards.reference import Reference

CYCLES = ((0.5, 1.2), (1.2, 2.0))
LABELS = {
    "marked": Reference(2, CYCLES, 3.0, "squat"),
    "unmarked": Reference(2, None, 3.0, "squat"),
    "still": Reference(0, (), 3.0, "unknown"),
}
RIGHT = render(Response("A person squats.", "down and up", CYCLES, "evenly spaced", 2, 2))
WRONG = RIGHT.replace("<answer>2", "<answer>9")

USER_REWARDS = """
import os
import time

def raises(response, reference):
    if response.count == 9:
        raise KeyError("nine")
    return 0.5

def nan(response, reference):
    return float("nan") if response.count == 9 else 0.5

def several(response, reference):
    return [0.5, 0.5] if response.count == 9 else 0.5

def hangs(response, reference):
    deadline = time.monotonic() + 60.0
    while response.count == 9 and time.monotonic() < deadline:
        pass
    return 0.5

def sometimes(response, reference):
    return None if response.count == 9 else 0.5

def waits(response, reference):
    time.sleep(0.1)
    return 0.5

def exits(response, reference):
    if response.count == 9:
        os._exit(1)
    return 0.5
"""


@pytest.fixture
def user_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `user_rewards` of a user, good at every count but 9."""
    (tmp_path / "user_rewards.py").write_text(USER_REWARDS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "user_rewards", raising=False)


def make_group(name: str, clip_id: str, *texts: str) -> RolloutGroup:
    plan = FramePlan(f"{clip_id}.mp4", 1, (0, 1), 4.0, 32, 32)
    rollouts = tuple(
        Rollout(
            rollout_id=f"{name}-{i}",
            token_ids=np.arange(5, dtype=np.int32),
            rollout_log_probs=np.zeros(5, np.float32),
            text=text,
            status=RolloutStatus.STOPPED,
            policy_version=0,
        )
        for i, text in enumerate(texts)
    )
    return RolloutGroup(Prompt(name, clip_id, "How many?", plan), rollouts, 10)


def make_recipe(**reward: Any) -> Recipe:
    return Recipe.model_validate({"reward": {"num_cpus": 0.1, **reward}})


def user_weights(function: str) -> dict[str, float]:
    return {"obo": 1.0, f"user_rewards:{function}": 1.0}


def score_in_process(recipe: Recipe, groups: list[RolloutGroup]) -> list[Any]:
    texts = [texts_of(group, LABELS, recipe) for group in groups]
    return RewardWorker(make_spec(recipe), recipe.task).score(texts)


def test_rewards_are_those_of_the_composition() -> None:
    (scored,) = score_in_process(make_recipe(), [make_group("p", "marked", RIGHT, WRONG, "")])
    reference = Reference(count=2, cycles=CYCLES, duration_s=3.0)
    expected = [score(text, reference).total for text in (RIGHT, WRONG, "")]
    assert scored.rewards == pytest.approx(expected)
    assert scored.rewards[0] == 1.0
    assert scored.rewards.dtype == np.float32
    assert set(scored.parts) == {"obo", "cycles", "format"}
    assert scored.readings == (2, 9, None)
    assert [claims["answer"] for claims in scored.claims] == [2, 9, None]


def test_a_part_that_does_not_apply_is_nan_and_not_zero() -> None:
    (scored,) = score_in_process(make_recipe(), [make_group("p", "unmarked", RIGHT, RIGHT)])
    assert np.isnan(scored.parts["cycles"]).all()
    assert scored.rewards.tolist() == [1.0, 1.0]


def test_per_reward_normalisation_centres_each_group() -> None:
    recipe = make_recipe(combine="per_reward", weights={"obo": 0.5, "think_answer": 0.5})
    (scored,) = score_in_process(recipe, [make_group("p", "marked", RIGHT, WRONG)])
    # obo: 1 and 0 -> +-0.5 / std 0.7071; think_answer: no spread
    assert scored.rewards == pytest.approx([0.5 * 0.70711, -0.5 * 0.70711], abs=1e-5)
    # What they earned, for the window of pass rates: 7 too many leave 2e-5 of `obo`.
    assert scored.totals == pytest.approx([1.0, 0.5], abs=1e-4)


def test_a_clip_without_labels_is_an_error() -> None:
    with pytest.raises(ValueError, match="prompt p: no labels of clip 'unknown'"):
        texts_of(make_group("p", "unknown", RIGHT), LABELS, make_recipe())


FAILURES = [
    ("raises", "reward_raised", "raised KeyError: 'nine'"),
    ("nan", "reward_bad_value", "returned nan"),
    ("several", "reward_bad_value", "returned [0.5, 0.5]"),
]


@pytest.mark.parametrize(("function", "reason", "message"), FAILURES)
@pytest.mark.usefixtures("user_rewards")
def test_a_failing_reward_names_itself_and_the_rollout(
    function: str, reason: str, message: str
) -> None:
    groups = [make_group("p", "marked", RIGHT, WRONG), make_group("q", "marked", RIGHT)]
    failed, scored = score_in_process(make_recipe(weights=user_weights(function)), groups)
    assert isinstance(failed, GroupFailure)
    assert failed.reason == reason
    assert f"rollout p-1: reward 'user_rewards:{function}' {message}" in failed.message
    assert scored.rewards.tolist() == [0.75]  # obo 1 and ours 0.5


@pytest.mark.usefixtures("user_rewards")
def test_a_reward_that_applies_to_some_answers_of_a_group_only_fails() -> None:
    weights = {"obo": 1.0, "user_rewards:sometimes": 1.0}
    recipe = make_recipe(weights=weights, combine="per_reward")
    (failed,) = score_in_process(recipe, [make_group("p", "marked", RIGHT, WRONG)])
    assert failed.reason == "reward_bad_value"
    assert "'user_rewards:sometimes' returned None for 1 of 2 answers" in failed.message


def test_options_reach_the_reward() -> None:
    late = tuple((round(a + 0.2, 1), round(b + 0.2, 1)) for a, b in CYCLES)
    text = render(Response("A person squats.", "down and up", late, "evenly spaced", 2, 2))
    groups = [make_group("p", "marked", text)]
    for tolerance, expected in ((0.2, 0.0), (0.35, 1.0)):  # 0.2 s are 0.29 and 0.25 of a cycle
        part = {"weight": 1, "tolerance": tolerance}
        (scored,) = score_in_process(make_recipe(weights={"cycles": part}), groups)
        assert scored.parts["cycles"].tolist() == [expected]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"weight": 1, "tolerance": 3.0}, r"'cycles' with tolerance=3.0: .*share of the cycle"),
        ({"weight": 1, "tolerance": "much"}, "'cycles' with tolerance='much'"),
        ({"weight": 1, "tolerence": 0.3}, "cannot be called as reward.*tolerence=0.3"),
        ({"weight": 1, "penalty": True}, "cycles: penalty=True, expected False"),
    ],
)
def test_wrong_options_are_refused_before_a_worker_starts(
    part: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_spec(make_recipe(weights={"cycles": part}))


def test_unknown_rewards_are_refused_before_a_worker_starts() -> None:
    with pytest.raises(ValueError, match="did you mean 'obo'"):
        RewardPool.start(make_recipe(weights={"obbo": 1.0}))


# --- over Ray


@contextmanager
def started(recipe: Recipe) -> Iterator[RewardPool]:
    pool = RewardPool.start(recipe)
    try:
        yield pool
    finally:
        pool.shutdown()


@pytest.mark.usefixtures("ray_session")
def test_groups_come_back_in_order_with_the_same_rewards_as_in_process() -> None:
    recipe = make_recipe(num_workers=2)
    clips = ["marked", "unmarked", "still"]
    groups = [
        make_group(f"p{i}", clips[i % 3], *(WRONG if i >> k & 1 else RIGHT for k in range(4)))
        for i in range(23)
    ]
    expected = score_in_process(recipe, groups)
    with started(recipe) as pool:
        scored = pool.score(groups, LABELS)
        assert pool.score([], LABELS) == []
    assert [g.prompt.prompt_id for g in scored] == [g.prompt.prompt_id for g in groups]
    assert all(g.rollouts is h.rollouts for g, h in zip(scored, groups, strict=True))
    for group, one in zip(scored, expected, strict=True):
        np.testing.assert_array_equal(group.rewards, one.rewards)
        for name, values in one.parts.items():
            np.testing.assert_array_equal(group.reward_parts[name], values)


@pytest.mark.usefixtures("ray_session", "user_rewards")
def test_a_reward_that_raises_stops_the_call_and_names_both() -> None:
    groups = [make_group(f"p{i}", "marked", RIGHT, WRONG if i == 5 else RIGHT) for i in range(9)]
    with started(make_recipe(weights=user_weights("raises"), num_workers=2)) as pool:
        with pytest.raises(ScoringError, match="rollout p5-1: reward 'user_rewards:raises' raised"):
            pool.score(groups, LABELS)
        # Nothing of the failed call is left over.
        assert len(pool.score(groups[:3], LABELS)) == 3


@pytest.mark.usefixtures("ray_session", "user_rewards")
def test_a_reward_that_hangs_is_named_with_its_rollout_and_line() -> None:
    groups = [make_group("p", "marked", RIGHT, WRONG)]
    recipe = make_recipe(weights=user_weights("hangs"), timeout_s=1.0)
    pattern = (
        r"waited 1 s \(reward.timeout_s\).*reward worker 0 is at p-1 for [\d.]+ s, "
        r"reward 'user_rewards:hangs', in hangs \(.*user_rewards.py:\d+\)"
    )
    with started(recipe) as pool, pytest.raises(TimeoutError, match=pattern):
        pool.score(groups, LABELS)


@pytest.mark.usefixtures("ray_session", "user_rewards")
def test_a_worker_that_dies_is_named_with_what_it_scored() -> None:
    groups = [make_group("p", "marked", RIGHT, WRONG)]
    recipe = make_recipe(weights=user_weights("exits"), max_restarts=0)
    message = "reward worker 0 died while it scored the rollouts of p: .*max_restarts=0"
    with started(recipe) as pool, pytest.raises(ScoringError, match=message):
        pool.score(groups, LABELS)


@pytest.mark.usefixtures("ray_session", "user_rewards")
def test_failures_within_the_budget_drop_their_groups_and_nothing_else() -> None:
    weights = user_weights("raises") | {"user_rewards:nan": 1.0}
    bad = {2, 7}
    groups = [make_group(f"p{i}", "marked", RIGHT, WRONG if i in bad else RIGHT) for i in range(9)]
    with started(make_recipe(weights=weights, num_workers=2, max_failures=3)) as pool:
        scored = pool.score(groups, LABELS)
        assert {i for i, group in enumerate(scored) if group.failure} == bad
        for i, group in enumerate(scored):
            expected = [np.nan] * 2 if i in bad else [2 / 3] * 2  # obo 1, the two others 0.5
            np.testing.assert_allclose(group.rewards, expected, rtol=1e-6)
            assert set(group.reward_parts) == set(weights)
        pool.score([groups[2], groups[3]], LABELS)
        message = (
            r"4 groups could not be scored, more than reward.max_failures=3 \(reward_raised 4\); "
            "the last: reward worker 0: rollout p7-1: reward 'user_rewards:raises' raised"
        )
        with pytest.raises(ScoringError, match=message):
            pool.score([groups[7]], LABELS)


@pytest.mark.parametrize(
    ("function", "reason", "error"),
    [
        ("hangs", "reward_timeout", ScoringTimeoutError),
        ("exits", "reward_worker_died", ScoringError),
    ],
)
@pytest.mark.usefixtures("ray_session", "user_rewards")
def test_a_lost_worker_is_replaced_and_the_rest_of_its_groups_scored(
    function: str, reason: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actrep_ray.cluster.supervision.pause_after", lambda number: 0.0)
    groups = [make_group(f"p{i}", "marked", RIGHT, WRONG if i == 4 else RIGHT) for i in range(9)]
    settings = {"timeout_s": 1.5, "max_failures": 1, "max_restarts": 9}
    recipe = make_recipe(weights=user_weights(function), **settings)
    with started(recipe) as pool:
        scored = pool.score(groups, LABELS)
        assert [group.failure for group in scored] == [reason if i == 4 else "" for i in range(9)]
        assert all(g.rewards.tolist() == [0.75, 0.75] for g in scored if not g.failure)
        with pytest.raises(error, match=r"2 groups could not be scored, more than .*=1"):
            pool.score([groups[4]], LABELS)


@pytest.mark.usefixtures("user_rewards")
def test_a_killed_worker_ends_no_run_by_default(ray_session: Any) -> None:
    groups = [make_group(f"p{i}", "marked", RIGHT, RIGHT) for i in range(9)]
    with started(make_recipe(weights=user_weights("waits"))) as pool:
        [worker] = pool.workers
        pid = ray_session.get(worker.__ray_call__.remote(lambda _: os.getpid()))
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()  # at the second group or so
        scored = pool.score(groups, LABELS)
        assert pool.workers != [worker]
    assert [group.failure for group in scored] == [""] * 9
    assert all(group.rewards.tolist() == [0.75, 0.75] for group in scored)


def test_a_defect_ends_the_run_with_what_the_worker_wrote_last(ray_session: Any) -> None:
    with started(make_recipe()) as pool:
        [worker] = pool.workers

        def stumble(_: Any) -> None:
            print("the last words of this worker")
            sys.stdout.flush()
            raise ZeroDivisionError

        got: list[Exception] = []
        ref = worker.__ray_call__.remote(stumble)
        follow(
            pool.mailbox,
            Call("reward", 0, "stumble", ref),
            then=lambda _: None,
            on_loss=lambda loss: got.append(loss.error),
            on_error=got.append,
        )
        pool.mailbox.wait(lambda: got, 60.0, lambda: "the error")
    assert isinstance(got[0], ZeroDivisionError)
    assert "the last words of this worker" in "\n".join(got[0].__notes__)

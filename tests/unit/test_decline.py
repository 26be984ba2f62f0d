"""Alarms by the curves of a run: each rings on the curve that it is for, and on no healthy one."""

import json
import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from actrep_ray.config import Recipe, load_recipe
from actrep_ray.driver.alarms import Decline
from actrep_ray.records import Prompt, RolloutGroup
from actrep_ray.rollout.engine import make_rollout
from actrep_ray.tasks.loading import load_task
from data_prep.video import FramePlan
from rewards.reference import Reference

PLAN = FramePlan("a.mp4", 1, (0, 1), 4.0, 32, 32)
STEPS = 120
LABELS = {f"c{count}": Reference(count=count) for count in range(1, 9)}
NAMES = ("reward_flat", "entropy_gone", "answers_shrinking", "one_reading", "parse_rate_falling")


def recipe(*settings: str) -> Recipe:
    return load_recipe(None, list(settings))


def group(count: int, *readings: int | None) -> RolloutGroup:
    prompt = Prompt("p", f"c{count}", "How many?", PLAN)
    rollouts = tuple(
        make_rollout(
            prompt, i, token_ids=[1], log_probs=[-1.0], text="", is_stopped=True, policy_version=0
        )
        for i in range(len(readings))
    )
    return RolloutGroup(prompt, rollouts, 4, readings=readings)


HEALTHY = [group(count, count, count, count + 1, None) for count in range(1, 9)]
Curve = Callable[[int], float]


def healthy_curves() -> dict[str, Curve]:
    noise = np.random.default_rng(0).normal(0, 0.02, STEPS)
    return {
        "reward/mean": lambda i: 0.2 + 0.005 * i + noise[i],
        "learner/entropy": lambda i: 0.6 * math.exp(-i / 100),
        "rollout/response_tokens": lambda i: 80 - 0.2 * i,
        "train/parse_rate": lambda i: 0.9 - 0.05 * (i > 60),
    }


def ring(
    alarm: Decline,
    curves: dict[str, Curve],
    groups: Sequence[RolloutGroup] = HEALTHY,
    steps: range = range(STEPS),
) -> dict[str, list[int]]:
    """The steps at which each alarm rang."""
    rang: dict[str, list[int]] = {name: [] for name in NAMES}
    for i in steps:
        found = alarm.look(i + 1, {key: curve(i) for key, curve in curves.items()}, groups, LABELS)
        assert set(found) == {f"alarms/{name}" for name in NAMES}
        for name in NAMES:
            rang[name] += [i + 1] * int(found[f"alarms/{name}"])
    return rang


def decline(*settings: str) -> Decline:
    made = recipe(*settings)
    return Decline(made, load_task(made.task))


def test_a_run_that_learns_rings_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not any(ring(decline(), healthy_curves()).values())
    assert not caplog.messages


@pytest.mark.parametrize(
    ("name", "key", "curve", "first", "words"),
    [
        # Flat at once: the first full window ends at step 50.
        ("reward_flat", "reward/mean", lambda i: 0.3, 50,
         "no higher than that of the 25 before (0.300, 0.300)"),
        # Mean of the last ten steps 0.05 < 0.06 where all of them are past step 40.
        ("entropy_gone", "learner/entropy", lambda i: 0.6 if i < 40 else 0.05, 50, "0.6 to 0.05"),
        # Ten of 35 against 80.
        ("answers_shrinking", "rollout/response_tokens", lambda i: 80 if i < 40 else 35, 49,
         "80 to 40 tokens"),
        # 0.9 - 0.8 is not below; the mean is 0.79 once all ten steps are at it.
        ("parse_rate_falling", "train/parse_rate", lambda i: 0.9 if i < 40 else 0.79, 50,
         "90% could be read, now 79%"),
    ],
)  # fmt: skip
def test_each_curve_rings_its_own_alarm(
    name: str, key: str, curve: Curve, first: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        rang = ring(decline(), healthy_curves() | {key: curve})
    assert rang.pop(name)[0] == first
    assert not any(rang.values())
    # Told at once and again a window later, not at every step.
    assert len(caplog.messages) == 1 + (STEPS - first) // 50
    assert caplog.messages[0].startswith(f"step {first}: ")
    assert words in caplog.messages[0]
    assert "Likely: " in caplog.messages[0]


def test_one_number_for_most_clips(caplog: pytest.LogCaptureFixture) -> None:
    # 10 in 5 of 8 answers, and none of the clips has it.
    same = [group(count, count, *[10] * 5, None, None) for count in range(1, 9)]
    with caplog.at_level(logging.WARNING):
        rang = ring(decline(), healthy_curves(), same)
    assert rang.pop("one_reading") == list(range(10, STEPS + 1))
    assert not any(rang.values())
    assert "83% of the answers are 10, which is right for 0% of clips" in caplog.messages[0]
    # Clips that are all alike are answered alike.
    alike = [group(3, 3, 3, 3, 4)] * 8
    assert not ring(decline(), healthy_curves(), alike)["one_reading"]


def test_steps_without_a_figure_are_left_out() -> None:
    curves = healthy_curves()
    of_entropy = curves["learner/entropy"]
    curves["learner/entropy"] = lambda i: math.nan if i % 2 else of_entropy(i)
    assert not any(ring(decline(), curves).values())


def test_a_run_that_goes_on_compares_with_its_first_steps() -> None:
    curves = healthy_curves() | {"learner/entropy": lambda i: 0.6 if i < 60 else 0.01}
    whole, before, after = decline(), decline(), decline()
    expected = ring(whole, curves)
    ring(before, curves, steps=range(60))
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert ring(after, curves, steps=range(60, STEPS)) == expected
    assert expected["entropy_gone"][0] == 70


def test_none_where_none_are_wanted() -> None:
    alarm = decline("train.alarm_steps=0")
    assert alarm.look(1, {"reward/mean": 0.0}, HEALTHY, LABELS) == {}


def test_a_slow_and_noisy_rise_is_seldom_called_flat() -> None:
    """From 0.5 to 0.65 in 150 steps, noise of 0.05: three looks, of which each errs in 4%."""
    num_rang = 0
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.05, 150)
        curves = healthy_curves() | {"reward/mean": lambda i, n=noise: 0.5 + 0.001 * i + n[i]}
        curves |= {"learner/entropy": lambda i: 0.6, "rollout/response_tokens": lambda i: 80}
        num_rang += bool(ring(decline(), curves, steps=range(150))["reward_flat"])
    assert num_rang <= 5


def test_answers_without_reasoning_may_shrink() -> None:
    curves = healthy_curves() | {"rollout/response_tokens": lambda i: 80 if i < 40 else 5}
    assert not ring(decline("data.reasoning=none"), curves)["answers_shrinking"]
    assert ring(decline("data.reasoning=after"), curves)["answers_shrinking"]

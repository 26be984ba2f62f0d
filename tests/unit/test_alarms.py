"""A run that learns nothing says so, and why, and ends; what it counted outlives a resumption."""

import logging
from collections import Counter
from typing import Any

import pytest

from actrep_ray.config import ConfigError, Recipe, load_recipe
from actrep_ray.driver.alarms import LearningAlarmError, UntrainedSteps
from actrep_ray.records import Prompt, RolloutGroup
from actrep_ray.rollout.engine import make_rollout
from data_prep.video import FramePlan

PLAN = FramePlan("a.mp4", 1, (0, 1), 4.0, 32, 32)


def recipe(*settings: str) -> Recipe:
    return load_recipe(None, list(settings))


def group(*readings: int | None, num_cut: int = 0) -> RolloutGroup:
    prompt = Prompt("p", "c", "How many?", PLAN)
    rollouts = tuple(
        make_rollout(
            prompt,
            i,
            token_ids=[1],
            log_probs=[-1.0],
            text="",
            is_stopped=i >= num_cut,
            policy_version=0,
        )
        for i in range(len(readings))
    )
    return RolloutGroup(prompt, rollouts, 4, readings=readings)


def look(alarm: UntrainedSteps, step: int, *, num_trained: int = 0, **dropped: int) -> None:
    groups = [group(2, None, num_cut=1)] * (num_trained + sum(dropped.values()))
    alarm.look(step, groups, num_trained, Counter(dropped))


def message_of(alarm: UntrainedSteps) -> str:
    with pytest.raises(LearningAlarmError) as caught:
        alarm.end_run()
    return str(caught.value)


def test_it_rings_at_the_fifth_step_in_a_row_and_counts_all_of_them() -> None:
    alarm = UntrainedSteps(recipe())
    for step in range(3, 7):
        look(alarm, step, all_wrong=3, all_equal=1)
        assert not alarm.has_rung
        alarm.end_run()
    look(alarm, 7, all_right=4)
    assert alarm.has_rung
    found = message_of(alarm)
    assert found.startswith(
        "steps 3 to 7 trained on no group: of 20 all were dropped "
        "(12 all_wrong, 4 all_equal, 4 all_right); of 40 answers 20 could not be read and 20 were "
        "cut off. "
    )
    assert "train.max_untrained_steps=5" in found
    assert "train.on_untrained=log" in found
    assert issubclass(LearningAlarmError, ConfigError)  # one line, exit code 2


def test_a_step_that_trains_one_group_begins_anew() -> None:
    alarm = UntrainedSteps(recipe("train.max_untrained_steps=2"))
    for step in range(1, 20, 2):
        look(alarm, step, all_wrong=4)
        look(alarm, step + 1, num_trained=1, all_wrong=3)
        assert not alarm.has_rung
    look(alarm, 21, all_right=1)
    look(alarm, 22, all_right=2)
    assert "steps 21 to 22 trained on no group: of 3 all were dropped (3 all_right)" in message_of(
        alarm
    )


def test_told_to_go_on_it_says_so_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    alarm = UntrainedSteps(recipe("train.max_untrained_steps=3", "train.on_untrained=log"))
    with caplog.at_level(logging.ERROR):
        for step in range(1, 8):
            look(alarm, step, all_wrong=1)
            assert len(caplog.records) == step // 3
    assert not alarm.has_rung
    alarm.end_run()
    assert "steps 1 to 6 trained on no group" in caplog.records[1].getMessage()


def test_what_was_counted_is_part_of_a_checkpoint() -> None:
    first = UntrainedSteps(recipe())
    for step in range(1, 5):
        look(first, step, all_wrong=2)
    resumed = UntrainedSteps(recipe())
    resumed.load_state_dict(first.state_dict())
    look(resumed, 5, all_wrong=2)
    assert "steps 1 to 5 trained on no group: of 10 " in message_of(resumed)
    again = UntrainedSteps(recipe())  # a run that ended so may be gone on with for as long again
    again.load_state_dict(resumed.state_dict())
    for step in range(6, 10):
        look(again, step, all_wrong=2)
        assert not again.has_rung
    look(again, 10, all_wrong=2)
    assert again.has_rung


@pytest.mark.parametrize(
    ("groups", "dropped", "remedy"),
    [
        ([group(1, 2, 3)], {"all_wrong": 1}, "the clips are too hard"),
        ([group(None, None, 3)], {"all_wrong": 1}, "answers cannot be read"),
        ([group(None, None, 3)], {"all_right": 1}, "the clips are too easy"),
        ([group(None, None, None, num_cut=2)], {"all_equal": 1}, "answers do not end"),
        ([group(1, 1)], {"all_equal": 1}, "answers earn the same: raise rollout.temperature"),
        ([group(1, 1)] * 3, {"too_hard": 2, "all_wrong": 1}, "widen train.pass_rate_window"),
        ([group()], {"reward_raised": 1}, "what the messages above say"),
        ([], {"unreadable_video": 3}, "videos cannot be read: see quarantine.jsonl"),
        ([], {}, "what the messages above say"),
    ],
)
def test_the_remedy_is_that_of_the_most_frequent_cause(
    groups: list[RolloutGroup], dropped: dict[str, int], remedy: Any
) -> None:
    alarm = UntrainedSteps(recipe("train.max_untrained_steps=1"))
    alarm.look(1, groups, 0, Counter(dropped))
    assert f"Likely: {remedy}" in message_of(alarm)

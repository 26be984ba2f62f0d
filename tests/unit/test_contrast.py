"""The contrast of T-GRPO: a bonus worked out by hand, pairs that find each other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actrep_ray.config import ConfigError, TemporalContrastConfig, load_recipe
from actrep_ray.driver.contrast import (
    ContrastSource,
    contrast_metrics,
    shuffled,
)
from actrep_ray.records import Prompt, Refusal, RolloutGroup
from actrep_ray.rollout.dispatch import raise_refused
from actrep_ray.rollout.engine import SamplingSettings, make_rollout
from actrep_ray.tasks.loading import load_task
from data_prep.video import FramePlan
from rewards.reference import Reference

TASK = load_task("counting")
PLAN = FramePlan("a.mp4", 1, tuple(range(0, 48, 3)), 4.0, 32, 32)
LABELS = {"clip": Reference(count=5, cycles=None, duration_s=4.0, label="wave")}
PROMPT = Prompt("000001-0000-clip", "clip", "How many?", PLAN)


def group_of(counts: Sequence[int | None], prompt: Prompt = PROMPT) -> RolloutGroup:
    rollouts = tuple(
        make_rollout(
            prompt,
            i,
            token_ids=[1],
            log_probs=[-1.0],
            text="" if count is None else f"<answer>{count}</answer>",
            is_stopped=True,
            policy_version=0,
        )
        for i, count in enumerate(counts)
    )
    return RolloutGroup(prompt, rollouts, 10, readings=tuple(counts))


class Pool:
    """Answers 0, 1, 2 ... to every prompt, the later ones first; every answer earns 0.25."""

    def answer(
        self, prompts: Sequence[Prompt], settings: SamplingSettings
    ) -> tuple[list[RolloutGroup], list[Refusal]]:
        return [group_of(range(settings.group_size), prompt) for prompt in prompts], []

    def submit(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, on_group: Any, on_refused: Any
    ) -> None:
        for prompt in reversed(prompts):
            on_group(group_of(range(settings.group_size), prompt))

    def score(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Reference]
    ) -> list[RolloutGroup]:
        return [
            replace(group, rewards=np.full(len(group.rollouts), 0.25, np.float32))
            for group in groups
        ]


@pytest.mark.parametrize(
    ("in_order", "in_disorder", "margin", "rewards"),
    [
        # 2 of 4 right against 0 of 2: the two right ones earn 0.3 more
        ([5, 4, None, 5], [4, 6], 0.0, [0.55, 0.25, 0.25, 0.55]),
        # 2 of 4 against 1 of 2: order does not help
        ([5, 4, None, 5], [5, 6], 0.0, [0.25, 0.25, 0.25, 0.25]),
        # 3 of 4 against 1 of 2, 0.25 more: that is not more than the margin
        ([5, 5, 5, 0], [5, 6], 0.25, [0.25, 0.25, 0.25, 0.25]),
        ([5, 5, 5, 0], [5, 6], 0.2, [0.55, 0.55, 0.55, 0.25]),
        # nothing is right
        ([1, 2, 3, 4], [1, 2], 0.0, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_the_bonus_by_hand(
    in_order: list[int | None], in_disorder: list[int | None], margin: float, rewards: list[float]
) -> None:
    group = replace(group_of(in_order), contrast=group_of(in_disorder, shuffled(PROMPT)))
    cfg = TemporalContrastConfig(weight=0.3, margin=margin)
    pool: Any = Pool()
    source = ContrastSource(pool, pool, SamplingSettings(max_tokens=8), cfg, TASK)
    (scored,) = source.score([group], LABELS)
    assert scored.rewards.tolist() == pytest.approx(rewards)
    assert scored.reward_parts["temporal"].tolist() == pytest.approx(np.array(rewards) - 0.25)
    assert scored.contrast is not None
    assert scored.contrast.rewards.tolist() == [0.25, 0.25]
    shares = [np.mean(np.array(counts) == 5) for counts in (in_order, in_disorder)]
    assert contrast_metrics([scored], LABELS, TASK) == {
        "temporal/ordered": shares[0],
        "temporal/shuffled": shares[1],
        "temporal/shuffled_groups": 1.0,
    }


def test_the_same_frames_in_another_order_at_the_same_times() -> None:
    other = shuffled(PROMPT)
    assert other.plan.times_s != PLAN.times_s
    assert sorted(other.plan.times_s) == list(PLAN.times_s)
    assert other.plan.timestamps_s == PLAN.timestamps_s
    assert other.plan.hash != PLAN.hash
    assert other == shuffled(PROMPT)
    assert other.plan != shuffled(replace(PROMPT, prompt_id="000002-0000-clip")).plan


def test_a_group_and_its_contrast_find_each_other() -> None:
    prompts = [replace(PROMPT, prompt_id=f"p{i}") for i in range(3)]
    pool: Any = Pool()
    settings = SamplingSettings(max_tokens=4, group_size=5)
    source = ContrastSource(pool, pool, settings, TemporalContrastConfig(weight=0.3), TASK)
    submitted: list[RolloutGroup] = []
    source.submit(prompts, submitted.append, raise_refused)
    answered, refused = source.generate(prompts)
    assert refused == []
    for groups in (submitted[::-1], answered):
        assert [group.prompt for group in groups] == prompts
        for group in groups:
            assert group.contrast is not None
            assert group.contrast.prompt == shuffled(group.prompt)
            assert (len(group.rollouts), len(group.contrast.rollouts)) == (5, 2)


class Refusing(Pool):
    """Refuses what it is told to, and answers the rest."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def answer(
        self, prompts: Sequence[Prompt], settings: SamplingSettings
    ) -> tuple[list[RolloutGroup], list[Refusal]]:
        groups, _ = super().answer([p for p in prompts if p.prompt_id not in self.names], settings)
        return groups, [self.refusal(p) for p in prompts if p.prompt_id in self.names]

    def submit(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, on_group: Any, on_refused: Any
    ) -> None:
        groups, refused = self.answer(prompts, settings)
        for group in groups:
            on_group(group)
        for one in refused:
            on_refused(one)

    @staticmethod
    def refusal(prompt: Prompt) -> Refusal:
        return Refusal(prompt, "unreadable_video", f"{prompt.prompt_id}: no such video")


def test_a_prompt_without_its_contrast_or_the_other_way_round_is_refused_once() -> None:
    prompts = [replace(PROMPT, prompt_id=f"p{i}") for i in range(4)]
    pool: Any = Refusing("p0", "p1-shuffled", "p2", "p2-shuffled")
    settings = SamplingSettings(max_tokens=4, group_size=5)
    source = ContrastSource(pool, pool, settings, TemporalContrastConfig(weight=0.3), TASK)
    submitted: list[RolloutGroup] = []
    told: list[Refusal] = []
    source.submit(prompts, submitted.append, told.append)
    for groups, refused in ((submitted, told), source.generate(prompts)):
        assert [group.prompt for group in groups] == [prompts[3]]
        assert sorted(one.prompt.prompt_id for one in refused) == ["p0", "p1", "p2"]
        assert all(one.prompt in prompts for one in refused)  # not what was shown shuffled


def test_it_cannot_be_normalised_with_the_other_rewards() -> None:
    settings = ["algorithm.advantage=gdpo", "algorithm.temporal_contrast.weight=0.3"]
    with pytest.raises(ConfigError, match=r"set algorithm.temporal_contrast.weight=0"):
        load_recipe(None, settings)

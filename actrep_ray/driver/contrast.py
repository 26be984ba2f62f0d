"""T-GRPO's contrast (Video-R1, arXiv 2503.21776): are answers better with the frames in order?

    prompt ─┬─ frames in order ─► G answers    ─┐ share of right answers: p
            └─ frames shuffled ─► G / 2 answers ─┘ share of right answers: q

Where p - q exceeds `margin`, every right answer to the frames in order earns `weight` more. Answers
about shuffled frames are scored, and never trained on. Shuffled frames are shown at times that rise
as ever.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from zlib import crc32

import numpy as np

from actrep_ray.config import TemporalContrastConfig
from actrep_ray.driver.sources import GroupSource
from actrep_ray.records import Prompt, Refusal, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.scoring.pool import RewardPool
from actrep_ray.tasks.base import Task
from rewards.reference import Reference

_SUFFIX = "-shuffled"


class ContrastSource(GroupSource):
    """Two groups a prompt: that of the frames in order holds the other one as its `contrast`.

    Args:
        rollouts: Engines.
        rewards: Reward workers.
        settings: How answers about frames in order are sampled; half as many about shuffled ones.
        cfg: The bonus and its margin.
        task: Says which answers are right.
    """

    groups_per_prompt = 2

    def __init__(
        self,
        rollouts: RolloutPool,
        rewards: RewardPool,
        settings: SamplingSettings,
        cfg: TemporalContrastConfig,
        task: Task,
    ) -> None:
        super().__init__(rollouts, rewards, settings)
        self.half = replace(settings, group_size=max(1, settings.group_size // 2))
        self.cfg = cfg
        self.task = task

    def generate(self, prompts: Sequence[Prompt]) -> tuple[list[RolloutGroup], list[Refusal]]:
        """The answers to some prompts, with their contrasts, and the prompts that lack either."""
        groups, refused = self.rollouts.answer(prompts, self.settings)
        asked = [shuffled(group.prompt) for group in groups]
        others, more = self.rollouts.answer(asked, self.half)
        contrasts = {_name(other.prompt): other for other in others}
        originals = {group.prompt.prompt_id: group.prompt for group in groups}
        refused += [replace(one, prompt=originals[_name(one.prompt)]) for one in more]
        pairs = [(group, contrasts.get(group.prompt.prompt_id)) for group in groups]
        return [replace(group, contrast=o) for group, o in pairs if o is not None], refused

    def submit(
        self,
        prompts: Sequence[Prompt],
        on_group: Callable[[RolloutGroup], None],
        on_refused: Callable[[Refusal], None],
    ) -> None:
        """Have prompts answered; one is told when the group and its contrast have come, or one of
        them and a refusal of the other."""
        waiting: dict[str, RolloutGroup | Refusal] = {}
        originals = {prompt.prompt_id: prompt for prompt in prompts}

        def keep(one: RolloutGroup | Refusal) -> None:
            name = _name(one.prompt)
            other = waiting.pop(name, None)
            if other is None:
                waiting[name] = one
            elif isinstance(one, Refusal):
                on_refused(replace(one, prompt=originals[name]))
            elif isinstance(other, Refusal):
                on_refused(replace(other, prompt=originals[name]))
            elif one.prompt.prompt_id == name:
                on_group(replace(one, contrast=other))
            else:
                on_group(replace(other, contrast=one))

        self.rollouts.submit(prompts, self.settings, keep, keep)
        self.rollouts.submit([shuffled(prompt) for prompt in prompts], self.half, keep, keep)

    def score(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Reference]
    ) -> list[RolloutGroup]:
        """The groups with their rewards; the bonus is in them, and a part named `temporal`."""
        others = [group.contrast for group in groups if group.contrast is not None]
        scored = self.rewards.score([*groups, *others], labels)
        pairs = zip(scored[: len(groups)], scored[len(groups) :], strict=True)
        return [self._with_bonus(group, other, labels) for group, other in pairs]

    def _with_bonus(
        self, group: RolloutGroup, other: RolloutGroup, labels: Mapping[str, Reference]
    ) -> RolloutGroup:
        if group.failure or other.failure:
            return replace(group, contrast=other)
        right = _is_right(group, labels, self.task)
        gain = right.mean() - _is_right(other, labels, self.task).mean()
        bonus = (self.cfg.weight * right * (gain > self.cfg.margin)).astype(np.float32)
        return replace(
            group,
            contrast=other,
            rewards=group.rewards + bonus,
            reward_parts={**group.reward_parts, "temporal": bonus},
        )


def shuffled(prompt: Prompt) -> Prompt:
    """The same question about the same frames in an order that the prompt's id decides."""
    random = np.random.default_rng(crc32(prompt.prompt_id.encode()))
    times_s = tuple(random.permutation(prompt.plan.times_s).tolist())
    return replace(
        prompt,
        prompt_id=prompt.prompt_id + _SUFFIX,
        plan=replace(prompt.plan, times_s=times_s),
    )


def _name(prompt: Prompt) -> str:
    """The id of a prompt, or of that whose frames it shows shuffled."""
    return prompt.prompt_id.removesuffix(_SUFFIX)


def contrast_metrics(
    groups: Sequence[RolloutGroup], labels: Mapping[str, Reference], task: Task
) -> dict[str, float]:
    """Shares of right answers with frames in order and shuffled; empty without a contrast."""
    pairs = [(group, group.contrast) for group in groups if group.contrast is not None]
    if not pairs:
        return {}
    ordered, disordered = (
        np.mean([_is_right(group, labels, task).mean() for group in side])
        for side in zip(*pairs, strict=True)
    )
    return {
        "temporal/ordered": float(ordered),
        "temporal/shuffled": float(disordered),
        "temporal/shuffled_groups": float(len(pairs)),
    }


def _is_right(group: RolloutGroup, labels: Mapping[str, Reference], task: Task) -> np.ndarray:
    return task.is_right(group.readings, labels[group.prompt.clip_id])

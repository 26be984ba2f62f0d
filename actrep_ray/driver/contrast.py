"""T-GRPO's contrast (Video-R1, arXiv 2503.21776): are answers better with the frames in order?

    prompt ─┬─ frames in order ─► G answers    ─┐ share of right counts: p
            └─ frames shuffled ─► G / 2 answers ─┘ share of right counts: q

Where p - q exceeds `margin`, every right answer to the frames in order earns `weight` more. Answers
about shuffled frames are scored, and never trained on. Shuffled frames are shown at times that rise
as ever.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from actrep_ray.config import TemporalContrastConfig
from actrep_ray.records import Labels, Prompt, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings

if TYPE_CHECKING:
    from actrep_ray.rollout.pool import RolloutPool
    from actrep_ray.scoring.pool import RewardPool

_SUFFIX = "-shuffled"


def shuffled(prompt: Prompt) -> Prompt:
    """The same question about the same frames in an order that the prompt's id decides."""
    random = np.random.default_rng(crc32(prompt.prompt_id.encode()))
    indices = tuple(random.permutation(prompt.plan.indices).tolist())
    return replace(
        prompt,
        prompt_id=prompt.prompt_id + _SUFFIX,
        plan=replace(prompt.plan, indices=indices),
    )


def generate_pairs(
    pool: "RolloutPool", prompts: Sequence[Prompt], settings: SamplingSettings
) -> list[RolloutGroup]:
    """As `RolloutPool.generate`; every group comes with its `contrast`."""
    groups = pool.generate(prompts, settings)
    others = pool.generate([shuffled(prompt) for prompt in prompts], _half(settings))
    return [replace(group, contrast=o) for group, o in zip(groups, others, strict=True)]


def submit_pairs(
    pool: "RolloutPool",
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    on_group: Callable[[RolloutGroup], None],
) -> None:
    """As `RolloutPool.submit`; every group comes with its `contrast`, when both are there."""
    waiting: dict[str, RolloutGroup] = {}

    def keep(group: RolloutGroup) -> None:
        name = group.prompt.prompt_id.removesuffix(_SUFFIX)
        other = waiting.pop(name, None)
        if other is None:
            waiting[name] = group
        elif group.prompt.prompt_id == name:
            on_group(replace(group, contrast=other))
        else:
            on_group(replace(other, contrast=group))

    pool.submit(prompts, settings, keep)
    pool.submit([shuffled(prompt) for prompt in prompts], _half(settings), keep)


def score_pairs(
    pool: "RewardPool",
    groups: Sequence[RolloutGroup],
    labels: Mapping[str, Labels],
    cfg: TemporalContrastConfig,
) -> list[RolloutGroup]:
    """As `RewardPool.score`; the bonus is in the rewards, and a part of them named `temporal`."""
    others = [group.contrast for group in groups if group.contrast is not None]
    scored = pool.score([*groups, *others], labels)
    pairs = zip(scored[: len(groups)], scored[len(groups) :], strict=True)
    return [_with_bonus(group, other, labels, cfg) for group, other in pairs]


def contrast_metrics(
    groups: Sequence[RolloutGroup], labels: Mapping[str, Labels]
) -> dict[str, float]:
    """Shares of right counts with the frames in order and shuffled; empty without a contrast."""
    pairs = [(group, group.contrast) for group in groups if group.contrast is not None]
    if not pairs:
        return {}
    return {
        "temporal/ordered": float(np.mean([_is_right(group, labels).mean() for group, _ in pairs])),
        "temporal/shuffled": float(np.mean([_is_right(o, labels).mean() for _, o in pairs])),
        "temporal/shuffled_groups": float(len(pairs)),
    }


def _with_bonus(
    group: RolloutGroup,
    other: RolloutGroup,
    labels: Mapping[str, Labels],
    cfg: TemporalContrastConfig,
) -> RolloutGroup:
    if group.failure or other.failure:
        return replace(group, contrast=other)
    is_right = _is_right(group, labels)
    exceeds = is_right.mean() - _is_right(other, labels).mean() > cfg.margin
    bonus = (cfg.weight * is_right * exceeds).astype(np.float32)
    return replace(
        group,
        contrast=other,
        rewards=group.rewards + bonus,
        reward_parts={**group.reward_parts, "temporal": bonus},
    )


def _is_right(group: RolloutGroup, labels: Mapping[str, Labels]) -> np.ndarray:
    count = labels[group.prompt.clip_id].count
    return np.array([found == count for found in group.counts])


def _half(settings: SamplingSettings) -> SamplingSettings:
    return replace(settings, group_size=max(1, settings.group_size // 2))

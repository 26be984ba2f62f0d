"""What becomes of a scored group: it is dropped for a reason, or a row for the learner."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from actrep_ray.config import Recipe
from actrep_ray.records import LearnerRow, Refusal, RolloutGroup, RolloutStatus

FLAT = ("all_wrong", "all_right", "all_equal", "tied_best")
"""Reasons to drop a group whose answers the estimator cannot tell apart: it is flat."""

_SAME = 1e-6  # rewards that differ by less are equal
_SAME_NORMALISED = 1e-3  # likewise in units of a deviation, to which verl adds 1e-6


def drop_reason(group: RolloutGroup, recipe: Recipe) -> str | None:
    """Why a scored group is not trained on; None if it is.

    A group that the estimator of advantages makes zeros of says nothing about which answer is
    better and would only cost time. `all_wrong` and `all_right` tell a task that is too hard from
    one that is too easy; `all_equal` is any other tie, and with algorithm.advantage=grpo_passk a
    tie of the best two is `tied_best`. With algorithm.mask_truncated, `all_truncated` and (passk)
    `best_truncated` leave no token to train on. `too_hard` and `too_easy` are outside of
    train.pass_rate_window. All but the ties are of the totals: what an answer earned, whatever
    reward.combine makes of it.

    Args:
        group: With rewards and totals.
        recipe: Says how advantages are estimated and what is left out.
    """
    if group.failure:  # the reward pool counts these against reward.max_failures
        return group.failure
    return _tie(group, recipe) or _left_out(group, recipe)


def split_trainable(
    groups: Sequence[RolloutGroup], recipe: Recipe
) -> tuple[list[RolloutGroup], Counter[str]]:
    """Groups that are trained on, and how many are not, by `drop_reason`."""
    reasons = [drop_reason(group, recipe) for group in groups]
    trainable = [group for group, reason in zip(groups, reasons, strict=True) if reason is None]
    return trainable, Counter(reason for reason in reasons if reason is not None)


def with_failures(groups: Sequence[RolloutGroup], refused: Sequence[Refusal]) -> list[RolloutGroup]:
    """The groups, those of prompts that turned out unusable marked with the reason."""
    reasons = {one.prompt.prompt_id: one.reason for one in refused}
    return [
        replace(group, failure=reasons.get(group.prompt.prompt_id, group.failure))
        for group in groups
    ]


def _tie(group: RolloutGroup, recipe: Recipe) -> str | None:
    """How the answers are equal, if the estimator cannot tell one of them from the others."""
    cfg, compared, least = recipe.algorithm, group.rewards, _SAME
    if recipe.reward.combine == "per_reward":
        least = _SAME_NORMALISED
    if cfg.advantage == "gdpo":
        compared, least = _sum_of_normalised(group, recipe.reward.part_weights), _SAME_NORMALISED
    if np.ptp(compared) > least:
        second, best = np.sort(compared)[-2:]
        is_tied = cfg.advantage == "grpo_passk" and not best - second > least
        return "tied_best" if is_tied else None
    if group.totals.max() <= _SAME:
        return "all_wrong"
    return "all_right" if group.totals.min() >= 1.0 - _SAME else "all_equal"


def _left_out(group: RolloutGroup, recipe: Recipe) -> str | None:
    """Why a group whose answers differ is not trained on all the same."""
    cfg, window = recipe.algorithm, recipe.train.pass_rate_window
    if cfg.mask_truncated:
        is_cut = [rollout.status is RolloutStatus.TRUNCATED for rollout in group.rollouts]
        if all(is_cut):
            return "all_truncated"
        if cfg.advantage == "grpo_passk" and is_cut[int(group.rewards.argmax())]:
            return "best_truncated"
    if window is not None and group.totals.mean() < window[0]:
        return "too_hard"
    if window is not None and group.totals.mean() > window[1]:
        return "too_easy"
    return None


def _sum_of_normalised(group: RolloutGroup, weights: Mapping[str, float]) -> np.ndarray:
    """What GDPO compares: each part normalised in the group, weighed and summed. float [G]"""
    total = np.zeros(len(group.rewards))
    for name, values in group.reward_parts.items():
        if np.ptp(values) > 0:  # not of a part that applies to none: NaN
            spread = values.std(ddof=1, dtype=np.float64) + 1e-6
            total += weights[name] * (values - values.mean(dtype=np.float64)) / spread
    return total


def row_of(group: RolloutGroup) -> LearnerRow:
    """A group as the learner trains on it."""
    return LearnerRow(
        row_id=group.prompt.prompt_id,
        question=group.prompt.question,
        plan=group.prompt.plan,
        num_prompt_tokens=group.num_prompt_tokens,
        responses=tuple(rollout.token_ids for rollout in group.rollouts),
        advantages=group.advantages,
        rollout_log_probs=tuple(rollout.rollout_log_probs for rollout in group.rollouts),
        rewards=group.rewards,
        credit=group.credit,
        is_truncated=np.array([r.status is RolloutStatus.TRUNCATED for r in group.rollouts]),
    )

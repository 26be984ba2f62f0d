"""What becomes of a scored group: it is dropped for a reason, or a row for the learner."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from actrep_ray.records import LearnerRow, RolloutGroup, RolloutStatus


def drop_reason(group: RolloutGroup, window: tuple[float, float] | None = None) -> str | None:
    """Why a scored group is not trained on; None if it is.

    A group whose answers all earned the same has advantages of zero: it says nothing about which
    answer is better and would only cost time. `all_wrong` and `all_right` tell a task that is too
    hard from one that is too easy. `too_hard` and `too_easy` are outside of the window.

    Args:
        group: With rewards.
        window: Lowest and highest mean reward that is trained on (`train.pass_rate_window`).
    """
    if group.failure:  # the reward pool counts these against reward.max_failures
        return group.failure
    low, high = group.rewards.min(), group.rewards.max()
    if not high - low > 1e-6:
        if low <= 1e-6:
            return "all_wrong"
        return "all_right" if low >= 1.0 - 1e-6 else "all_equal"
    if window is not None:
        mean = float(group.rewards.mean())
        if mean < window[0]:
            return "too_hard"
        if mean > window[1]:
            return "too_easy"
    return None


def split_trainable(
    groups: Sequence[RolloutGroup], window: tuple[float, float] | None = None
) -> tuple[list[RolloutGroup], Counter[str]]:
    """Groups that are trained on, and how many are not, by `drop_reason`."""
    reasons = [drop_reason(group, window) for group in groups]
    trainable = [group for group, reason in zip(groups, reasons, strict=True) if reason is None]
    return trainable, Counter(reason for reason in reasons if reason is not None)


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
        is_truncated=np.array([r.status is RolloutStatus.TRUNCATED for r in group.rollouts]),
    )

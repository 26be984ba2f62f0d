"""All that a training step knows of counting: how right answers are, and what is shown of them.

The loops, their phases and the other metrics name no count; the sampler, which is about counts by
definition, is the one other place of this package that does.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from actrep_ray.records import Labels, RolloutGroup
from actrep_ray.run.metrics import MetricLogger
from data_prep.schema import Clip


def is_right(group: RolloutGroup, labels: Mapping[str, Labels]) -> np.ndarray:
    """Whether each answer of a scored group is exactly right. bool [G]"""
    count = labels[group.prompt.clip_id].count
    return np.array([found == count for found in group.counts])


def accuracy_metrics(
    groups: Sequence[RolloutGroup], labels: Mapping[str, Labels]
) -> dict[str, float]:
    """How right the answers were that could be scored, as `evaluation.scores` defines it."""
    pairs = [(c, labels[group.prompt.clip_id].count) for group in groups for c in group.counts]
    if not pairs:
        return {}
    errors = np.array([abs((count or 0) - truth) for count, truth in pairs])
    is_parsed = np.array([count is not None for count, _ in pairs])
    return {
        "train/mae": float(np.mean(errors / (np.array([truth for _, truth in pairs]) + 0.1))),
        "train/obo": float(np.mean(is_parsed & (errors <= 1))),
        "train/obz": float(np.mean(is_parsed & (errors == 0))),
        "train/parse_rate": float(is_parsed.mean()),
    }


def log_counts_of_data(logger: MetricLogger, clips: Sequence[Clip]) -> None:
    """Write the counts of a data set, as of step 0."""
    logger.histogram(0, "data/counts", [clip.count for clip in clips])


def describe_strata(num_clips: Mapping[str, int], weights: Mapping[str, float]) -> str:
    """How many clips each count stratum has, and which share of the draws it gets."""
    strata = (f"{name}: {num} ({weights.get(name, 0.0):.0%})" for name, num in num_clips.items())
    return f"clips by count (share of the draws): {', '.join(strata)}"


def log_counts(
    logger: MetricLogger,
    step: int,
    groups: Sequence[RolloutGroup],
    trainable: Sequence[RolloutGroup],
    labels: Mapping[str, Labels],
) -> None:
    """Write the counts that were issued and those that were trained on."""
    for key, some in (("sampling/counts", groups), ("trained/counts", trainable)):
        if some:
            logger.histogram(step, key, [labels[group.prompt.clip_id].count for group in some])


def describe_truth(label: Labels) -> str:
    """The right answer, for a person who reads a wrong one."""
    return f"true count {label.count}"

"""What a step writes down of its groups; of right answers it asks the task."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from actrep_ray.driver.contrast import contrast_metrics
from actrep_ray.driver.groups import FLAT
from actrep_ray.evaluation.answer_figures import answer_figures, answers_of
from actrep_ray.records import RolloutGroup, RolloutStatus
from actrep_ray.run.metrics import MetricLogger
from actrep_ray.tasks.base import Task, step_accuracy
from rewards.reference import Reference

_NUM_LOGGED_ROLLOUTS = 3


def rollout_metrics(
    groups: Sequence[RolloutGroup],
    trainable: Sequence[RolloutGroup],
    dropped: Counter[str],
    labels: Mapping[str, Reference],
    step: int,
    task: Task,
) -> dict[str, float]:
    """What a step's answers were like: rewards, accuracy, lengths, ages.

    `sampling/<stratum>` is how many groups were issued, `trained/<stratum>` how many were trained
    on: dynamic sampling keeps the second in the proportions of the first draw.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    totals = np.concatenate([group.totals for group in groups])
    lengths = np.array([len(rollout.token_ids) for rollout in rollouts])
    ages = [step - 1 - rollout.policy_version for rollout in rollouts]
    metrics = {
        "reward/mean": np.nanmean(totals),  # NaN where scoring failed
        "reward/std_in_group": np.nanmean([group.totals.std() for group in groups]),
        **accuracy_metrics(groups, labels, task),
        "rollout/response_tokens": lengths.mean(),
        "rollout/response_tokens_max": lengths.max(),
        "rollout/truncated": np.mean([r.status is RolloutStatus.TRUNCATED for r in rollouts]),
        "rollout/policy_version_lag": np.mean(ages),
        "dropped/groups": dropped.total(),
    }
    for name in groups[0].reward_parts:
        values = np.concatenate([group.reward_parts[name] for group in groups])
        if not np.isnan(values).all():
            metrics[f"reward/{name}"] = np.nanmean(values)
    metrics |= {f"dropped/{reason}": number for reason, number in dropped.items()}
    metrics |= contrast_metrics(groups, labels, task)
    metrics |= headroom_metrics(groups, trainable, dropped, labels, task)
    metrics["sampling/refilled"] = sum(group.prompt.num_refills > 0 for group in groups)
    issued = Counter(group.prompt.stratum for group in groups)
    trained = Counter(group.prompt.stratum for group in trainable)
    metrics |= {f"sampling/{stratum}": number for stratum, number in issued.items()}
    metrics |= {f"trained/{stratum}": trained[stratum] for stratum in issued}
    return {name: float(value) for name, value in metrics.items()}


def accuracy_metrics(
    groups: Sequence[RolloutGroup], labels: Mapping[str, Reference], task: Task
) -> dict[str, float]:
    """How right the answers were that could be scored."""
    pairs = [(c, labels[group.prompt.clip_id]) for group in groups for c in group.claims]
    claims, references = [written for written, _ in pairs], [known for _, known in pairs]
    accuracy = step_accuracy(claims, references, task)
    return {f"train/{name}": value for name, value in accuracy.items()}


def headroom_metrics(
    groups: Sequence[RolloutGroup],
    trainable: Sequence[RolloutGroup],
    dropped: Counter[str],
    labels: Mapping[str, Reference],
    task: Task,
) -> dict[str, float]:
    """What `actrep headroom` foretells of a step, measured; k of pass@k is the group size."""
    figures = answer_figures(answers_of(groups, labels, task), len(groups[0].rollouts))
    figures["flat"] = sum(dropped[reason] for reason in FLAT) / len(groups)
    figures["useful_groups"] = len(trainable)
    return {f"headroom/{name}": value for name, value in figures.items()}


def log_histograms(
    logger: MetricLogger, step: int, phase: str, references: Iterable[Reference], task: Task
) -> None:
    """Write what some clips are like, as the task tells it, under `phase/`."""
    for name, values in task.histograms(list(references)).items():
        if values:
            logger.histogram(step, f"{phase}/{name}", values)


def log_details(
    logger: MetricLogger,
    step: int,
    groups: Sequence[RolloutGroup],
    trainable: Sequence[RolloutGroup],
    labels: Mapping[str, Reference],
    task: Task,
) -> None:
    """Write what was issued and trained on as histograms, and the first answers as text."""
    for phase, some in (("sampling", groups), ("trained", trainable)):
        references = [labels[group.prompt.clip_id] for group in some]
        log_histograms(logger, step, phase, references, task)
    for i, group in enumerate(groups[:_NUM_LOGGED_ROLLOUTS]):
        rollout, truth = group.rollouts[0], task.describe_truth(labels[group.prompt.clip_id])
        head = f"{rollout.rollout_id}: {truth}, reward {group.totals[0]:.3f}"
        logger.text(step, f"rollout/{i}", f"{head}\n\n{rollout.text}")

"""How good several answers to the same prompt are together: what reinforcement starts from.

    pass@k      chance that at least one of k answers is right; unbiased from K >= k answers
                (Chen et al. 2021, arXiv 2107.03374, eq. 1)
    majority    chance that the most frequent answer is right (self-consistency, Wang et al. 2022,
                arXiv 2203.11171); answers that cannot be read have no vote, a tie is drawn from
    consistent  share of answers that claim one number wherever they claim one, as the task tells it
    blind       pass@1 of the same answers dealt to other prompts: what answers earn that know
                nothing of their clip but how often each count is right

`actrep headroom` computes them before a run, the driver in each step, `actrep evaluate --samples`
of held-out clips, all here. Pure numpy.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actrep_ray.evaluation.intervals import Interval, mean_intervals
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.evaluation.voting import most_frequent
from actrep_ray.records import Reading, RolloutGroup
from actrep_ray.tasks.base import Task, told_figures
from rewards.reference import Reference

_CONSISTENT = "consistent"  # a task's figure of that name, if it has one and answers claim enough


@dataclass(frozen=True)
class Answers:
    """The answers to one prompt, read and judged.

    Attributes:
        readings: What each says; None where it cannot be read. [K]
        is_right: Which are right. bool [K]
        truth: The right reading.
        is_consistent: Which claim one number; None where that cannot be told. bool [K]
    """

    readings: tuple[Reading | None, ...]
    is_right: np.ndarray
    truth: Reading
    is_consistent: np.ndarray | None = None

    @property
    def num_right(self) -> int:
        """How many are right."""
        return int(self.is_right.sum())


@dataclass(frozen=True)
class ReadingRow:
    """One reading, over all answers: a count that is never given shows here.

    Attributes:
        reading: For example a count.
        num_prompts: Prompts that it is right for.
        num_answers: Answers that give it, right or wrong.
        num_right: Those of them that are right.
    """

    reading: Reading
    num_prompts: int
    num_answers: int
    num_right: int

    @property
    def is_never_answered(self) -> bool:
        """Whether it is right for some prompt and no answer to any prompt gives it."""
        return self.num_prompts > 0 and self.num_answers == 0


def answers_of(
    groups: Sequence[RolloutGroup], labels: Mapping[str, Reference], task: Task
) -> list[Answers]:
    """The answers of each scored group, as the task judges them.

    Args:
        groups: Groups with readings; those whose scoring failed have none and are left out.
        labels: By clip id.
        task: Says what is right.
    """
    scored = [group for group in groups if group.readings]
    asked = []
    for group, is_consistent in zip(scored, _consistent(scored, labels, task), strict=True):
        known = labels[group.prompt.clip_id]
        is_right = task.is_right(group.readings, known)
        asked.append(Answers(group.readings, is_right, task.truth(known), is_consistent))
    return asked


def sampled_answers(
    predictions: Sequence[Prediction], labels: Mapping[str, Reference], task: Task
) -> list[Answers]:
    """The samples of each prediction, as the task judges them.

    Args:
        predictions: With samples.
        labels: By clip id.
        task: Says what is right.
    """
    asked = []
    for one in predictions:
        readings, known = tuple(s.reading for s in one.samples), labels[one.clip_id]
        asked.append(Answers(readings, task.is_right(readings, known), task.truth(known)))
    return asked


def _consistent(
    groups: Sequence[RolloutGroup], labels: Mapping[str, Reference], task: Task
) -> Sequence[np.ndarray | None]:
    """Which answers of each group claim one number. bool [K] each"""
    claims = [written for group in groups for written in group.claims]
    if not any(figure.name == _CONSISTENT for figure in told_figures(claims, task)):
        return [None] * len(groups)
    known = [labels[group.prompt.clip_id] for group in groups for _ in group.claims]
    ends = np.cumsum([len(group.claims) for group in groups])
    values = task.contributions(claims, known)[_CONSISTENT] > 0
    return np.split(values, ends[:-1])


def pass_at_k(num_answers: int, num_right: int, k: int) -> float:
    """Unbiased chance that one of k answers is right: 1 - C(n - c, k) / C(n, k).

    Args:
        num_answers: n, answers that there are.
        num_right: c, those that are right.
        k: Answers that are drawn from them.

    Raises:
        ValueError: unless 0 <= num_right <= num_answers and 1 <= k <= num_answers.
    """
    if not (0 <= num_right <= num_answers and 1 <= k <= num_answers):
        raise ValueError(
            f"pass@{k} of {num_right} right answers in {num_answers}: expected at most as many "
            "right ones, and a k from 1 to the number of answers"
        )
    if num_answers - num_right < k:
        return 1.0
    # The quotient of the binomials, factor by factor: no factorial overflows.
    factors = 1.0 - k / np.arange(num_answers - num_right + 1, num_answers + 1)
    return float(1.0 - np.prod(factors))


def majority(answers: Answers) -> float:
    """Chance that the most frequent reading is right; 0 where nothing can be read."""
    winners = most_frequent(answers.readings)
    if not winners:
        return 0.0
    right = {r for r, is_right in zip(answers.readings, answers.is_right, strict=True) if is_right}
    return sum(winner in right for winner in winners) / len(winners)


def figures_by_prompt(asked: Sequence[Answers], k: int) -> dict[str, np.ndarray]:
    """`pass_at_1`, `pass_at_k`, `majority`, `parse_rate` and, if it can be told, `consistent`.

    float64 [N] each, for N prompts.

    Args:
        asked: N prompts with at least k answers each.
        k: Of pass@k.
    """
    columns = {
        "pass_at_1": [one.is_right.mean() for one in asked],
        "pass_at_k": [pass_at_k(len(one.readings), one.num_right, k) for one in asked],
        "majority": [majority(one) for one in asked],
        "parse_rate": [np.mean([r is not None for r in one.readings]) for one in asked],
    }
    told = [one.is_consistent for one in asked if one.is_consistent is not None]
    if len(told) == len(asked):
        columns[_CONSISTENT] = [values.mean() for values in told]
    return {name: np.array(column, np.float64) for name, column in columns.items()}


def answer_figures(asked: Sequence[Answers], k: int) -> dict[str, float]:
    """The means of `figures_by_prompt` over the prompts; empty without any."""
    if not asked:
        return {}
    return {name: float(column.mean()) for name, column in figures_by_prompt(asked, k).items()}


def pass_curve(asked: Sequence[Answers]) -> dict[int, float]:
    """pass@k for the k of `shown_ks`, by k."""
    ks = shown_ks(min(len(one.readings) for one in asked))
    return {k: answer_figures(asked, k)["pass_at_k"] for k in ks}


def shown_ks(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself: the k of pass@k that are shown of so many answers."""
    return sorted({*(2**i for i in range(most.bit_length()) if 2**i <= most), most})


def pass_at_each_k(
    asked: Sequence[Answers], *, num_bootstrap: int, seed: int
) -> dict[int, Interval]:
    """pass@k with its interval over prompts, for each k from 1 to the answers that all have.

    Args:
        asked: At least one prompt.
        num_bootstrap: Resamples of the intervals.
        seed: Of the resamples.
    """
    ks = range(1, min(len(one.readings) for one in asked) + 1)
    columns = {
        str(k): np.array([pass_at_k(len(one.readings), one.num_right, k) for one in asked])
        for k in ks
    }
    found = mean_intervals(columns, num_bootstrap=num_bootstrap, seed=seed)
    return {k: found[str(k)] for k in ks}


def blind_by_prompt(asked: Sequence[Answers]) -> np.ndarray:
    """What share of the answers to all other prompts would be right for each one. float64 [N]

    NaN for a single prompt.
    """
    given = Counter(reading for one in asked for reading in one.readings)
    num_answers = given.total()
    shares = []
    for one in asked:
        num_others = num_answers - len(one.readings)
        num_right = given[one.truth] - one.readings.count(one.truth)
        shares.append(num_right / num_others if num_others else np.nan)
    return np.array(shares, np.float64)


def reading_rows(asked: Sequence[Answers]) -> list[ReadingRow]:
    """A row for each reading that is right for some prompt or that some answer gives, in order."""
    truths = Counter(one.truth for one in asked)
    given = Counter(r for one in asked for r in one.readings if r is not None)
    right = Counter(
        reading
        for one in asked
        for reading, is_right in zip(one.readings, one.is_right, strict=True)
        if is_right and reading is not None
    )
    order = sorted(truths | given, key=lambda reading: (isinstance(reading, str), reading))
    return [ReadingRow(one, truths[one], given[one], right[one]) for one in order]

"""Where a change in exact counts comes from: from seeing more, or from telling what was seen.

The list of repetitions is what a model shows of its counting; the answer reads it off. With, for
one clip, E: the answer is the true count; L: as many repetitions are listed; R: the answer can be
read; P: L, and each listed repetition matches the annotated one at its place (`rewards.cycles`; of
clips without marks nobody knows, and P is false)::

    E = P  +  (L - P)  -  (L and not R)  -  (L and R and not E)  +  (E and not L)
        │      │           │                │                       └─ right answers beside a wrong
        │      │           │                │                          list
        │      │           │                └─ right lists that the answer does not repeat
        │      │           └─ right lists whose answer cannot be read
        │      └─ lists of the right length, their cycles elsewhere (or without marks to compare)
        └─ cycles in the right place

Read from left to right it is one sequence, in which each term corrects those before it: P + (L - P)
is exact by list; less the lists whose answer cannot be read, or says something else; plus what was
answered right without a list for it. It holds for each clip, so the changes of the five means add
up to the change in exact; no term depends on an order of the two files or on a model of chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actrep_ray.evaluation.intervals import Interval, Take, bootstrap_intervals
from actrep_ray.evaluation.predictions import Prediction, claims_of
from actrep_ray.tasks.base import Task
from actrep_ray.tasks.counting import ANSWER, LIST
from rewards.cycles import best_matching, close_pairs
from rewards.reference import Reference

TERMS = {
    "in_place": "cycles in the right place",
    "elsewhere": "right length, cycles elsewhere",
    "unread": "right list, answer unreadable",
    "not_repeated": "right list, answer differs",
    "beside": "right answer, wrong list",
}
"""What exact by answer is the sum of, in order; the third and the fourth are negative."""


@dataclass(frozen=True)
class Gain:
    """A change in exact by answer, split.

    Attributes:
        before: Mean of each of `TERMS`; they add up to exact before.
        after: The same after.
        change: Of each term, with its interval by paired bootstrap.
        total: The change in exact, likewise; the sum of all terms.
    """

    before: dict[str, float]
    after: dict[str, float]
    change: dict[str, Interval]
    total: Interval


def split_gain(
    before: Sequence[Prediction],
    after: Sequence[Prediction],
    labels: Mapping[str, Reference],
    task: Task,
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> Gain | None:
    """Split the change in exact from one set of predictions to another of the same clips.

    Args:
        before: One for each clip of `labels`.
        after: Likewise, in any order.
        labels: By clip id.
        task: The counting task, as the predictions were read by it.
        num_bootstrap: Resamples of the intervals; both sets are resampled together.
        seed: Of the resamples.

    Returns:
        None where neither set lists anything: there is nothing that an answer could be read off.
    """
    by_id = {p.clip_id: p for p in after}
    pairs = [(p, by_id[p.clip_id]) for p in before]
    claims = [claims_of(p, task) for pair in pairs for p in pair]
    if not any(made.get(LIST) for made in claims):
        return None
    tables = [
        np.array([_terms(p, labels[p.clip_id], task) for p in side])
        for side in zip(*pairs, strict=True)
    ]
    first, second = (np.column_stack([table, table.sum(axis=1)]) for table in tables)

    def change(take: Take) -> np.ndarray:
        found: np.ndarray = take(second - first).mean(axis=-2)
        return found

    *changes, total = bootstrap_intervals(
        change, len(pairs), num_bootstrap=num_bootstrap, seed=seed
    )
    means = [dict(zip(TERMS, table.mean(axis=0).tolist(), strict=True)) for table in tables]
    return Gain(means[0], means[1], dict(zip(TERMS, changes, strict=True)), total)


def _terms(prediction: Prediction, reference: Reference, task: Task) -> tuple[float, ...]:
    """What one answer adds to each term, in the order of `TERMS`."""
    claims, truth = claims_of(prediction, task), task.truth(reference)
    answer = claims.get(ANSWER)
    is_exact, is_listed = answer == truth, claims.get(LIST) == truth
    is_placed = is_listed and _is_placed(prediction, reference)
    return (
        float(is_placed),
        float(is_listed and not is_placed),
        0.0 - float(is_listed and answer is None),
        0.0 - float(is_listed and answer is not None and not is_exact),
        float(is_exact and not is_listed),
    )


def _is_placed(prediction: Prediction, reference: Reference) -> bool:
    """Whether a list of the right length matches the marks one by one; nothing is in its place."""
    if not reference.cycles or not prediction.cycles:
        return not reference.count and not prediction.cycles
    close = close_pairs(prediction.cycles, reference.cycles)
    return best_matching(close.astype(np.float64)) == len(reference.cycles)

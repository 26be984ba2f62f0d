"""Scoring of predictions: a task's figures with intervals, over all clips and by its breakdowns.

What an answer adds to a figure is the task's (`Task.contributions`); here it is averaged. Shares
have Wilson intervals, the others bootstrap intervals over clips. The figures over the readable
answers alone stand beside those over all.

Comparing two predictors on the same clips is a bootstrap that draws the clips once for both
(`paired_difference`): far narrower than the two intervals suggest.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from actrep_ray.evaluation.intervals import (
    Interval,
    Take,
    bootstrap_intervals,
    wilson_interval,
)
from actrep_ray.evaluation.predictions import NOT_SURE, Prediction, claims_of
from actrep_ray.tasks.base import PARSE_RATE, FigureSpec, Task, reduce_figures, told_figures
from data_prep.files import DataError
from rewards.reference import Reference

_CERTAIN = Interval(1.0, 1.0, 1.0, "definition")

Cell = TypeVar("Cell", bound=Hashable)


@dataclass(frozen=True)
class Figures:
    """Figures over some clips.

    Attributes:
        num_clips: How many.
        values: Each figure of the task that can be told (`told_figures`) with its interval, by
            name.
    """

    num_clips: int
    values: dict[str, Interval]

    def __getitem__(self, name: str) -> Interval:
        return self.values[name]

    def to_json(self) -> dict[str, Any]:
        """The figures beside `num_clips`, as JSON-able values."""
        return {
            "num_clips": self.num_clips,
            **{name: asdict(interval) for name, interval in self.values.items()},
        }


@dataclass(frozen=True)
class Metrics(Figures):
    """Figures over all clips and by each breakdown of the task.

    Attributes:
        parsed_only: Over the clips with a readable answer; None if there is none.
        breakdowns: By name of the breakdown and cell; cells with clips, in the order to show.
        histogram: How often each reading was given, rising, then "not sure" and "unparsed" where
            there are any.
    """

    parsed_only: Figures | None
    breakdowns: dict[str, dict[str, Figures]]
    histogram: dict[str, int]

    def as_dict(self, phase: str) -> dict[str, float]:
        """The overall values as metrics of a step: `phase/mae`, ... and the interval's ends."""
        values: dict[str, float] = {f"{phase}/num_clips": float(self.num_clips)}
        for name, interval in self.values.items():
            values[f"{phase}/{name}"] = interval.value
            values[f"{phase}/{name}_low"] = interval.low
            values[f"{phase}/{name}_high"] = interval.high
        return values

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON-able values."""
        return {
            **super().to_json(),
            "parsed_only": None if self.parsed_only is None else self.parsed_only.to_json(),
            **{
                name: {cell: figures.to_json() for cell, figures in cells.items()}
                for name, cells in self.breakdowns.items()
            },
            "histogram": dict(self.histogram),
        }


def score_predictions(
    predictions: Sequence[Prediction],
    labels: Mapping[str, Reference],
    task: Task,
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> Metrics:
    """Score one predictor on labelled clips.

    Args:
        predictions: One for each clip of `labels`.
        labels: By clip id: the clips that were to be answered, no more.
        task: Says what the figures and breakdowns are.
        num_bootstrap: Resamples of the intervals of what is no share.
        seed: Of the resamples.

    Raises:
        ValueError: if a clip has no prediction, two, or no label: a row that vanishes would make
            a predictor look better than it is.
    """
    table = _Table.of(predictions, labels, task)
    truth = [labels[p.clip_id] for p in predictions]
    breakdowns = {}
    for breakdown in task.breakdowns:
        of_clips = [breakdown.cell_of(known) for known in truth]
        cells = table.by_cell(of_clips, num_bootstrap, seed)
        breakdowns[breakdown.name] = {cell: cells[cell] for cell in breakdown.sort(cells)}
    overall = table.reduced(num_bootstrap, seed)
    parsed = None
    if table.is_parsed.any():
        parsed = table.select(table.is_parsed).reduced(num_bootstrap, seed)
        parsed = replace(parsed, values={**parsed.values, PARSE_RATE.name: _CERTAIN})
    return Metrics(
        num_clips=overall.num_clips,
        values=overall.values,
        parsed_only=parsed,
        breakdowns=breakdowns,
        histogram=reading_histogram(predictions),
    )


def score_cells(
    predictions: Sequence[Prediction],
    labels: Mapping[str, Reference],
    cells: Mapping[str, Cell],
    task: Task,
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[Cell, Figures]:
    """Figures over the clips of each cell, for example of an action and a bin.

    Args:
        predictions: One for each clip of `labels`.
        labels: By clip id.
        cells: What each clip is counted under, by clip id.
        task: Says what the figures are.
        num_bootstrap: Resamples of the intervals of what is no share.
        seed: Of the resamples.

    Raises:
        ValueError: as `score_predictions` does.
    """
    table = _Table.of(predictions, labels, task)
    return table.by_cell([cells[p.clip_id] for p in predictions], num_bootstrap, seed)


def paired_difference(
    before: Sequence[Prediction],
    after: Sequence[Prediction],
    labels: Mapping[str, Reference],
    task: Task,
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """How much each figure changed, `after` minus `before`, with paired bootstrap intervals.

    Both are resampled together, clip by clip. Negative is better where the figure is an error. What
    can be told of either is told of both: a list that is no longer written is wrong.

    Raises:
        ValueError: if either does not answer exactly the clips of `labels`.
    """
    by_id = {p.clip_id: p for p in after}
    if missing := [p.clip_id for p in before if p.clip_id not in by_id]:
        raise DataError(f"clip {missing[0]!r} is answered before and not after")
    for predictions in (before, after):
        _check_ids(predictions, labels)
    figures = told_figures([claims_of(p, task) for p in (*before, *after)], task)
    first = _Table.of(before, labels, task, figures)
    second = _Table.of([by_id[p.clip_id] for p in before], labels, task, figures)

    def difference(take: Take) -> np.ndarray:
        gain: np.ndarray = second.reduce(take) - first.reduce(take)
        return gain

    intervals = bootstrap_intervals(
        difference, len(first.values), num_bootstrap=num_bootstrap, seed=seed
    )
    return {figure.name: one for figure, one in zip(figures, intervals, strict=True)}


def remarks_on(figures: Figures, task: Task) -> tuple[str, ...]:
    """What a task has to say about figures, which a reader of the first ones would miss."""
    return task.remarks({name: interval.value for name, interval in figures.values.items()})


def reading_histogram(predictions: Sequence[Prediction]) -> dict[str, int]:
    """How often each reading was given, rising; "not sure" and "unparsed" at the end."""
    readings = Counter(p.reading for p in predictions if p.reading is not None)
    histogram = {str(r): readings[r] for r in sorted(readings)}
    missing = Counter(
        "not sure" if p.problem == NOT_SURE else "unparsed"
        for p in predictions
        if p.reading is None
    )
    return histogram | {name: missing[name] for name in sorted(missing)}


# --- the numbers behind it


@dataclass(frozen=True)
class _Table:
    """What each clip adds to the figures.

    Attributes:
        values: float64 [N, F], columns in the order of the figures.
        is_parsed: Which answers can be read. bool [N]
        figures: F of the task's.
    """

    values: np.ndarray
    is_parsed: np.ndarray
    figures: Sequence[FigureSpec]

    @classmethod
    def of(
        cls,
        predictions: Sequence[Prediction],
        labels: Mapping[str, Reference],
        task: Task,
        figures: tuple[FigureSpec, ...] | None = None,
    ) -> "_Table":
        """The table of some predictions; of those figures that can be told if none are given."""
        _check_ids(predictions, labels)
        claims = [claims_of(p, task) for p in predictions]
        figures = figures or told_figures(claims, task)
        columns = task.contributions(claims, [labels[p.clip_id] for p in predictions])
        values = np.stack([columns[figure.name] for figure in figures], axis=1)
        return cls(values, columns[PARSE_RATE.name] > 0, figures)

    def select(self, where: np.ndarray) -> "_Table":
        """Some of the clips, by a bool [N] or by their indices."""
        return _Table(self.values[where], self.is_parsed[where], self.figures)

    def by_cell(self, cells: Sequence[Cell], num_bootstrap: int, seed: int) -> dict[Cell, Figures]:
        """The figures of each cell, in the order in which cells are first seen."""
        rows: dict[Cell, list[int]] = {}
        for row, cell in enumerate(cells):
            rows.setdefault(cell, []).append(row)
        return {
            cell: self.select(np.array(chosen)).reduced(num_bootstrap, seed)
            for cell, chosen in rows.items()
        }

    def reduce(self, take: Take) -> np.ndarray:
        """The figures of the clips that are drawn. float64 [..., F]"""
        return reduce_figures(take(self.values), self.figures)

    def reduced(self, num_bootstrap: int, seed: int) -> Figures:
        """The figures with their intervals."""
        num_clips = len(self.values)
        no_shares = [i for i, figure in enumerate(self.figures) if not figure.is_share]
        rest = replace(
            self, values=self.values[:, no_shares], figures=[self.figures[i] for i in no_shares]
        )
        bootstrapped = iter(
            bootstrap_intervals(rest.reduce, num_clips, num_bootstrap=num_bootstrap, seed=seed)
            if no_shares
            else ()
        )
        intervals = {}
        for figure, column in zip(self.figures, self.values.T, strict=True):
            if figure.is_share:
                intervals[figure.name] = wilson_interval(int(column.sum()), num_clips)
            else:
                intervals[figure.name] = next(bootstrapped)
        return Figures(num_clips, intervals)


def _check_ids(predictions: Sequence[Prediction], labels: Mapping[str, Reference]) -> None:
    if not predictions:
        raise DataError("no predictions to score")
    ids = Counter(p.clip_id for p in predictions)
    if doubled := [name for name, number in ids.items() if number > 1]:
        raise DataError(f"clip {doubled[0]!r} has {ids[doubled[0]]} predictions, expected one")
    if unknown := [name for name in ids if name not in labels]:
        raise DataError(f"clip {unknown[0]!r} has a prediction and no label")
    if missing := [name for name in labels if name not in ids]:
        raise DataError(
            f"clip {missing[0]!r} has no prediction (and {len(missing) - 1} more): every clip "
            "that was to be answered counts"
        )

"""Scoring of counts: errors with intervals, by count and by action.

With p the predicted and g the true count of a clip (RepNet and QUVA report OBO *error*; here higher
is better, as in TransRAC)::

    MAE   mean of |p - g| / (g + 0.1)       OBO   share with |p - g| <= 1
    RMSE  square root of mean (p - g)^2     OBZ   share with p = g ("exact")

An answer without a readable count is wrong in OBO and OBZ and counts as p = 0 in MAE and RMSE. The
parse rate and the figures over the readable answers alone stand beside it.

Shares (OBO, OBZ, parse rate) have Wilson intervals, MAE and RMSE bootstrap intervals over clips.
Comparing two predictors on the same clips is a bootstrap that draws the clips once for both
(`paired_difference`): far narrower than the two intervals suggest.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from actrep_ray.evaluation.intervals import (
    Interval,
    Take,
    bootstrap_intervals,
    wilson_interval,
)
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.records import Labels
from data_prep.files import DataError
from data_prep.strata import BINS, stratum_of

FIGURES = ("mae", "obo", "obz", "rmse", "parse_rate")
SHARES = ("obo", "obz", "parse_rate")
LOWER_IS_BETTER = frozenset({"mae", "rmse"})
HEADERS = {
    "mae": "MAE ↓",
    "obo": "OBO ↑",
    "obz": "exact ↑",
    "rmse": "RMSE ↓",
    "parse_rate": "parsed ↑",
}
INTERVALS_TOLD = "OBO, exact and parsed: Wilson; MAE and RMSE: bootstrap over clips"

_MAE_OFFSET = 0.1  # keeps g = 0 defined; the value of the published metrics
_CERTAIN = Interval(1.0, 1.0, 1.0, "definition")

Cell = TypeVar("Cell", bound=Hashable)


@dataclass(frozen=True)
class Figures:
    """Figures over some clips.

    Attributes:
        num_clips: How many.
        mae: Mean error, relative to g + 0.1; lower is better.
        obo: Share of clips within one; higher is better.
        obz: Share of clips that are exact; higher is better.
        rmse: Root of the mean squared error, in repetitions; lower is better.
        parse_rate: Share of answers with a readable count.
    """

    num_clips: int
    mae: Interval
    obo: Interval
    obz: Interval
    rmse: Interval
    parse_rate: Interval


@dataclass(frozen=True)
class CountMetrics(Figures):
    """Figures over all clips, by bin of the count, and by action.

    Attributes:
        parsed_only: Over the clips with a readable answer; None if there is none.
        bins: By bin of the true count ("0", "1-5", ..., "41+"), those with clips.
        actions: By action, in alphabetical order.
        histogram: How often each count was predicted, rising, then "unparsed" if there is any.
    """

    parsed_only: Figures | None
    bins: dict[str, Figures]
    actions: dict[str, Figures]
    histogram: dict[str, int]

    def as_dict(self, phase: str) -> dict[str, float]:
        """The overall values as metrics of a step: `phase/mae`, ... and the interval's ends."""
        values: dict[str, float] = {f"{phase}/num_clips": float(self.num_clips)}
        for name in FIGURES:
            interval = getattr(self, name)
            values[f"{phase}/{name}"] = interval.value
            values[f"{phase}/{name}_low"] = interval.low
            values[f"{phase}/{name}_high"] = interval.high
        return values

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON-able values; `metrics_of_json` reads it back."""
        return asdict(self)


def score_predictions(
    predictions: Sequence[Prediction],
    labels: Mapping[str, Labels],
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> CountMetrics:
    """Score one predictor on labelled clips.

    Args:
        predictions: One for each clip of `labels`.
        labels: By clip id: the clips that were to be answered, no more.
        num_bootstrap: Resamples of the intervals of MAE and RMSE.
        seed: Of the resamples.

    Raises:
        ValueError: if a clip has no prediction, two, or no label: a row that vanishes would make
            a predictor look better than it is.
    """
    table = _Table.of(predictions, labels)
    truth = [labels[p.clip_id] for p in predictions]
    bins = table.by([stratum_of(known.count, BINS).name for known in truth], num_bootstrap, seed)
    actions = table.by([known.action for known in truth], num_bootstrap, seed)
    overall = table.figures(num_bootstrap, seed)
    parsed = None
    if table.is_parsed.any():
        parsed = table.select(table.is_parsed).figures(num_bootstrap, seed)
        parsed = replace(parsed, parse_rate=_CERTAIN)
    return CountMetrics(
        **{f.name: getattr(overall, f.name) for f in fields(Figures)},
        parsed_only=parsed,
        bins={stratum.name: bins[stratum.name] for stratum in BINS if stratum.name in bins},
        actions={name: actions[name] for name in sorted(actions)},
        histogram=count_histogram(predictions),
    )


def score_cells(
    predictions: Sequence[Prediction],
    labels: Mapping[str, Labels],
    cells: Mapping[str, Cell],
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[Cell, Figures]:
    """Figures over the clips of each cell, for example of an action and a bin.

    Args:
        predictions: One for each clip of `labels`.
        labels: By clip id.
        cells: What each clip is counted under, by clip id.
        num_bootstrap: Resamples of the intervals of MAE and RMSE.
        seed: Of the resamples.

    Raises:
        ValueError: as `score_predictions` does.
    """
    table = _Table.of(predictions, labels)
    return table.by([cells[p.clip_id] for p in predictions], num_bootstrap, seed)


def paired_difference(
    before: Sequence[Prediction],
    after: Sequence[Prediction],
    labels: Mapping[str, Labels],
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """How much each figure changed, `after` minus `before`, with paired bootstrap intervals.

    Both are resampled together, clip by clip. Negative is better for mae and rmse, positive for
    obo, obz and parse_rate.

    Raises:
        ValueError: if either does not answer exactly the clips of `labels`.
    """
    first = _Table.of(before, labels)
    by_id = {p.clip_id: p for p in after}
    if missing := [p.clip_id for p in before if p.clip_id not in by_id]:
        raise DataError(f"clip {missing[0]!r} is answered before and not after")
    _check_ids(after, labels)
    second = _Table.of([by_id[p.clip_id] for p in before], labels)

    def difference(take: Take) -> np.ndarray:
        return _reduce(take(second.values)) - _reduce(take(first.values))

    intervals = bootstrap_intervals(
        difference, len(first.values), num_bootstrap=num_bootstrap, seed=seed
    )
    return dict(zip(FIGURES, intervals, strict=True))


def count_histogram(predictions: Sequence[Prediction]) -> dict[str, int]:
    """How often each count was predicted, rising; "unparsed" at the end."""
    counts = Counter(p.count for p in predictions)
    histogram = {str(c): counts[c] for c in sorted(c for c in counts if c is not None)}
    return histogram | ({"unparsed": counts[None]} if None in counts else {})


def metrics_of_json(row: Mapping[str, Any]) -> CountMetrics:
    """Read what `CountMetrics.to_json` gave."""

    def figures(values: Mapping[str, Any]) -> dict[str, Any]:
        intervals = {name: Interval(**values[name]) for name in FIGURES}
        return {"num_clips": values["num_clips"], **intervals}

    def by(values: Mapping[str, Any]) -> dict[str, Figures]:
        return {name: Figures(**figures(value)) for name, value in values.items()}

    parsed = row["parsed_only"]
    return CountMetrics(
        **figures(row),
        parsed_only=None if parsed is None else Figures(**figures(parsed)),
        bins=by(row["bins"]),
        actions=by(row["actions"]),
        histogram=dict(row["histogram"]),
    )


# --- the numbers behind it


@dataclass(frozen=True)
class _Table:
    """What each clip adds to the figures: float64 [N, 5], in the order of `FIGURES`.

    The fourth column is the SQUARED error; its mean is under a root.
    """

    values: np.ndarray

    @classmethod
    def of(cls, predictions: Sequence[Prediction], labels: Mapping[str, Labels]) -> "_Table":
        _check_ids(predictions, labels)
        truth = np.array([labels[p.clip_id].count for p in predictions], np.float64)
        counts = np.array([0 if p.count is None else p.count for p in predictions], np.float64)
        is_parsed = np.array([p.count is not None for p in predictions])
        error = np.abs(counts - truth)
        columns = (
            error / (truth + _MAE_OFFSET),
            is_parsed & (error <= 1),
            is_parsed & (error == 0),
            error**2,
            is_parsed,
        )
        return cls(np.stack([np.asarray(column, np.float64) for column in columns], axis=1))

    @property
    def is_parsed(self) -> np.ndarray:
        """bool [N]"""
        return self.values[:, 4] == 1

    def select(self, where: np.ndarray) -> "_Table":
        """Some of the clips, by a bool [N] or by their indices."""
        return _Table(self.values[where])

    def by(self, cells: Sequence[Cell], num_bootstrap: int, seed: int) -> dict[Cell, Figures]:
        """The figures of each cell, in the order in which cells are first seen."""
        rows: dict[Cell, list[int]] = {}
        for row, cell in enumerate(cells):
            rows.setdefault(cell, []).append(row)
        return {
            cell: self.select(np.array(chosen)).figures(num_bootstrap, seed)
            for cell, chosen in rows.items()
        }

    def figures(self, num_bootstrap: int, seed: int) -> Figures:
        """The figures with their intervals."""

        def reduce(take: Take) -> np.ndarray:
            return _reduce(take(self.values))

        num_clips = len(self.values)
        bootstrapped = bootstrap_intervals(
            reduce, num_clips, num_bootstrap=num_bootstrap, seed=seed
        )
        intervals = dict(zip(FIGURES, bootstrapped, strict=True))
        for name in SHARES:
            num_right = int(self.values[:, FIGURES.index(name)].sum())
            intervals[name] = wilson_interval(num_right, num_clips)
        return Figures(num_clips, **intervals)


def _reduce(values: np.ndarray) -> np.ndarray:
    """Figures of clips [..., N, 5] -> [..., 5]."""
    means = values.mean(axis=-2)
    means[..., 3] = np.sqrt(means[..., 3])
    return means


def _check_ids(predictions: Sequence[Prediction], labels: Mapping[str, Labels]) -> None:
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

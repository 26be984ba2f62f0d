"""The tables of an evaluation as pandas data frames: which rows and columns they have.

    predictors     one row for each predictor
    differences    one row for each pair of predictors and figure, with a verdict
    gains          one row for each pair of predictors and term that a change in exact is split into
    pass_at        one row for each predictor that was sampled and k: chance that one of k is right
    counts         one row for each predictor and count that is true or was answered
    cells          one row for each cell of one breakdown, or for all answers and the parsed ones
    readings       one row for each reading that was given
    breakdown      one row for each predictor, data set and cell of the task's breakdowns (of
                   counting: action and bin of the true count)
    conditions     one row for each predictor and cell of one property of a clip alone: data set,
                   true count, length, mean length of a repetition, frames a second of the file
    errors         one row for each predictor: the mean error in the ways that papers print it
    matrix         one row for each predictor, with columns `D clips` and `D F` of each data set D

A frame holds texts, then numbers: of figure F its value `F` and the ends of its 95% interval,
`F_low` and `F_high`. One clip has no bootstrap interval: these ends are NaN, and so is all of a
figure that cannot be told of a predictor. `tables` renders frames for the console and the page,
`frame_files` for files.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from actrep_ray.evaluation.gain import TERMS, Gain
from actrep_ray.evaluation.intervals import Interval, Take, bootstrap_intervals
from actrep_ray.evaluation.predictions import Prediction, claims_of
from actrep_ray.evaluation.scores import Figures, Metrics, reading_histogram, score_cells
from actrep_ray.tasks.base import PARSE_RATE, FigureSpec, Task, labels_of
from actrep_ray.tasks.counting import ANSWER, LIST
from data_prep.rows import Row
from data_prep.schema import Clip
from data_prep.strata import BINS, stratum_of
from rewards.reference import Reference

ENDS = ("_low", "_high")
VERDICTS = ("better", "worse", "not sure")

ERRORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mae": lambda truth: truth + 0.1,
    "mae_max1": lambda truth: np.maximum(truth, 1.0),
    "mae_raw": np.ones_like,
}
"""What |p - g| is divided by: as RepCount's MAE, at least 1 (for counts of 0), or nothing."""


def method_of(figure: FigureSpec | None) -> str:
    """Where the interval of a figure comes from, in a word; None is a paired difference."""
    return "Wilson" if figure is not None and figure.is_share else "bootstrap"


def predictors_frame(metrics: Mapping[str, Metrics]) -> pd.DataFrame:
    """The figures of each predictor over all clips."""
    return pd.DataFrame([{"predictor": clean(name), **_numbers(m)} for name, m in metrics.items()])


def differences_frame(
    differences: Mapping[str, Mapping[str, Interval]], task: Task
) -> pd.DataFrame:
    """What changed from predictor to predictor in each figure, with paired intervals."""
    rows = []
    for pair, intervals in differences.items():
        for figure in task.figures:
            if figure.name not in intervals:
                continue
            named = {"predictors": clean(pair), "figure": figure.name}
            change = _ends("change", intervals[figure.name])
            rows.append({**named, **change, "verdict": verdict_on(figure, intervals, task)})
    return pd.DataFrame(rows)


def verdict_on(figure: FigureSpec, intervals: Mapping[str, Interval], task: Task) -> str:
    """Whether a figure is better, worse, or nobody can be sure.

    Better is what is better by the answer and by each claim that is needed for it: an answer that
    is right more often beside a list that is not would be a better answer and no better counting.
    Where one of them is not better, the verdict says by which.
    """
    own = _verdict(figure, intervals[figure.name])
    of_answer = figure.twin or figure.name
    needed = [
        other
        for other in task.figures
        if other.name in intervals
        and (other.name == of_answer or (other.twin == of_answer and other.is_needed))
    ]
    lacking = [other for other in needed if _verdict(other, intervals[other.name]) != VERDICTS[0]]
    if own != VERDICTS[0] or not lacking:
        return own
    return f"not by {' and '.join(lacking[0].by) or 'answer'}"


def gains_frame(gains: Mapping[str, Gain]) -> pd.DataFrame:
    """What each change in exact is the sum of, from predictor to predictor."""
    return pd.DataFrame(
        [
            {
                "predictors": clean(pair),
                "term": name,
                "before": gain.before[name],
                "after": gain.after[name],
                **_ends("change", gain.change[name]),
            }
            for pair, gain in gains.items()
            for name in TERMS
        ]
    )


def pass_frame(pass_at: Mapping[str, Mapping[int, Interval]]) -> pd.DataFrame:
    """pass@k of each predictor and k, of as many samples as there are."""
    return pd.DataFrame(
        [
            {"predictor": clean(name), "samples": max(by_k), "k": k, **_ends("pass_at_k", interval)}
            for name, by_k in pass_at.items()
            for k, interval in by_k.items()
        ]
    )


def counts_frame(
    sets: Mapping[str, Sequence[Prediction]], labels: Mapping[str, Reference], task: Task
) -> pd.DataFrame:
    """How often each count is true, answered, answered right and listed right, rising.

    A row for each count that is true of a clip or was answered: one that is never answered has its
    row as well.
    """
    rows = []
    for name, predictions in sets.items():
        true, answered, right, listed = (Counter[int]() for _ in range(4))
        for p in predictions:
            claims, truth = claims_of(p, task), int(task.truth(labels[p.clip_id]))
            true[truth] += 1
            if (answer := claims.get(ANSWER)) is not None:
                answered[int(answer)] += 1
            right[truth] += answer == truth
            listed[truth] += claims.get(LIST) == truth
        rows += [
            {
                "predictor": clean(name),
                "count": count,
                "clips": true[count],
                "answered": answered[count],
                "right": right[count],
                "listed_right": listed[count],
            }
            for count in sorted(set(true) | set(answered))
        ]
    return pd.DataFrame(rows)


def cells_frame(cells: Mapping[str, Figures]) -> pd.DataFrame:
    """The figures of one predictor over each of several subsets of the clips."""
    return pd.DataFrame([{"cell": clean(name), **_numbers(f)} for name, f in cells.items()])


def readings_frame(
    predictions: Sequence[Prediction], labels: Mapping[str, Reference], task: Task
) -> pd.DataFrame:
    """How often each reading was given and is true, the most frequent first."""
    predicted = reading_histogram(predictions)
    true = Counter(str(task.truth(labels[p.clip_id])) for p in predictions)
    return pd.DataFrame(
        [
            {
                "reading": clean(reading),
                "answered": predicted[reading],
                "share": predicted[reading] / len(predictions),
                "true": true[reading],
            }
            for reading in sorted(predicted, key=lambda reading: -predicted[reading])
        ]
    )


def breakdown_frame(
    sets: Mapping[str, Sequence[Prediction]],
    clips: Sequence[Row],
    task: Task,
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Figures by data set and all breakdowns at once, for each predictor.

    Beside the figures: `clips`, how many are in the cell, and the task's means (of counting:
    `true_count`, and `predicted_count` of the counts that could be read).

    Args:
        sets: Predictions on all of `clips`, by the name of the predictor.
        clips: What was asked about.
        task: Says what the figures and breakdowns are.
        num_bootstrap: Resamples of the intervals of what is no share.
        seed: Of the resamples.

    Raises:
        ValueError: if a predictor does not answer exactly these clips.
    """
    sets = {clean(name): predictions for name, predictions in sets.items()}
    labels = labels_of(clips, task)
    breakdowns = task.breakdowns[::-1]
    keys = ["dataset", *(breakdown.column for breakdown in breakdowns)]
    cells = {
        clip.id: (
            clean(clip.dataset),
            *(clean(breakdown.cell_of(labels[clip.id])) for breakdown in breakdowns),
        )
        for clip in clips
    }
    rows = [
        {"predictor": name, **dict(zip(keys, cell, strict=True)), **_numbers(figures)}
        for name, predictions in sets.items()
        for cell, figures in score_cells(
            predictions, labels, cells, task, num_bootstrap=num_bootstrap, seed=seed
        ).items()
    ]
    keys = ["predictor", *keys]
    means = _cell_means(sets, labels, cells, keys, task)
    frame = pd.DataFrame(rows).merge(means, on=keys)
    frame["predictor"] = pd.Categorical(frame["predictor"], categories=list(sets))
    for breakdown in breakdowns:
        if breakdown.order is not None:
            frame[breakdown.column] = pd.Categorical(
                frame[breakdown.column], categories=list(breakdown.order)
            )
    front = [*keys, "clips", *(column for column in means.columns if column not in keys)]
    rest = [column for column in frame.columns if column not in front]
    return frame[front + rest].sort_values(keys, ignore_index=True)


def conditions_frame(
    sets: Mapping[str, Sequence[Prediction]],
    clips: Sequence[Clip],
    task: Task,
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Figures by one property of the clips at a time; arguments and errors as `breakdown_frame`."""
    labels = labels_of(clips, task)
    rows = []
    for name, predictions in sets.items():
        for condition, cell_of in _CONDITIONS.items():
            cells = {clip.id: cell_of(clip) for clip in clips}
            found = score_cells(
                predictions, labels, cells, task, num_bootstrap=num_bootstrap, seed=seed
            )
            rows += [
                {"predictor": clean(name), "by": condition, "cell": cell[1], **_numbers(figures)}
                for cell, figures in sorted(found.items())
            ]
    return pd.DataFrame(rows)


def matrix_frame(
    sets: Mapping[str, Sequence[Prediction]],
    clips: Sequence[Row],
    task: Task,
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """`matrix_figures` of each predictor on each data set, in the order in which clips name them.

    Arguments and errors as of `breakdown_frame`.
    """
    labels, cells = labels_of(clips, task), {clip.id: clean(clip.dataset) for clip in clips}
    shown = ["clips", *(figure.name for figure in matrix_figures(task))]
    rows = []
    for name, predictions in sets.items():
        row: dict[str, Any] = {"predictor": clean(name)}
        found = score_cells(
            predictions, labels, cells, task, num_bootstrap=num_bootstrap, seed=seed
        )
        for dataset in dict.fromkeys(cells.values()):
            numbers = _numbers(found[dataset])
            row |= {
                f"{dataset} {key}{end}": numbers[f"{key}{end}"]
                for key in shown
                for end in ("", *ENDS)
                if f"{key}{end}" in numbers
            }
        rows.append(row)
    return pd.DataFrame(rows)


def matrix_figures(task: Task) -> list[FigureSpec]:
    """What a matrix tells: the first two figures of answers, of counting MAE and OBO."""
    return [figure for figure in task.figures if not figure.by and figure != PARSE_RATE][:2]


def errors_frame(
    sets: Mapping[str, Sequence[Prediction]],
    labels: Mapping[str, Reference],
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean errors of counts as `ERRORS` divides them; a count that cannot be read is 0."""
    rows = []
    for name, predictions in sets.items():
        truth = np.array([labels[p.clip_id].count for p in predictions], np.float64)
        answered = np.array([float(p.reading or 0) for p in predictions])
        errors = np.abs(answered - truth)[:, None] / np.stack(
            [divisor(truth) for divisor in ERRORS.values()], axis=1
        )

        def means(take: Take, errors: np.ndarray = errors) -> np.ndarray:
            found: np.ndarray = take(errors).mean(axis=-2)
            return found

        intervals = bootstrap_intervals(means, len(errors), num_bootstrap=num_bootstrap, seed=seed)
        row: dict[str, Any] = {"predictor": clean(name), "clips": len(errors)}
        for error, interval in zip(ERRORS, intervals, strict=True):
            row |= _ends(error, interval)
        rows.append(row)
    return pd.DataFrame(rows)


def _count_of(clip: Clip) -> tuple[int, str]:
    stratum = stratum_of(clip.count, BINS)
    return BINS.index(stratum), stratum.name


def _length_of(clip: Clip) -> tuple[int, str]:
    return _step_of(clip.duration_s, (5, 10, 20, 40, 80))


def _cycle_length_of(clip: Clip) -> tuple[int, str]:
    """By its marks where they are there, else as if repetitions filled the clip."""
    if clip.count == 0:
        return -1, "no repetition"
    lengths = [end - start for start, end in clip.cycles or ()]
    return _step_of(
        float(np.mean(lengths)) if lengths else clip.duration_s / clip.count, (0.5, 1, 2, 4, 8)
    )


def _step_of(seconds: float, ends: Sequence[float]) -> tuple[int, str]:
    """The number and the name of the step that seconds lie in; an end lies in the one above it."""
    number = int(np.searchsorted(ends, seconds, side="right"))
    if number == len(ends):
        return number, f"{ends[-1]:g} s and more"
    return number, f"{ends[number - 1] if number else 0:g} to {ends[number]:g} s"


_CONDITIONS: dict[str, Callable[[Clip], tuple[int, str]]] = {
    "data set": lambda clip: (0, clean(clip.dataset)),
    "true count": _count_of,
    "length": _length_of,
    "length of a repetition": _cycle_length_of,
    "frames a second": lambda clip: (round(clip.video_fps), str(round(clip.video_fps))),
}


def _cell_means(
    sets: Mapping[str, Sequence[Prediction]],
    labels: Mapping[str, Reference],
    cells: Mapping[str, tuple[str, ...]],
    keys: Sequence[str],
    task: Task,
) -> pd.DataFrame:
    """The task's means of each cell, by predictor and cell; NaN is left out."""
    rows = [
        {
            **dict(zip(keys, (name, *cells[p.clip_id]), strict=True)),
            **task.cell_means(p.reading, labels[p.clip_id]),
        }
        for name, predictions in sets.items()
        for p in predictions
    ]
    return pd.DataFrame(rows).groupby(list(keys), as_index=False, sort=False).mean()


def clean(name: str) -> str:
    """A name as UTF-8 can hold it: JSON can give halves of characters, and pandas refuses them."""
    return name.encode("utf-8", errors="replace").decode()


def _numbers(figures: Figures) -> dict[str, float]:
    row: dict[str, float] = {"clips": figures.num_clips}
    for name, interval in figures.values.items():
        row |= _ends(name, interval)
        if figures.num_clips == 1 and interval.method == "bootstrap":
            row |= {f"{name}{end}": np.nan for end in ENDS}
    return row


def _ends(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _verdict(figure: FigureSpec, interval: Interval) -> str:
    if interval.is_above_zero or interval.is_below_zero:
        is_better = interval.is_below_zero == figure.is_lower_better
        return VERDICTS[0] if is_better else VERDICTS[1]
    return VERDICTS[2]

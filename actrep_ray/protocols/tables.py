"""What a protocol came to, as data frames.

    trials      one row for each model and exam, with the figure's own interval and, paired on the
                same images, what it gained over zero-shot and over SFT on the same shots
    means       the same over the seeds
    base_new    one row for each trained model: base, new, their harmonic mean
    matrix      one row for each training, one column for each data set that was asked about
    open_set    one row for each model: how well its certainty tells known from unknown classes
    reasons     one row for each model and exam: whether it reasons with what is seen (`reasons`)

The figure is the task's first one. Intervals of means are by bootstrap over images, each with its
mean over the seeds: they say what other images would have given, not what other seeds would have.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from actrep_ray.evaluation.intervals import Interval, Take, bootstrap_intervals, wilson_interval
from actrep_ray.evaluation.predictions import Prediction, claims_of, read_predictions
from actrep_ray.protocols.figures import auroc, harmonic_mean, rejected_share
from actrep_ray.protocols.plan import Exam, Trial
from actrep_ray.protocols.reasons import faithfulness
from actrep_ray.protocols.setup import Protocol
from actrep_ray.tasks.base import Task
from data_prep.files import read_object
from data_prep.images import LabelledImage

_NUM_BOOTSTRAP = 2000
_NONE = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Result:
    """What one model answered in one exam.

    Attributes:
        trial: The model.
        exam: What it was asked about.
        scores: What each image adds to the figure. float64 [N]
        sure: How sure each answer is, float64 [N]; None where that was not asked.
        reasons: Of `faithfulness`; None where no descriptions are known.
    """

    trial: Trial
    exam: Exam
    scores: np.ndarray
    sure: np.ndarray | None = None
    reasons: Mapping[str, float] | None = None


def read_results(protocol: Protocol, task: Task) -> list[Result]:
    """All that was answered, scored."""
    found = []
    for exam in protocol.exams:
        images = protocol.images_of(exam)
        for trial in protocol.trials:
            answers = read_predictions(protocol.predictions(trial, exam), task)
            sure = None
            if (path := protocol.certainties(trial, exam)).is_file():
                by_id = read_object(path, "how sure answers are")
                sure = np.array([by_id[image.id] for image in images])
            scores = scores_of(answers, images, task)
            reasons = faithfulness(answers, images, task)
            found.append(Result(trial, exam, scores, sure, reasons))
    return found


def scores_of(
    answers: Sequence[Prediction], images: Sequence[LabelledImage], task: Task
) -> np.ndarray:
    """What the answer about each image adds to the task's first figure. float64 [N]"""
    by_id = {answer.clip_id: claims_of(answer, task) for answer in answers}
    claims = [by_id[image.id] for image in images]
    references = [task.reference(image) for image in images]
    return task.contributions(claims, references)[task.figures[0].name]


def trials_frame(results: Sequence[Result], task: Task) -> pd.DataFrame:
    """A row for each model and exam."""
    figure, rows = task.figures[0].name, []
    for result in results:
        row = {**_words(result), "seed": str(result.trial.seed), "images": len(result.scores)}
        row |= _ends(figure, wilson_interval(int(result.scores.sum()), len(result.scores)))
        rows.append(row | _gains([result], results))
    return pd.DataFrame(rows)


def means_frame(results: Sequence[Result], task: Task) -> pd.DataFrame:
    """A row for each kind of model and exam, over its seeds."""
    rows = []
    for some in _over_seeds(results):
        row = {**_words(some[0]), "seeds": len(some), "images": len(some[0].scores)}
        row |= _ends(f"mean_{task.figures[0].name}", _mean([r.scores for r in some]))
        rows.append(row | _gains(some, results))
    return pd.DataFrame(rows)


def base_new_frame(results: Sequence[Result]) -> pd.DataFrame:
    """Base classes, new ones and their harmonic mean, a row for each model."""
    rows = []
    for base in results:
        if base.exam.classes == "base":
            new = next(r for r in results if r.trial == base.trial and r.exam.classes == "new")
            shares = float(base.scores.mean()), float(new.scores.mean())
            row = {**_words(base), "seed": str(base.trial.seed)}
            row |= {"base": shares[0], "new": shares[1], "harmonic_mean": harmonic_mean(*shares)}
            rows.append({key: row[key] for key in row if key != "asked"})
    return pd.DataFrame(rows)


def matrix_frame(results: Sequence[Result]) -> pd.DataFrame:
    """Means over seeds: what was trained on by what was asked about."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for some in _over_seeds(results):
        words = _words(some[0])
        asked = words.pop("asked")
        row = rows.setdefault(tuple(map(str, words.values())), dict(words))
        row[asked] = float(np.mean([r.scores.mean() for r in some]))
    return pd.DataFrame(list(rows.values()))


def open_set_frame(results: Sequence[Result]) -> pd.DataFrame:
    """How well certainty tells the known from the unknown, a row for each model."""
    rows = []
    for known in results:
        if known.exam.classes != "base" or known.sure is None:
            continue
        other = next(r for r in results if r.trial == known.trial and r.exam.classes == "new")
        assert other.sure is not None, "every exam of an open set is asked for its certainty"
        row = {**_words(known), "seed": str(known.trial.seed)}
        row |= {
            "right_of_known": float(known.scores.mean()),
            "auroc": auroc(known.sure.tolist(), other.sure.tolist()),
            "unknown_rejected": rejected_share(other.sure.tolist()),
            "known_rejected": rejected_share(known.sure.tolist()),
        }
        rows.append({key: row[key] for key in row if key != "asked"})
    return pd.DataFrame(rows)


def reasons_frame(results: Sequence[Result]) -> pd.DataFrame:
    """Whether the reasoning names what is seen, a row for each model and exam that it is told of.

    Empty where nothing is known, or nobody reasons.
    """
    rows = [
        {**_words(result), "seed": str(result.trial.seed), **result.reasons}
        for result in results
        if result.reasons is not None
    ]
    does_reason = any(row["seen"] or row["added"] for row in rows)
    return pd.DataFrame(rows if does_reason else [])


def _words(result: Result) -> dict[str, Any]:
    trial = result.trial
    return {
        "method": trial.method,
        "trained_on": trial.source or "nothing",
        "change": trial.change or "none",
        "asked": result.exam.name,
        "shots": trial.shots,
    }


def _over_seeds(results: Sequence[Result]) -> Iterator[list[Result]]:
    """Results that differ by their seed alone."""
    groups: dict[tuple[Trial, Exam], list[Result]] = {}
    for result in results:
        groups.setdefault((replace(result.trial, seed=0), result.exam), []).append(result)
    yield from groups.values()


def _gains(some: Sequence[Result], results: Sequence[Result]) -> dict[str, float]:
    """Paired changes over zero-shot and, of GRPO, over SFT on the same shots."""
    found: dict[str, float] = {}
    for name, other in (("over_zero_shot", _untrained), ("over_sft", _fine_tuned)):
        others = [other(result.trial) for result in some]
        pairs = [
            (result.scores, before.scores)
            for result, trial in zip(some, others, strict=True)
            for before in results
            if (before.trial, before.exam) == (trial, result.exam)
        ]
        found |= _ends(name, _change(pairs) if pairs else _NONE)
    return found


def _untrained(trial: Trial) -> Trial | None:
    if trial.method == "zero-shot":
        return None
    return Trial("zero-shot", "", 0, 0, trial.change)


def _fine_tuned(trial: Trial) -> Trial | None:
    return replace(trial, method="sft") if trial.method == "grpo" else None


def _mean(scores: Sequence[np.ndarray]) -> Interval:
    return _bootstrapped(np.mean(scores, axis=0)[:, None], lambda means: means[..., 0])


def _change(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Interval:
    after, before = (np.mean(side, axis=0) for side in zip(*pairs, strict=True))
    return _bootstrapped(np.stack([after, before], 1), lambda m: m[..., 0] - m[..., 1])


def _bootstrapped(table: np.ndarray, figure: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """A figure of the means of columns, by bootstrap over rows: [N, C]."""

    def statistic(take: Take) -> np.ndarray:
        return figure(take(table).mean(axis=-2))[..., None]

    [interval] = bootstrap_intervals(statistic, len(table), num_bootstrap=_NUM_BOOTSTRAP, seed=0)
    return interval


def _ends(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}

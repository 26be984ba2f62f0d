"""Counting repeated actions: the one owner of what a count is asked, read and judged by.

With p the predicted and g the true count of a clip (RepNet and QUVA report OBO *error*; here higher
is better, as in TransRAC)::

    MAE   mean of |p - g| / (g + 0.1)       OBO   share with |p - g| <= 1
    RMSE  square root of mean (p - g)^2     OBZ   share with p = g ("exact")

An answer without a readable count is wrong in OBO and OBZ and counts as p = 0 in MAE and RMSE.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actrep_ray.config import DataConfig
from actrep_ray.records import Reading
from actrep_ray.tasks.base import PARSE_RATE, Breakdown, FigureSpec
from data_prep.cot import rejection, render_answer
from data_prep.references import reference_of
from data_prep.schema import Clip
from data_prep.strata import BINS, stratum_of
from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference

_MAE_OFFSET = 0.1  # keeps g = 0 defined; the value of the published metrics


def _count_of(reference: Reference) -> int:
    assert reference.count is not None, "a clip to count in has a count"
    return reference.count


def _bin_of(reference: Reference) -> str:
    return stratum_of(_count_of(reference), BINS).name


def _action_of(reference: Reference) -> str:
    return reference.label or ""


@dataclass(frozen=True)
class Counting:
    """How often is the action repeated?"""

    name: str = "counting"
    title: str = "Counting"
    reading_name: str = "count"
    reading_form: str = "an integer of at least 0"
    is_counting: bool = True
    figures: tuple[FigureSpec, ...] = (
        FigureSpec("mae", "MAE", "mean", is_lower_better=True),
        FigureSpec("obo", "OBO", "share"),
        FigureSpec("obz", "exact", "share"),
        FigureSpec("rmse", "RMSE", "root_mean", is_lower_better=True, is_of_step=False),
        PARSE_RATE,
    )
    breakdowns: tuple[Breakdown, ...] = (
        Breakdown("bins", "by true count", "bin", _bin_of, tuple(bin_.name for bin_ in BINS)),
        Breakdown("actions", "by action", "action", _action_of),
    )

    def question(self, clip: Clip, cfg: DataConfig) -> str:
        """`data.question` about the clip's action."""
        return cfg.question.replace("{action}", clip.action.replace("_", " "))

    def target(self, clip: Clip, cfg: DataConfig, seed: int) -> str:
        """The answer that the clip's marks are rendered to."""
        return render_answer(clip, dialect=cfg.dialect, variety=cfg.wording_variety, seed=seed)

    def rejection(self, text: str, clip: Clip, cfg: DataConfig) -> str | None:
        """Why a text does not agree with the clip's marks, or earns less than the full reward."""
        return rejection(text, clip, dialect=cfg.dialect)

    def reference(self, clip: Clip) -> Reference:
        """Count, marks that agree with it, length and action."""
        return reference_of(clip)

    def read(self, response: ParsedResponse) -> int | None:
        """The integer in the answer tag."""
        return response.count

    def is_reading(self, value: object) -> bool:
        """Whether it is an integer of at least 0, and no boolean."""
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    def truth(self, reference: Reference) -> int:
        """The true count."""
        return _count_of(reference)

    def constant(self, truths: Sequence[Reading]) -> int:
        """The (lower) median count."""
        if not truths:
            raise ValueError("no counts of the train split: no median to predict")
        return sorted(map(int, truths))[(len(truths) - 1) // 2]

    def describe_truth(self, reference: Reference) -> str:
        """For example "true count 4"."""
        return f"true count {reference.count}"

    def is_right(self, readings: Sequence[Reading | None], reference: Reference) -> np.ndarray:
        """Which counts are exactly right. bool [G]"""
        return np.array([reading == reference.count for reading in readings])

    def contributions(
        self, readings: Sequence[Reading | None], references: Sequence[Reference]
    ) -> dict[str, np.ndarray]:
        """What each answer adds to each figure; of `rmse` the SQUARED error. float64 [N] each"""
        truth = np.array([_count_of(reference) for reference in references], np.float64)
        counts = np.array([float(reading or 0) for reading in readings])
        is_parsed = np.array([reading is not None for reading in readings])
        error = np.abs(counts - truth)
        columns = {
            "mae": error / (truth + _MAE_OFFSET),
            "obo": is_parsed & (error <= 1),
            "obz": is_parsed & (error == 0),
            "rmse": error**2,
            PARSE_RATE.name: is_parsed,
        }
        return {name: np.asarray(column, np.float64) for name, column in columns.items()}

    def histograms(self, references: Sequence[Reference]) -> dict[str, list[int]]:
        """The true counts."""
        return {"counts": [_count_of(reference) for reference in references]}

    def cell_means(self, reading: Reading | None, reference: Reference) -> dict[str, float]:
        """The true count, and the predicted one where it can be read."""
        predicted = math.nan if reading is None else float(reading)
        return {"true_count": float(_count_of(reference)), "predicted_count": predicted}

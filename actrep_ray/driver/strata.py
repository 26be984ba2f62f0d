"""What a task's clips are drawn by: counts where it counts, else its right readings.

A task that counts is drawn for by Random Count Sampling (`sampling`), any other one by the right
reading of each row: where that is a class, all classes are seen as often.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property

from actrep_ray.config import Recipe, SamplingConfig
from actrep_ray.driver.dealing import RowT, Sampler
from actrep_ray.driver.sampling import CountSampler, count_strata
from actrep_ray.tasks.base import Task
from actrep_ray.tasks.loading import load_task
from data_prep.rows import Row, clips_among


def make_sampler(rows: Sequence[Row], recipe: Recipe) -> Sampler[Row]:
    """What issues the rows of train for a recipe's task.

    Raises:
        DataError: for no rows, a row of another split, or two rows with one id.
    """
    task = load_task(recipe.task)
    if task.is_counting:
        return CountSampler(clips_among(rows), recipe.sampling, recipe.seed)
    return ReadingSampler(rows, recipe.sampling, recipe.seed, task)


def strata_of(rows: Sequence[Row], recipe: Recipe) -> list[str]:
    """The stratum of each row, by name."""
    task = load_task(recipe.task)
    if not task.is_counting:
        return [_reading_of(row, task) for row in rows]
    return count_strata(clips_among(rows), recipe.sampling)


def describe_strata(num_clips: Mapping[str, int], weights: Mapping[str, float], by: str) -> str:
    """How many clips each stratum has, and which share of the draws it gets.

    Args:
        num_clips: By stratum.
        weights: Likewise.
        by: What strata are made by.
    """
    strata = (f"{name}: {num} ({weights.get(name, 0.0):.0%})" for name, num in num_clips.items())
    return f"clips by {by} (share of the draws): {', '.join(strata)}"


class ReadingSampler(Sampler[RowT]):
    """Issues rows of the train split balanced by their right reading; none is ever cropped.

    Args:
        rows: The rows, all of the train split; their order is part of what is reproducible.
        config: Its `power` alone is used: 0 draws each reading as often as any other.
        seed: Decides everything that is drawn.
        task: Says what is right.

    Raises:
        DataError: for no rows, a row of another split, or two rows with one id.
    """

    def __init__(self, rows: Sequence[RowT], config: SamplingConfig, seed: int, task: Task) -> None:
        self._readings = [_reading_of(row, task) for row in rows]
        whole: dict[str, list[int]] = {name: [] for name in sorted(set(self._readings))}
        for i, name in enumerate(self._readings):
            whole[name].append(i)
        super().__init__(rows, config, seed, whole=whole)

    @cached_property
    def fingerprint(self) -> str:
        """The power, and ids and right readings of all rows."""
        digest = hashlib.sha256(f"power={self.config.power}".encode())
        for row, reading in zip(self._clips, self._readings, strict=True):
            digest.update(f"\n{row.id}\t{reading}".encode())
        return digest.hexdigest()[:16]


def _reading_of(row: Row, task: Task) -> str:
    return str(task.truth(task.reference(row))).replace(" ", "_")

"""Which step's model is the best one by its evaluations, and whether a run still gets better."""

import math
from collections.abc import Mapping
from pathlib import Path

from actrep_ray.config import ConfigError, Recipe
from actrep_ray.run.metrics import read_metrics
from actrep_ray.tasks.loading import load_task

_LOSS = "validation_loss"


class BestStep:
    """The best evaluated step so far by `checkpoint.best_by`, its start (step 0) included.

    What it knows stands in the metrics: a run that goes on reads them again.

    Args:
        recipe: Settings.

    Raises:
        ConfigError: for a figure that the task does not have, or where nothing is evaluated.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._name = recipe.checkpoint.best_by
        self._key, self._sign = _key_and_sign(recipe)
        self._patience = recipe.checkpoint.patience
        self.step: int | None = None
        self._value = math.nan
        self._num_since = 0

    def restore(self, step: int) -> None:
        """Look again at what the evaluations up to a step found."""
        path = self._recipe.run_dir / "metrics.jsonl"
        if not self._name or not step or not path.is_file():
            return
        for row in read_metrics(path):
            if row["step"] <= step:
                self.look(row["step"], row)

    def look(self, step: int, metrics: Mapping[str, float | None]) -> bool:
        """Whether a step is better than all before; False where it was not evaluated.

        A figure that is not finite (null in the file of the metrics) is no better than any other.
        """
        if not self._name or self._key not in metrics:
            return False
        value = metrics[self._key]
        figure = math.nan if value is None else value
        if math.isfinite(figure) and (self.step is None or self._is_better(figure)):
            self.step, self._value, self._num_since = step, figure, 0
            return True
        if self.step is not None:
            self._num_since += 1
        return False

    def _is_better(self, figure: float) -> bool:
        return self._sign * figure > self._sign * self._value

    @property
    def is_over(self) -> bool:
        """Whether the last `checkpoint.patience` evaluations found nothing better."""
        return self._patience is not None and self._num_since >= self._patience

    def describe(self) -> str:
        """One line on the best step; empty if there is none."""
        if self.step is None:
            return ""
        found = f"best by {self._name}: {self._value:.4g} at step {self.step}"
        folder = self._recipe.run_dir / "checkpoints" / f"step-{self.step:06d}"
        kept = f"kept as {folder}" if folder.is_dir() else "whose checkpoint could not be kept"
        told = f"{found}, {kept if self.step else 'the model at the start'}"
        if self.is_over:
            told += f"; none of the {self._num_since} evaluations since was better"
            told += f" (checkpoint.patience={self._patience})"
        return told


def best_of_run(recipe: Recipe, folder: Path) -> BestStep:
    """The best step of a run, wherever its folder lies now."""
    there = folder.absolute()
    moved = recipe.model_copy(update={"runs_dir": str(there.parent), "name": there.name})
    best, path = BestStep(moved), folder / "metrics.jsonl"
    if path.is_file() and (rows := read_metrics(path)):
        best.restore(rows[-1]["step"])
    return best


def _key_and_sign(recipe: Recipe) -> tuple[str, int]:
    """The key of the figure in the metrics, and 1 where more is better, else -1."""
    name, where = recipe.checkpoint.best_by, f"checkpoint.best_by={recipe.checkpoint.best_by!r}"
    if name is None:
        return "", 1
    if recipe.stage == "sft":
        if name != _LOSS:
            raise ConfigError(f"{where}: expected {_LOSS!r}, which SFT evaluates")
        return f"sft/{_LOSS}", -1
    figures = {figure.name: figure for figure in load_task(recipe.task).figures}
    if name not in figures:
        raise ConfigError(f"{where}: expected a figure of the task, one of {', '.join(figures)}")
    if not recipe.eval.every:
        raise ConfigError(f"{where}: nothing is evaluated, set eval.every")
    return f"eval/{name}", -1 if figures[name].is_lower_better else 1

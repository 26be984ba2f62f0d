"""The evaluation of a checkpoint that runs alone: checked first, then run, then written down.

OUT_DIR/answered[-NAME].jsonl       answers as they come, until all are there; a killed evaluation
                                    goes on from it
OUT_DIR/predictions[-NAME].jsonl    all of them, in the order of the clips
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actrep_ray.cluster.this_machine import check_this_machine
from actrep_ray.config import Recipe
from actrep_ray.evaluation.begun import begin
from actrep_ray.evaluation.predictions import (
    Prediction,
    line_of,
    read_predictions,
    write_predictions,
)
from actrep_ray.evaluation.predictors import (
    Pool,
    predict_each,
    sampling_json,
    with_whole_weights,
)
from actrep_ray.evaluation.run_results import shown_name, write_settings
from actrep_ray.evaluation.scores import Metrics, score_predictions
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.run.record import model_fingerprint
from actrep_ray.tasks.base import labels_of
from actrep_ray.tasks.loading import load_clips, load_task
from data_prep.files import AppendedLines
from data_prep.rows import Row


@dataclass(frozen=True)
class EvaluationJob:
    """An evaluation whose settings, data and model were checked; nothing has been started.

    Attributes:
        name: Of the predictor, where several are compared; empty for one alone.
        num_samples: Samples of each clip beside the greedy answer; 0: none.
    """

    recipe: Recipe
    model: Path
    clips: list[Row]
    inputs: QwenVLInputs
    out_dir: Path
    name: str = ""
    num_samples: int = 0

    @property
    def shown_name(self) -> str:
        """As a report names the predictor."""
        return shown_name(self.out_dir, self.name)

    @property
    def path(self) -> Path:
        """The file of its predictions."""
        return self._file("predictions")

    @property
    def sampling(self) -> dict[str, float]:
        """How its samples are drawn, as JSON-able values."""
        return sampling_json(self.recipe, self.num_samples)

    def run(self, engines: "Engines | None" = None) -> Metrics:
        """Answer what was not answered yet, and score.

        Writes predictions and settings into `out_dir`; a report makes the rest of them.

        Args:
            engines: What answers; by default a pool of rollout workers, started for it.

        Raises:
            ConfigError: if it was begun with another checkpoint, other settings or other clips.
        """
        task = load_task(self.recipe.task)
        self._begin()
        if not self.path.is_file():
            write_predictions(self.path, self._answers(engines or rollout_workers), task)
            self._file("answered").unlink(missing_ok=True)
        metrics = score_predictions(
            read_predictions(self.path, task),
            labels_of(self.clips, task),
            task,
            num_bootstrap=self.recipe.eval.num_bootstrap,
            seed=self.recipe.seed,
        )
        write_settings(self.out_dir, self.recipe, str(self.model))
        return metrics

    def _answers(self, engines: "Engines") -> list[Prediction]:
        """One for each clip: those of the file, then the engines'."""
        task = load_task(self.recipe.task)
        with AppendedLines(self._file("answered")) as journal:  # a line that was cut off is gone
            found = {one.clip_id: one for one in read_predictions(journal.path, task)}
            left = [clip for clip in self.clips if clip.id not in found]
            if left:
                with engines(self) as pool:
                    for one in predict_each(
                        left, pool, self.inputs, self.recipe, num_samples=self.num_samples
                    ):
                        journal.add(line_of(one, task))
                        found[one.clip_id] = one
        return [found[clip.id] for clip in self.clips]

    def _begin(self) -> None:
        """Write down what is begun, or compare it with what was."""
        answers: dict[str, Any] = {"checkpoint": model_fingerprint(self.model)}
        if self.num_samples:
            answers["samples"] = self.sampling
        begin(self.out_dir, self.name, answers=answers, recipe=self.recipe, clips=self.clips)

    def _file(self, what: str) -> Path:
        return self.out_dir / (f"{what}-{self.name}.jsonl" if self.name else f"{what}.jsonl")


Engines = Callable[[EvaluationJob], AbstractContextManager[Pool]]
"""Starts what answers for an evaluation."""


@contextmanager
def rollout_workers(job: EvaluationJob) -> Iterator[Pool]:
    """A pool of them, in a cluster of its own or in the one that is joined."""
    from actrep_ray.cluster.session import cluster
    from actrep_ray.rollout.pool import RolloutPool

    with cluster(job.recipe, roles=("rollout",), stacks=job.out_dir / "stacks"):
        yield RolloutPool.start(with_whole_weights(job.recipe), job.model)


def prepare_evaluation(
    recipe: Recipe,
    model: Path,
    *,
    split: str,
    out_dir: Path,
    name: str = "",
    num_samples: int = 0,
) -> EvaluationJob:
    """Check everything that can be checked before an engine starts.

    Args:
        recipe: Settings.
        model: Folder of the checkpoint.
        split: What is asked about.
        out_dir: Gets all that is written.
        name: See `EvaluationJob`.
        num_samples: See `EvaluationJob`.

    Raises:
        ValueError: for data or a model that cannot be used.
    """
    check_this_machine(recipe, ("rollout",))
    clips = load_clips(recipe, split, limit=recipe.eval.num_clips)
    inputs = QwenVLInputs(model)
    inputs.check_dialect(recipe.data.dialect)
    out_dir.mkdir(parents=True, exist_ok=True)
    return EvaluationJob(recipe, model, clips, inputs, out_dir, name, num_samples)

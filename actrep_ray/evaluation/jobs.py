"""The evaluation of a checkpoint that runs alone: checked first, then run, then written down."""

from dataclasses import dataclass
from pathlib import Path

from actrep_ray.cluster.this_machine import check_this_machine
from actrep_ray.config import Recipe
from actrep_ray.evaluation.predictors import evaluate, with_whole_weights
from actrep_ray.evaluation.run_results import write_results
from actrep_ray.evaluation.scores import Metrics
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.tasks.loading import load_clips
from data_prep.rows import Row


@dataclass(frozen=True)
class EvaluationJob:
    """An evaluation whose settings, data and model were checked; nothing has been started."""

    recipe: Recipe
    model: Path
    clips: list[Row]
    inputs: QwenVLInputs
    out_dir: Path

    def run(self) -> Metrics:
        """Start engines, predict, score; writes what they come to.

        In `out_dir`: `predictions.jsonl`, `metrics.json` and `config.resolved.json`.
        """
        from actrep_ray.cluster.session import cluster
        from actrep_ray.rollout.pool import RolloutPool

        path = self.out_dir / "predictions.jsonl"
        with cluster(self.recipe, roles=("rollout",), stacks=self.out_dir / "stacks"):
            pool = RolloutPool.start(with_whole_weights(self.recipe), self.model)
            metrics = evaluate(self.clips, pool, self.inputs, self.recipe, path)
        write_results(self.out_dir, metrics, self.recipe, str(self.model))
        return metrics


def prepare_evaluation(recipe: Recipe, model: Path, *, split: str, out_dir: Path) -> EvaluationJob:
    """Check everything that can be checked before an engine starts.

    Raises:
        ValueError: for data or a model that cannot be used.
    """
    check_this_machine(recipe, ("rollout",))
    clips = load_clips(recipe, split, limit=recipe.eval.num_clips)
    inputs = QwenVLInputs(model)
    inputs.check_dialect(recipe.data.dialect)
    out_dir.mkdir(parents=True, exist_ok=True)
    return EvaluationJob(recipe, model, clips, inputs, out_dir)

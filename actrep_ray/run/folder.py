"""The folder of a run: who may write into it, and what produced it.

RUN_DIR/config.resolved.json     every setting, versions, commit and data
RUN_DIR/metrics.jsonl, tb/       written by `metrics.py`
RUN_DIR/checkpoints/             written by `checkpoint.py`
RUN_DIR/predictions*.jsonl       written by evaluation
"""

from actrep_ray.config import ConfigError, Recipe, write_resolved
from actrep_ray.run.checkpoint import Checkpoint, CheckpointStore
from actrep_ray.run.provenance import provenance


def open_run(recipe: Recipe, *, resume: bool) -> Checkpoint | None:
    """Make the run's folder, or go on in it.

    Returns:
        The checkpoint to go on from; None for a run from the start.

    Raises:
        ConfigError: if the folder holds a run and `resume` is not given.
    """
    folder = recipe.run_dir
    newest = CheckpointStore(folder, keep=recipe.checkpoint.keep).newest()
    if newest is not None and not resume:
        raise ConfigError(
            f"{folder}: holds a run with a checkpoint of step {newest.step}; go on with --resume, "
            "or choose another name with --set name=NAME"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_resolved(recipe, folder / "config.resolved.json", provenance(recipe))
    return newest

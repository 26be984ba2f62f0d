"""Goes on from the last checkpoint when a learner rank was lost, with its process or its node.

Ranks hold the model together: without one of them none can go on. So all workers of the run end,
the cluster may get new nodes for `placement.rejoin_s`, and the run starts again from its newest
checkpoint, at most `learner.max_restarts` times in an hour, with longer pauses the oftener that
happens. Steps since that checkpoint are done again.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from actrep_ray.cluster.nodes import wait_for_room
from actrep_ray.cluster.supervision import WorkerLostError, restart_budget
from actrep_ray.config import Recipe
from actrep_ray.run.checkpoint import Checkpoint, CheckpointStore
from actrep_ray.run.faults import FaultLog
from actrep_ray.run.metrics import read_metrics

T = TypeVar("T")

_log = logging.getLogger(__name__)


def run_with_restarts(
    recipe: Recipe,
    attempt: Callable[[Checkpoint | None, FaultLog], T],
    start: Checkpoint | None,
) -> T:
    """What an attempt returns, the first that loses no rank; inside of `cluster`.

    Args:
        recipe: Settings of the run.
        attempt: Trains from a checkpoint, or from the beginning, with workers of its own whose
            losses it writes down; when it raises `WorkerLostError`, it has ended all of them.
        start: Where the first attempt starts.

    Raises:
        WorkerLostError: if one more rank is lost in an hour than `learner.max_restarts` allows,
            however that was noticed; if a rank raised as it started; or if its pool could not do
            without another worker.
        PlacementError: if the nodes that are left cannot hold the recipe.
        ConfigError: if the run has checkpoints and none is whole.
    """
    budget = restart_budget("learner", recipe.learner.max_restarts)
    faults = FaultLog(recipe.run_dir)
    while True:
        try:
            return attempt(start, faults)
        except WorkerLostError as error:
            # The other pools have replaced what they may; a new start would be no help.
            loss = error.loss
            if loss.role != "learner" or loss.is_defect or not budget.spend(loss.kind.value):
                raise
            store = CheckpointStore(recipe.run_dir, keep=recipe.checkpoint.keep)
            start = store.newest_or_none_begun()
            num_again = max(0, _last_step(recipe.run_dir) - (start.step if start else 0))
            faults.lost(loss, num_again)
            pause_s = budget.pause_s
            _log.warning(
                "%s; restart %s, after %g s, from %s",
                error,
                budget.describe(),
                pause_s,
                f"the checkpoint of step {start.step}" if start else "the beginning",
            )
        time.sleep(pause_s)
        wait_for_room(recipe, wait_s=recipe.placement.rejoin_s)


def _last_step(run_dir: Path) -> int:
    """The last finished step of a run; 0 where it has finished none."""
    path = run_dir / "metrics.jsonl"
    rows = read_metrics(path) if path.is_file() else []
    return int(rows[-1]["step"]) if rows else 0

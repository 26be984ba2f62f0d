"""Goes on from the last checkpoint when a learner rank was lost, with its process or its node.

Ranks hold the model together: without one of them none can go on. So all workers of the run end,
the cluster may get new nodes for `placement.wait_s`, and the run starts again from its newest
checkpoint, at most `learner.max_restarts` times. Steps since that checkpoint are done again.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from actrep_ray.cluster.nodes import wait_for_room
from actrep_ray.config import Recipe
from actrep_ray.learner.pool import LearnerWorkerError
from actrep_ray.rollout.pool import WeightsLostError
from actrep_ray.run.checkpoint import Checkpoint, CheckpointStore

T = TypeVar("T")

RANK_LOSSES = (LearnerWorkerError, WeightsLostError)
"""How the loss of a rank is noticed: by a call of it, or where its weights are asked for."""

_log = logging.getLogger(__name__)


def outlive_losses(
    recipe: Recipe, attempt: Callable[[Checkpoint | None], T], start: Checkpoint | None
) -> T:
    """What an attempt returns, the first that loses no rank; inside of `cluster`.

    Args:
        recipe: Settings of the run.
        attempt: Trains from a checkpoint, or from the beginning, with workers of its own; when a
            rank was lost, it has ended all of them.
        start: Where the first attempt starts.

    Raises:
        LearnerWorkerError: if one more rank is lost than `learner.max_restarts` allows; or
        WeightsLostError: likewise, if it was noticed by an engine.
        PlacementError: if the nodes that are left cannot hold the recipe.
    """
    store = CheckpointStore(recipe.run_dir, keep=recipe.checkpoint.keep)
    limit, num_restarts = recipe.learner.max_restarts, 0
    while True:
        try:
            return attempt(start)
        except RANK_LOSSES as error:
            if num_restarts >= limit:
                raise
            num_restarts += 1
            start = store.newest()
            _log.warning(
                "%s; restart %d of %d (learner.max_restarts), from %s",
                error,
                num_restarts,
                limit,
                f"the checkpoint of step {start.step}" if start else "the beginning",
            )
        wait_for_room(recipe)

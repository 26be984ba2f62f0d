"""The workers of a GRPO run: engines, reward workers and learner ranks, and how they start."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from actrep_ray.cluster.background import in_background
from actrep_ray.cluster.bundles import reserve
from actrep_ray.cluster.nodes import with_device
from actrep_ray.cluster.placement import is_colocated
from actrep_ray.cluster.supervision import Budget
from actrep_ray.config import Recipe
from actrep_ray.learner.pool import LearnerPool
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.run.faults import FaultLog
from actrep_ray.scoring.pool import RewardPool
from actrep_ray.weights.sync import WeightSync


@dataclass(frozen=True)
class Pools:
    """The workers of a run, started, and what was lost of them."""

    rollouts: RolloutPool
    rewards: RewardPool
    learners: LearnerPool
    weight_sync: WeightSync
    faults: FaultLog = field(default_factory=FaultLog)

    def share(self, budgets: dict[str, Budget]) -> None:
        """Count losses in these budgets, by role; those that are missing are added.

        A run that starts again with new workers bears no more of them for that.
        """
        self.rollouts.restarts = budgets.setdefault("rollout", self.rollouts.restarts)
        self.rewards.restarts = budgets.setdefault("reward", self.rewards.restarts)

    def shutdown(self) -> None:
        """End all of them."""
        self.rollouts.shutdown()
        self.rewards.shutdown()
        self.learners.shutdown()


def start_pools(recipe: Recipe, model: Path, base: Path, faults: FaultLog | None = None) -> Pools:
    """Start all workers of a run in the current cluster.

    Engines and ranks start at the same time; where they share GPUs, one after the other, for an
    engine measures the memory that it finds free.

    Args:
        recipe: Settings.
        model: Folder of the weights that are trained.
        base: Folder of the model that the run began with; engines that are sent adapters alone
            start from it.
        faults: Where losses are written down; nowhere without it.
    """
    faults = faults or FaultLog()
    shown = base if recipe.sends_adapters else model
    num_steps = recipe.train.num_steps
    bundles = reserve(with_device(recipe))  # all or none, before engines take the room
    if is_colocated(recipe):
        rewards = RewardPool.start(recipe, faults)
        rollouts = RolloutPool.start(recipe, shown, bundles=bundles, faults=faults)
        with rollouts.asleep():
            learners = LearnerPool.start(recipe, model, num_steps, bundles, base)
    else:
        # Before reward workers, which fit in anywhere.
        rollouts = RolloutPool.launch(recipe, shown, faults=faults)
        engines = in_background(rollouts.finish_launch)
        ranks = in_background(partial(LearnerPool.start, recipe, model, num_steps, bundles, base))
        rewards = RewardPool.start(recipe, faults)
        engines.result()
        learners = ranks.result()
    sync = WeightSync(learners, rollouts)
    return Pools(rollouts, rewards, learners, sync, faults)

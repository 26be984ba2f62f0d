"""The checkpoints of a training loop, GRPO's or SFT's, as the loop itself sees them."""

from typing import Any

from actrep_ray.config import Recipe
from actrep_ray.learner.pool import LearnerPool
from actrep_ray.run.checkpoint import Checkpoint, CheckpointStore, is_due


class RunCheckpoints:
    """Where a run goes on from, when its next checkpoint is due, and which was the last.

    Args:
        recipe: Settings of the run.
        learners: Ranks that write weights and optimiser state, and load the latter.
        num_steps: The last step, after which a checkpoint is always written.
        start: Checkpoint to go on from; the ranks hold its weights already.
    """

    def __init__(
        self, recipe: Recipe, learners: LearnerPool, num_steps: int, start: Checkpoint | None
    ) -> None:
        self.recipe = recipe
        self.learners = learners
        self.num_steps = num_steps
        self.start = start
        self.store = CheckpointStore(recipe.run_dir, keep=recipe.checkpoint.keep)
        self._last = start

    def restore(self) -> int:
        """Load the ranks' state; returns the step of the start, 0 without one."""
        if self.start is None:
            return 0
        self.learners.load_state(self.start.learner_folder)
        return self.start.step

    def is_due(self, step: int) -> bool:
        """Whether one is written after a step: every `checkpoint.every` steps and at the end."""
        return is_due(self.recipe.checkpoint.every or self.num_steps, step, self.num_steps)

    def save(self, step: int, state: dict[str, Any]) -> Checkpoint:
        """Write a checkpoint.

        Args:
            step: Steps that were finished.
            state: What the driver needs to go on, as JSON-able values.
        """
        self._last = self.store.write(step, self.recipe, state, self.learners)
        return self._last

    @property
    def last(self) -> Checkpoint:
        """The newest one of this run, that of its start included."""
        assert self._last is not None, "no step was left to do and no checkpoint exists"
        return self._last

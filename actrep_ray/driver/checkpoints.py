"""The checkpoints of a training loop, GRPO's or SFT's, as the loop itself sees them.

A checkpoint is written while the loop goes on; the loop waits only for the copy to host memory, and
for the one before if that is not done yet. One that cannot be written is told at once, counted in
the metrics and told again at the end; the run goes on while another one is safe. The last step's is
waited for, tried once more, and ends the run with an error if it cannot be written either. A run
that is asked to stop (`StopError`) writes one of the last step that it finished.
"""

import logging
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from actrep_ray.cluster.background import in_background
from actrep_ray.cluster.stopping import InterruptError, StopError
from actrep_ray.config import Recipe
from actrep_ray.learner.pool import LearnerPool
from actrep_ray.run.checkpoint import Checkpoint, CheckpointStore, is_due
from actrep_ray.run.saving import SaveError, Saving
from data_prep.files import DataError
from data_prep.looks import Looks, looks_of
from data_prep.video import FramePlan

_LOOKS_S = 5.0  # that a checkpoint waits for what the clips look like: the next one will say it
_GRACE_S = 5.0  # that a run which ends early waits for what is nearly written
_log = logging.getLogger(__name__)


class RunCheckpoints:
    """Where a run goes on from, when its next checkpoint is due, and which was the last.

    Used as a context manager around the loop: its end waits for what is being written.

    Args:
        recipe: Settings of the run.
        learners: Ranks that write weights and optimiser state, and load the latter.
        num_steps: The last step, after which a checkpoint is always written.
        start: Checkpoint to go on from; the ranks hold its weights already.
        plans: Of some clips of the training: what they look like is written beside the weights.
    """

    def __init__(
        self,
        recipe: Recipe,
        learners: LearnerPool,
        num_steps: int,
        start: Checkpoint | None,
        plans: Callable[[], Iterable[FramePlan]] = lambda: (),
    ) -> None:
        self.recipe = recipe
        self.learners = learners
        self.num_steps = num_steps
        self.start = start
        self.store = CheckpointStore(recipe.run_dir, keep=recipe.checkpoint.keep)
        self.store.in_use = start
        self._last = start
        self._saving: Saving[Checkpoint] | None = None
        self._asked: tuple[int, dict[str, Any]] | None = None  # what was saved last, or is to be
        self._best_step: int | None = None  # is marked when it is written
        self._failures: list[str] = []
        self._num_asked = 0
        self._reached: tuple[int, dict[str, Any]] | None = None  # what a stop would save
        self._looks = in_background(lambda: looks_of(plans()), "looks")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        grace_s = _GRACE_S
        try:
            if kind is None:
                self.finish()
            elif isinstance(error, StopError):
                self._save_reached()
        except InterruptError as interrupted:
            grace_s, error = 0.0, interrupted
            raise
        finally:
            if self._saving is not None:
                self._last = self._saving.settle(grace_s) or self._last
                self._saving = None
            if isinstance(error, InterruptError):
                error.saved_step = None if self._last is None else self._last.step

    def restore(self) -> int:
        """Load the ranks' state; returns the step of the start, 0 without one."""
        if self.start is None:
            return 0
        self.learners.load_state(self.start.learner_folder)
        return self.start.step

    def keep_best(self, step: int | None) -> None:
        """Mark the checkpoint of the start if it is the best step's.

        A run that was cut short between the last file of it and its mark did not do so.
        """
        if self.start is not None and self.start.step == step:
            self._mark_best(self.start)

    def is_due(self, step: int) -> bool:
        """Whether one is written after a step: every `checkpoint.every` steps and at the end."""
        return is_due(self.recipe.checkpoint.every or self.num_steps, step, self.num_steps)

    def save(self, step: int, state: dict[str, Any], *, is_best: bool = False) -> None:
        """Begin to write a checkpoint; at most one is under way.

        Args:
            step: Steps that were finished.
            state: What the driver needs to go on, as JSON-able values.
            is_best: Keep it whatever its age, until another one is the best.

        Raises:
            SaveError: if one cannot be written and none is safe.
        """
        self._wait()
        self._asked = (step, state)
        if is_best:
            self._best_step = step
        self._num_asked += 1
        try:
            self._saving = self.store.begin(
                step, self.recipe, state, self.learners, self._looks_by_now
            )
        except SaveError as error:
            self._fail(step, error)
        if not self.recipe.checkpoint.in_background:
            self._wait()

    def _looks_by_now(self) -> Looks | None:
        try:
            return self._looks.result(_LOOKS_S)
        except TimeoutError:
            return None

    def reached(self, step: int, state: dict[str, Any]) -> None:
        """Say that the ranks hold the weights of a step; until the next one, a stop saves it.

        Args:
            step: Steps that were finished.
            state: As for `save`: what goes on from here takes the prompts of step + 1.
        """
        self._reached = (step, state)

    def _save_reached(self) -> None:
        """Write what was reached, unless that is nothing or is written already."""
        if self._reached is None:
            return
        step, state = self._reached
        begun = self.start.step if self.start else 0
        if step > max(begun, self._asked[0] if self._asked else 0):
            self.save(step, state)
        self.finish()

    def look(self) -> dict[str, float]:
        """What has become of the one under way, without waiting for it; for the metrics.

        Raises:
            SaveError: if it could not be written and none is safe.
        """
        if self._saving is not None and (self._saving.is_over or self._is_saved()):
            self._wait()
        found = {} if self._last is None else {"checkpoint/step": float(self._last.step)}
        return found | {"checkpoint/failed": float(len(self._failures))} if self._num_asked else {}

    def finish(self) -> None:
        """Wait for the last one, and tell how many could not be written.

        Raises:
            SaveError: if the last step's could not be written, twice.
        """
        self._wait()
        if self._asked is not None and (self._last is None or self._last.step < self._asked[0]):
            self.save(*self._asked)
            self._wait()
            if self._last is None or self._last.step < self._asked[0]:
                safe = f"that of step {self._last.step}" if self._last else "none"
                raise SaveError(f"{self._failures[-1]}; the last checkpoint, {safe} is safe")
        self.store.in_use = None
        if self._num_asked:
            self.store.prune()
        if self._failures:
            _log.warning(
                "%d of %d checkpoints could not be written; the last of them: %s",
                len(self._failures),
                self._num_asked,
                self._failures[-1],
            )

    @property
    def last(self) -> Checkpoint:
        """The newest one of this run that is complete, that of its start included."""
        assert self._last is not None, "no step was left to do and no checkpoint exists"
        return self._last

    def _is_saved(self) -> bool:
        try:
            return self.learners.is_saved()
        except SaveError as error:
            self._give_up(error)
            return False

    def _wait(self) -> None:
        """Wait for the one under way."""
        if self._saving is None:
            return
        try:
            if not self._saving.is_over:
                self.learners.finish_save()
            self._last = self._saving.finish()
            self._saving = None
        except SaveError as error:
            self._give_up(error)
            return
        if self._last.step == self._best_step:
            self._mark_best(self._last)

    def _mark_best(self, checkpoint: Checkpoint) -> None:
        """A disk that does not take the mark ends no run: the one marked before stays."""
        try:
            self.store.mark_best(checkpoint)
        except (OSError, DataError) as error:
            _log.error("%s; the best checkpoint, of step %d, is not kept", error, checkpoint.step)

    def _give_up(self, error: SaveError) -> None:
        assert self._saving is not None
        assert self._asked is not None
        self._saving.abandon()
        self._saving = None
        self._fail(self._asked[0], error)

    def _fail(self, step: int, error: SaveError) -> None:
        """Count a checkpoint that could not be written; make room for the next one."""
        self._failures.append(str(error))
        if self._last is None:
            raise SaveError(f"{error}; no other checkpoint of this run is safe") from error
        _log.error(
            "the checkpoint of step %d could not be written: %s; the run goes on, that of step %d "
            "is safe",
            step,
            error,
            self._last.step,
        )
        self.store.prune(keep=1)

"""A GRPO run from its recipe to its last checkpoint: checked, started, driven, started again."""

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from actrep_ray.cluster.session import cluster
from actrep_ray.cluster.stopping import remember_notice
from actrep_ray.cluster.supervision import Budget, WorkerLostError
from actrep_ray.cluster.this_machine import check_this_machine
from actrep_ray.config import Recipe
from actrep_ray.driver.asynchronous import AsynchronousDriver
from actrep_ray.driver.in_flight import check_in_flight
from actrep_ray.driver.phases import GrpoData, Phases
from actrep_ray.driver.pools import Pools, start_pools
from actrep_ray.driver.restarts import run_with_restarts
from actrep_ray.driver.strata import make_sampler
from actrep_ray.driver.synchronous import SynchronousDriver
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.planning.deepspeed_settings import check_deepspeed
from actrep_ray.run.best import BestStep
from actrep_ray.run.checkpoint import Checkpoint
from actrep_ray.run.faults import FaultLog
from actrep_ray.run.folder import open_run
from actrep_ray.run.lock import FolderLock
from actrep_ray.run.model_folder import resolve_model
from actrep_ray.run.profile import profiled
from actrep_ray.run.trackers import check_trackers
from actrep_ray.scoring.worker import make_spec


def prepare_grpo(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_changes: Collection[str] = (),
) -> "GrpoJob":
    """Check everything that can be checked before a worker starts, and take the run's folder.

    Args:
        recipe: Settings; `stage` is "grpo".
        resume, overwrite, allow_changes: As of `open_run`.

    Raises:
        ValueError: for settings, data or a model that cannot be used.
    """
    check_this_machine(recipe)
    check_trackers(recipe.run.trackers)
    remember_notice(recipe.run.preemption_notice or "")
    make_spec(recipe)
    BestStep(recipe)
    check_deepspeed(recipe)
    data = GrpoData.load(recipe, is_resumed=resume)
    make_sampler(data.train, recipe)
    model = resolve_model(recipe.model.path)
    inputs = QwenVLInputs(model)
    inputs.check_dialect(recipe.data.dialect)
    opened = open_run(
        recipe,
        model,
        resume=resume,
        overwrite=overwrite,
        allow_changes=allow_changes,
        check_start=partial(check_in_flight, recipe),
    )
    return GrpoJob(recipe, data, inputs, model, opened.start, opened.lock)


@dataclass(frozen=True)
class GrpoJob:
    """A run whose settings, data and model were checked; nothing has been started.

    Its folder is locked until `run` ends, or nothing refers to the job.

    Attributes:
        recipe: Settings.
        data: Clips and their references.
        inputs: What makes prompts of them.
        base: Folder of the model that `model.path` means: found and checked once, so that all
            workers take the same one, whatever is written into a run folder meanwhile.
        start: Checkpoint to go on from.
        lock: Of the run's folder.
    """

    recipe: Recipe
    data: GrpoData
    inputs: QwenVLInputs
    base: Path
    start: Checkpoint | None
    lock: FolderLock | None = None

    @property
    def model(self) -> Path:
        """Folder of the weights that the run starts from."""
        return self.start.folder if self.start else self.base

    def run(self, pools: Pools | None = None, *, profile: bool = False) -> Checkpoint:
        """Train; returns the last checkpoint.

        Args:
            pools: Workers that were started for this recipe and model; they are left running. None
                starts them in a cluster of the run's own and ends it.
            profile: Whether to note what every worker does when.

        Raises:
            LogProbGapError: if rollout and learner disagree by more than `train.max_log_prob_gap`.
        """
        with self.lock or nullcontext():
            if pools is None:
                return self._run_in_cluster(profile)
            return self._run(pools, profile)

    def _run(self, pools: Pools, profile: bool) -> Checkpoint:
        driver = self.driver(pools)
        if not profile:
            return driver.run()
        with profiled(pools.rollouts.timeline, self.recipe):
            return driver.run()

    def driver(self, pools: Pools) -> SynchronousDriver | AsynchronousDriver:
        """The synchronous driver, or with `train.max_staleness` the asynchronous one."""
        phases = Phases(self.recipe, pools, self.data, self.inputs, self.start)
        staleness = self.recipe.train.max_staleness
        if staleness is None:
            return SynchronousDriver(phases)
        return AsynchronousDriver(phases, staleness)

    def _run_in_cluster(self, profile: bool) -> Checkpoint:
        """Train with workers of this run's own, started again where a rank is lost."""
        budgets: dict[str, Budget] = {}

        def attempt(start: Checkpoint | None, faults: FaultLog) -> Checkpoint:
            job = replace(self, start=start)
            pools = start_pools(self.recipe, job.model, self.base, faults)
            pools.share(budgets)
            faults.replaced("learner")
            try:
                return job._run(pools, profile)
            except WorkerLostError:
                pools.shutdown()
                raise

        with cluster(self.recipe):
            return run_with_restarts(self.recipe, attempt, self.start)

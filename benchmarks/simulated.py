"""Workers whose computing is replaced by waiting, for benchmarks of what is around it.

They are real Ray actors behind the real pools: prompts, tokens, log-probabilities and weights are
real arrays that really travel. Only generating and training are calibrated waits.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from simulated_engine import SimulatedEngine
from simulated_learner import Latency, SimulatedLearner

from actrep_ray.config import Recipe, load_recipe
from actrep_ray.driver.phases import GrpoData
from actrep_ray.driver.pools import Pools
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import LearnerRow
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.rollout.worker import RolloutWorker
from actrep_ray.scoring.pool import RewardPool
from actrep_ray.weights.sync import WeightSync
from data_prep.synthetic.dataset import write_dataset


class SimulatedWorker(RolloutWorker):
    """A rollout worker with a simulated engine; one process can hold several of them."""

    def __init__(self, latency: Latency, index: int) -> None:
        super().__init__(partial(SimulatedEngine, latency, seed=index))


class SimulatedLearners:
    """What a driver calls."""

    def __init__(self, latency: Latency) -> None:
        self._actor: Any = ray.remote(num_cpus=0)(SimulatedLearner).remote(latency)

    def update(self, rows: Sequence[LearnerRow], step: int) -> dict[str, float]:
        return {"tokens": ray.get(self._actor.update.remote(rows)), "log_prob_gap_mean": 0.0}

    def unreadable(self, rows: Sequence[LearnerRow]) -> dict[str, tuple[str, str]]:
        """It looks at no frames."""
        return {}

    def export_weights_refs(self) -> Any:
        return ray.get(self._actor.export.remote())

    def begin_save(self, folder: Path) -> int:
        (folder / "config.json").write_text("{}")
        return 0

    def is_saved(self) -> bool:
        return True

    def finish_save(self) -> None:
        """Nothing is under way."""


def make_recipe(folder: Path, settings: Sequence[str]) -> Recipe:
    """A recipe over a few clips and a small checkpoint, whose processor alone is used."""
    sizes = {"train": 24}
    data = folder / "data" / "clips.jsonl"
    if not data.exists():
        write_dataset(folder / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
        write_tiny_model(folder / "model")
    common = [
        "device=cpu",
        "model.dtype=float32",
        f"model.path={folder / 'model'}",
        f"data.path={data}",
        f"runs_dir={folder}",
        f"name=run-{time.monotonic_ns()}",
        "checkpoint.every=0",
        "video.max_pixels=1024",
        "reward.num_cpus=0.01",
    ]
    return load_recipe(None, [*common, *settings])


def load(recipe: Recipe) -> tuple[GrpoData, QwenVLInputs]:
    """What a driver needs beside its pools."""
    return GrpoData.load(recipe), QwenVLInputs(recipe.model.path)


def start_pools(
    recipe: Recipe, latency: Latency, spawn: Callable[[int], Any] | None = None
) -> Pools:
    """Started pools; `spawn` makes a rollout worker's handle, by default an actor of its own."""
    actor = ray.remote(num_cpus=0)(SimulatedWorker)
    rollouts = RolloutPool(recipe, spawn or (lambda index: actor.remote(latency, index)))
    rollouts.add_workers(recipe.rollout.num_workers)
    rollouts.wait_ready()
    learners: Any = SimulatedLearners(latency)
    rewards = RewardPool.start(recipe)
    return Pools(rollouts, rewards, learners, WeightSync(learners, rollouts))


def start_ray() -> None:
    """A local Ray of this benchmark's own."""
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )

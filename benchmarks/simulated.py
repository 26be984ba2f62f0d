"""Workers whose computing is replaced by waiting, for benchmarks of what is around it.

They are real Ray actors behind the real pools: prompts, tokens, log-probabilities and weights are
real arrays that really travel. Only generating and training are calibrated waits.
"""

import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from simulated_learner import Latency, SimulatedLearner

from actrep_ray.config import Recipe, load_recipe
from actrep_ray.driver.synchronous import GrpoData, Pools
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import LearnerRow, Prompt, RolloutGroup
from actrep_ray.rollout.engine import Engine, SamplingSettings, Weights, make_rollout
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.rollout.worker import RolloutWorker
from actrep_ray.scoring.pool import RewardPool
from actrep_ray.weights.sync import WeightSync
from data_prep.synthetic.dataset import write_dataset
from data_prep.video import FramePlan
from rewards.grammar.write import Response, render

_LONGEST_WAIT_S = 0.25  # of one step, as of one forward pass


class SimulatedEngine(Engine):
    """Finishes groups after a while; their answers are right or one off, in real text."""

    frames: Any = None  # it reads none

    def __init__(self, latency: Latency, seed: int) -> None:
        self._latency = latency
        self._random = np.random.default_rng(seed)
        self._waiting: deque[tuple[Prompt, SamplingSettings, int]] = deque()
        self._running: list[tuple[float, int, tuple[Prompt, SamplingSettings, int]]] = []
        self._number = 0
        self._version = 0

    @property
    def policy_version(self) -> int:
        return self._version

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + len(self._running)

    def add(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        self._waiting.extend((prompt, settings, self._version) for prompt in prompts)

    def step(self) -> list[RolloutGroup]:
        while self._waiting and len(self._running) < self._latency.width:
            seconds = self._latency.group_s * self._random.uniform(0.67, 1.33)
            self._number += 1
            item = (time.monotonic() + seconds, self._number, self._waiting.popleft())
            heapq.heappush(self._running, item)
        wait_s = self._running[0][0] - time.monotonic()
        if wait_s > _LONGEST_WAIT_S:
            time.sleep(_LONGEST_WAIT_S)
            return []
        time.sleep(max(wait_s, 0.0))
        return [self._answer(*heapq.heappop(self._running)[2])]

    def clear(self) -> None:
        self._waiting.clear()
        self._running.clear()

    def load_weights(self, weights: Weights, policy_version: int) -> None:
        self._version = policy_version

    def shutdown(self) -> None:
        """Nothing is held."""

    def _answer(self, prompt: Prompt, settings: SamplingSettings, version: int) -> RolloutGroup:
        rollouts = []
        for i in range(settings.group_size):
            count = 2 + i % 3
            cycles = tuple((float(c), c + 0.9) for c in range(count))
            text = render(Response("A ball moves.", "there and back", cycles, "even", count, count))
            rollouts.append(
                make_rollout(
                    prompt,
                    i,
                    token_ids=np.arange(settings.max_tokens).tolist(),
                    log_probs=np.full(settings.max_tokens, -1.0).tolist(),
                    text=text,
                    is_stopped=True,
                    policy_version=version,
                    last_policy_version=self._version,
                )
            )
        return RolloutGroup(prompt, tuple(rollouts), num_prompt_tokens=200)


class SimulatedWorker(RolloutWorker):
    """A rollout worker with a simulated engine; one process can hold several of them."""

    def __init__(self, latency: Latency, index: int) -> None:
        self.engine = SimulatedEngine(latency, seed=index)

    def prefetch(self, plans: Sequence[FramePlan]) -> None:
        """There is nothing to decode for."""


class SimulatedLearners:
    """What a driver calls."""

    def __init__(self, latency: Latency) -> None:
        self._actor: Any = ray.remote(num_cpus=0)(SimulatedLearner).remote(latency)

    def update(self, rows: Sequence[LearnerRow], step: int) -> dict[str, float]:
        return {"tokens": ray.get(self._actor.update.remote(rows)), "log_prob_gap_mean": 0.0}

    def export_weights_refs(self) -> Any:
        return ray.get(self._actor.export.remote())

    def save_model(self, folder: Path) -> None:
        (folder / "config.json").write_text("{}")

    def save_state(self, folder: Path) -> None:
        """Nothing is held."""


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

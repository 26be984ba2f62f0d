"""The rollout workers of a run, as Ray actors.

    prompts ─► chunks ─► worker 0 ─┐
                    └──► worker 1 ─┴─► groups, in the order of the prompts

A worker is given its next chunk when it has finished the last one, so that a slow one holds up
nobody. Every wait has a deadline and says what it waited for. A worker that dies is an error that
names it.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import ray

from actrep_ray.cluster import with_device
from actrep_ray.config import Recipe
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.worker import RolloutWorker
from actrep_ray.types import Prompt, RolloutGroup

OnGroup = Callable[[RolloutGroup], None]


class RolloutWorkerError(RuntimeError):
    """A rollout worker died; the message says which and at what."""


class RolloutPool:
    """Started rollout workers; `start` makes one.

    Args:
        recipe: Settings, with the device resolved.
        workers: Handles of the actors.
    """

    def __init__(self, recipe: Recipe, workers: Sequence[Any]) -> None:
        self.recipe = recipe
        self.workers = list(workers)
        self._timeout_s = recipe.rollout.timeout_s
        self._chunk_groups = recipe.rollout.max_num_seqs

    @classmethod
    def start(
        cls, recipe: Recipe, model_path: str | Path, *, num_workers: int | None = None
    ) -> Self:
        """Start the workers and wait until their engines are ready.

        Args:
            recipe: Settings.
            model_path: Folder of the checkpoint that the engines start from.
            num_workers: Workers, if not `rollout.num_workers`.

        Raises:
            RolloutWorkerError: if a worker dies at its start.
            TimeoutError: if they are not ready within `rollout.timeout_s`.
        """
        recipe = with_device(recipe)
        options = _actor_options(recipe)
        pool = cls(
            recipe,
            [
                ray.remote(**options)(RolloutWorker).remote(recipe, str(model_path), index)
                for index in range(num_workers or recipe.rollout.num_workers)
            ],
        )
        try:
            pool._call_all("ready", what="the engines to start")
        except BaseException:
            pool.shutdown()
            raise
        return pool

    def generate(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        on_group: OnGroup | None = None,
    ) -> list[RolloutGroup]:
        """Answer every prompt; groups come in the order of the prompts.

        Args:
            prompts: What to answer.
            settings: How to sample.
            on_group: Called with each group when it is there, in any order.

        Raises:
            RolloutWorkerError: naming the worker that died.
            TimeoutError: if not all groups were there within `rollout.timeout_s`.
        """
        chunks = _chunks(len(prompts), len(self.workers), self._chunk_groups // settings.group_size)
        groups: list[RolloutGroup | None] = [None] * len(prompts)
        deadline = time.monotonic() + self._timeout_s
        waiting = list(reversed(chunks))
        idle = list(reversed(range(len(self.workers))))
        running: dict[Any, tuple[int, range]] = {}
        while waiting or running:
            while waiting and idle:
                worker, chunk = idle.pop(), waiting.pop()
                part = [prompts[i] for i in chunk]
                ref = self.workers[worker].generate.remote(part, settings)
                running[ref] = (worker, chunk)
            names = [worker for worker, _ in running.values()]
            what = f"{sum(group is None for group in groups)} of {len(groups)} groups"
            ref = self._wait_one(list(running), names, deadline, what)
            worker, chunk = running.pop(ref)
            idle.append(worker)
            for i, group in zip(chunk, self._get(ref, worker, "generate"), strict=True):
                groups[i] = group
                if on_group is not None:
                    on_group(group)
        return [group for group in groups if group is not None]

    def load_weights(self, ref: "ray.ObjectRef", policy_version: int) -> list[float]:
        """Replace every engine's weights; returns each worker's seconds.

        Args:
            ref: A list of `WeightBucket`s in the object store.
            policy_version: Version that the engines stamp on their answers from now on.
        """
        what = f"the engines to load the weights of version {policy_version}"
        return self._call_all("load_weights", ref, policy_version, what=what)

    def policy_versions(self) -> list[int]:
        """The version that each engine reports."""
        return self._call_all("policy_version", what="the engines' policy versions")

    def shutdown(self) -> None:
        """End the workers; the pool cannot be used afterwards."""
        for worker in self.workers:
            ray.kill(worker)
        self.workers = []

    def _call_all(self, method: str, *arguments: Any, what: str) -> list[Any]:
        """Call a method of every worker at the same time; results in the workers' order."""
        deadline = time.monotonic() + self._timeout_s
        refs = [getattr(worker, method).remote(*arguments) for worker in self.workers]
        results: dict[int, Any] = {}
        while len(results) < len(refs):
            left = [i for i in range(len(refs)) if i not in results]
            ref = self._wait_one([refs[i] for i in left], left, deadline, what)
            worker = refs.index(ref)
            results[worker] = self._get(ref, worker, method)
        return [results[i] for i in range(len(refs))]

    def _wait_one(self, refs: list[Any], workers: list[int], deadline: float, what: str) -> Any:
        done, _ = ray.wait(refs, num_returns=1, timeout=max(deadline - time.monotonic(), 0.0))
        if not done:
            names = ", ".join(f"rollout worker {worker}" for worker in sorted(workers))
            raise TimeoutError(
                f"waited {self._timeout_s:g} s (rollout.timeout_s) for {what}; still missing: "
                f"{names}"
            )
        return done[0]

    def _get(self, ref: Any, worker: int, method: str) -> Any:
        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # as the worker raised it, its traceback behind
        except ray.exceptions.ActorDiedError as error:
            raise RolloutWorkerError(
                f"rollout worker {worker} died in `{method}`: {_last_line(error)}"
            ) from error


def _actor_options(recipe: Recipe) -> dict[str, Any]:
    """What Ray reserves for one worker, and the environment that its libraries read at import."""
    cfg = recipe.rollout
    env = {
        "OMP_NUM_THREADS": str(cfg.num_threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    return {
        "num_cpus": cfg.num_cpus,
        "num_gpus": cfg.tensor_parallel_size if recipe.device == "cuda" else 0,
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": env},
    }


def _chunks(num_prompts: int, num_workers: int, most: int) -> list[range]:
    """Consecutive ranges of prompts: at least one for each worker, none larger than `most`."""
    size = max(1, min(most, -(-num_prompts // num_workers)))
    return [range(start, min(start + size, num_prompts)) for start in range(0, num_prompts, size)]


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

"""The ranks of the learner as Ray actors: start, rendezvous, calls with deadlines, end.

Every rank gets the same rows and takes its own share (`learner.batches.deal`), so a call here is
the same call on every rank; rank 0's answer is the pool's.
"""

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import ray
import torch
from ray.util.placement_group import PlacementGroup

from actrep_ray.cluster.bundles import bundle_options, release, reserve
from actrep_ray.cluster.nodes import use_node_network, with_device
from actrep_ray.cluster.placement import share_of_bundle, shares_bundles
from actrep_ray.cluster.supervision import cause_of_loss
from actrep_ray.config import Recipe
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.planning.deepspeed_settings import check_deepspeed
from actrep_ray.records import LearnerRow
from actrep_ray.run.checkpoint import resolve_model
from actrep_ray.weights.buckets import pack_weights

_LOSS_S = 10.0  # from the first rank's failure to the news that another one was lost


class LearnerWorkerError(RuntimeError):
    """A rank died; the message says which and at what."""


class _Rank(LearnerWorker):
    """A worker that knows its node and hands out weights in buckets."""

    def rendezvous(self) -> tuple[str, int]:
        """Address of this node and a port that is free on it now."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), int(probe.getsockname()[1])

    def setup(self, master_addr: str, master_port: int) -> None:
        """See `LearnerWorker.setup`."""
        use_node_network()
        super().setup(master_addr, master_port)

    def update(self, rows: Sequence[LearnerRow], step: int) -> dict[str, float]:
        """See `LearnerWorker.update`; an engine on the same GPU gets what is free afterwards."""
        metrics = super().update(rows, step)
        if shares_bundles(self.recipe) and self.device.type == "cuda":
            torch.cuda.empty_cache()
        return metrics

    def export_buckets(self) -> list["ray.ObjectRef"]:
        """The weights on rank 0, nothing on the others; sent off bucket by bucket."""
        return [ray.put(bucket) for bucket in pack_weights(self.iter_weights())]


class LearnerPool:
    """Started ranks; `start` makes one.

    Args:
        recipe: Settings, with the device resolved.
        workers: Handles of the actors, rank 0 first.
        group: Their placement group; given back at the end.
    """

    def __init__(self, recipe: Recipe, workers: Sequence[Any], group: Any = None) -> None:
        self.recipe = recipe
        self.workers = list(workers)
        self._group = group
        self._timeout_s = recipe.learner.timeout_s

    @classmethod
    def start(
        cls,
        recipe: Recipe,
        model_path: str | Path,
        total_steps: int,
        bundles: PlacementGroup | None = None,
    ) -> Self:
        """Start the ranks and wait until each has its share of the model.

        Args:
            recipe: Settings; `recipe.stage` says whether `sft_step` or `update` is meant.
            model_path: Checkpoint to start or go on from.
            total_steps: Steps of the loop, for the learning rate.
            bundles: What `reserve` held for the ranks; by default it is reserved now.

        Raises:
            ConfigError: if the recipe contradicts the DeepSpeed JSON that it names.
            LearnerWorkerError: if a rank dies at its start.
            TimeoutError: if they are not ready within `learner.timeout_s`.
        """
        runs_dir = str(Path(recipe.runs_dir).absolute())  # a rank may have another folder
        recipe = with_device(recipe).model_copy(update={"runs_dir": runs_dir})
        options = _actor_options(recipe)
        size = recipe.learner.num_workers
        actor = ray.remote(**options)(_Rank)
        path = str(Path(model_path).absolute())
        base = str(resolve_model(recipe.model.path)) if _needs_base(recipe) else path
        check_deepspeed(recipe)
        group = bundles or reserve(recipe)
        ranks = [actor.options(**bundle_options(group, rank)) for rank in range(size)]
        pool = cls(
            recipe,
            [rank.remote(recipe, path, r, size, total_steps, base) for r, rank in enumerate(ranks)],
            group,
        )
        try:
            [(address, port)] = pool._call([0], "rendezvous", what="rank 0 to start")
            pool._call_all("setup", address, port, what="the learner ranks to load the model")
        except BaseException:
            pool.shutdown()
            raise
        return pool

    def sft_step(self, rows: Sequence[LearnerRow]) -> dict[str, float]:
        """One optimiser step of SFT over all ranks; see `LearnerWorker.sft_step`."""
        metrics: dict[str, float] = self._call_all("sft_step", rows, what="an SFT step")
        return metrics

    def sft_loss(self, rows: Sequence[LearnerRow]) -> dict[str, float]:
        """Loss on rows without training; see `LearnerWorker.sft_loss`."""
        metrics: dict[str, float] = self._call_all("sft_loss", rows, what="a validation loss")
        return metrics

    def update(self, rows: Sequence[LearnerRow], step: int) -> dict[str, float]:
        """All optimiser steps on one step's groups; see `LearnerWorker.update`."""
        what = f"the update of step {step}"
        metrics: dict[str, float] = self._call_all("update", rows, step, what=what)
        return metrics

    def log_probs(
        self, rows: Sequence[LearnerRow], *, reference: bool = False
    ) -> list[tuple[np.ndarray, ...]]:
        """Log-probabilities of the answers' tokens; see `LearnerWorker.log_probs`."""
        values: list[tuple[np.ndarray, ...]] = self._call_all(
            "log_probs", rows, what="log-probabilities", reference=reference
        )
        return values

    def export_weights_refs(self) -> list["ray.ObjectRef"]:
        """References of `WeightBucket`s with the current weights, when they are there."""
        refs: list[ray.ObjectRef] = self._call_all(
            "export_buckets", what="the weights to be exported"
        )
        return refs

    def save_model(self, folder: str | Path) -> None:
        """Write an ordinary Hugging Face folder."""
        self._call_all("save_model", str(Path(folder).absolute()), what="the model to be saved")

    def save_state(self, folder: str | Path) -> None:
        """Write what training goes on from, beside the model folder."""
        self._call_all("save_state", str(Path(folder).absolute()), what="the state to be saved")

    def load_state(self, folder: str | Path) -> None:
        """Go on from a saved state; the weights are those that the pool was started with."""
        self._call_all("load_state", str(Path(folder).absolute()), what="the state to be loaded")

    def shutdown(self) -> None:
        """End the ranks; the pool cannot be used afterwards."""
        for worker in self.workers:
            ray.kill(worker)
        self.workers = []
        if self._group is not None:
            release(self._group)
            self._group = None

    def _call_all(self, method: str, *arguments: Any, what: str, **options: Any) -> Any:
        """Call every rank at the same time and wait for all; returns rank 0's answer."""
        ranks = range(len(self.workers))
        return self._call(ranks, method, *arguments, what=what, **options)[0]

    def _call(
        self, ranks: Sequence[int], method: str, *arguments: Any, what: str, **options: Any
    ) -> list[Any]:
        refs = [getattr(self.workers[r], method).remote(*arguments, **options) for r in ranks]
        return self._wait(refs, ranks, method, what)

    def _wait(self, refs: list[Any], ranks: Sequence[int], method: str, what: str) -> list[Any]:
        """Results in the order of ranks; the first rank that fails ends the wait at once."""
        deadline = time.monotonic() + self._timeout_s
        left = list(refs)
        while left:
            remaining = max(0.0, deadline - time.monotonic())
            done, left = ray.wait(left, num_returns=1, timeout=remaining)
            if not done:
                missing = ", ".join(str(ranks[refs.index(ref)]) for ref in left)
                raise TimeoutError(
                    f"waited {self._timeout_s:g} s (learner.timeout_s) for {what}; still missing: "
                    f"rank {missing}"
                )
            rank_of = dict(zip(refs, ranks, strict=True))
            self._raise_if_failed(done[0], rank_of, method)
        results: list[Any] = ray.get(refs)
        return results

    def _raise_if_failed(self, ref: Any, rank_of: Mapping[Any, int], method: str) -> None:
        try:
            ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            # Where a rank is lost, those that were to talk to it fail first.
            if others := [other for other in rank_of if other != ref]:
                done, _ = ray.wait(others, num_returns=len(others), timeout=_LOSS_S)
                for other in done:
                    self._raise_if_lost(other, rank_of[other], method)
            raise error.cause from error  # as the rank raised it, its traceback behind
        except ray.exceptions.RayActorError:
            self._raise_if_lost(ref, rank_of[ref], method)

    def _raise_if_lost(self, ref: Any, rank: int, method: str) -> None:
        try:
            ray.get(ref)
        except ray.exceptions.RayActorError as error:
            # Until Ray knows that a node is lost, it would count on its room.
            cause = cause_of_loss(self.workers[rank], error)
            lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
            died = f"learner rank {rank} died in `{method}`: {lines[-1]}"
            raise LearnerWorkerError(died) from error
        except ray.exceptions.RayTaskError:
            return


def _needs_base(recipe: Recipe) -> bool:
    """Whether the weights that the run began with are needed for as long as it goes on."""
    is_grpo = recipe.stage == "grpo"
    has_reference = is_grpo and recipe.algorithm.kl_coef > 0
    return bool(recipe.model.path) and (has_reference or recipe.model.lora.rank > 0)


def _actor_options(recipe: Recipe) -> dict[str, Any]:
    """What Ray reserves for a rank, and the environment that its libraries read at import."""
    cfg = recipe.learner
    env = {
        "OMP_NUM_THREADS": str(cfg.num_threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {
        "num_cpus": cfg.num_cpus,
        "num_gpus": 1 if recipe.device == "cuda" else 0,
        **(share_of_bundle(recipe) if shares_bundles(recipe) else {}),
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": env},
    }

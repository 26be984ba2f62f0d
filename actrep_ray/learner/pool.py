"""The ranks of the learner as Ray actors: start, rendezvous, calls with deadlines, end.

Every rank gets the same rows and takes its own share (`learner/batch/rows.py:shard_rows`), so a
call here is the same call on every rank; rank 0's answer is the pool's.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from actrep_ray.cluster import presence
from actrep_ray.cluster.actors import (
    Bundles,
    ObjectRef,
    as_actor,
    cpu_threads,
    node_address,
    put,
)
from actrep_ray.cluster.bundles import bundle_options, release, reserve
from actrep_ray.cluster.mailbox import Mailbox
from actrep_ray.cluster.nodes import use_node_network, with_device
from actrep_ray.cluster.placement import is_colocated, share_of_bundle
from actrep_ray.cluster.processes import host_of, on_node
from actrep_ray.cluster.supervision import (
    CAUSE_S,
    Call,
    Loss,
    WorkerLostError,
    end_worker,
    find_cause,
    follow,
    wait_for,
)
from actrep_ray.config import Recipe
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.planning.deepspeed_settings import check_deepspeed
from actrep_ray.records import LearnerRow
from actrep_ray.run.model_folder import resolve_model
from actrep_ray.run.saving import SaveError
from actrep_ray.weights.buckets import pack_weights
from data_prep.full_disk import met_by_worker

_LOSS_S = 10.0  # from the first rank's failure to the news that another one was lost


class LearnerWorkerError(WorkerLostError):
    """A rank died; the message says which and at what."""


@dataclass(eq=False)
class _Round:
    """One call of some ranks at the same time, and what has come of it.

    Attributes:
        ranks: That were called.
        results: By rank.
        error: What the first of them raised that failed by itself.
        suspect: The first of them that was lost.
        loss: The same, when Ray knows the cause.
        is_over: Whether nobody waits for the others any more.
    """

    ranks: Sequence[int]
    results: dict[int, Any] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    error: Exception | None = None
    suspect: Loss | None = None
    loss: Loss | None = None
    is_over: bool = False

    @property
    def missing(self) -> list[int]:
        """Ranks that have not reported."""
        return [rank for rank in self.ranks if rank not in self.results.keys() | self.failed]

    @property
    def is_settled(self) -> bool:
        """Whether it is known how it ends, but for the cause of a loss."""
        return self.suspect is not None or self.is_over or not self.missing

    def end(self) -> None:
        """Wait no longer for the others."""
        self.is_over = True


class _Rank(LearnerWorker):
    """A worker that knows its node and hands out weights in buckets."""

    def rendezvous(self) -> tuple[str, int]:
        """Address of this node and a port that is free on it now."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return node_address(), int(probe.getsockname()[1])

    def setup(self, master_addr: str, master_port: int) -> None:
        """See `LearnerWorker.setup`."""
        use_node_network()
        super().setup(master_addr, master_port)

    def update(self, rows: Sequence[LearnerRow], step: int) -> dict[str, float]:
        """See `LearnerWorker.update`; an engine on the same GPU gets what is free afterwards."""
        metrics = super().update(rows, step)
        if is_colocated(self.recipe) and self.device.type == "cuda":
            torch.cuda.empty_cache()
        return metrics

    def export_buckets(self) -> list[ObjectRef]:
        """This rank's share of the weights, sent off bucket by bucket."""
        return list(map(put, pack_weights(self.iter_weights())))  # none is kept beside the next


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
        self.mailbox = Mailbox()
        self.timeout_s = recipe.learner.timeout_s  # of every wait
        self._group = group

    @classmethod
    def start(
        cls,
        recipe: Recipe,
        model_path: str | Path,
        total_steps: int,
        bundles: Bundles | None = None,
        base: Path | None = None,
    ) -> Self:
        """Start the ranks and wait until each has its share of the model.

        Args:
            recipe: Settings; `recipe.stage` says whether `sft_step` or `update` is meant.
            model_path: Checkpoint to start or go on from.
            total_steps: Steps of the loop, for the learning rate.
            bundles: What `reserve` held for the ranks; by default it is reserved now.
            base: Model that the run began with; by default what `model.path` means now.

        Raises:
            ConfigError: if the recipe contradicts the DeepSpeed JSON that it names.
            LearnerWorkerError: if a rank dies at its start.
            PlacementError: if the cluster has no room for them within `placement.busy_s`.
            TimeoutError: if they are not ready within `learner.timeout_s`.
        """
        runs_dir = str(Path(recipe.runs_dir).absolute())  # a rank may have another folder
        recipe = with_device(recipe).model_copy(update={"runs_dir": runs_dir})
        size = recipe.learner.num_workers
        actor = as_actor(_Rank, _actor_options(recipe))
        path = str(Path(model_path).absolute())
        begun = (base or resolve_model(recipe.model.path)) if _needs_base(recipe) else path
        check_deepspeed(recipe)
        group = bundles or reserve(recipe)
        ranks = [actor.options(**bundle_options(group, rank)) for rank in range(size)]
        workers = [
            rank.remote(recipe, path, r, size, total_steps, str(begun))
            for r, rank in enumerate(ranks)
        ]
        pool = cls(recipe, workers, group)
        try:
            pool._set_up()
        except BaseException:
            pool.shutdown()
            raise
        return pool

    def sft_step(self, rows: Sequence[LearnerRow]) -> dict[str, float]:
        """One optimiser step of SFT over all ranks; see `LearnerWorker.sft_step`."""
        metrics: dict[str, float] = self._call_all(
            "sft_step", lambda rank: rank.sft_step.remote(rows), what="an SFT step"
        )
        return metrics

    def sft_loss(self, rows: Sequence[LearnerRow]) -> dict[str, float]:
        """Loss on rows without training; see `LearnerWorker.sft_loss`."""
        metrics: dict[str, float] = self._call_all(
            "sft_loss", lambda rank: rank.sft_loss.remote(rows), what="a validation loss"
        )
        return metrics

    def update(self, rows: Sequence[LearnerRow], step: int) -> dict[str, float]:
        """All optimiser steps on one step's groups; see `LearnerWorker.update`."""
        what = f"the update of step {step}"
        metrics: dict[str, float] = self._call_all(
            "update", lambda rank: rank.update.remote(rows, step), what=what
        )
        return metrics

    def unreadable(self, rows: Sequence[LearnerRow]) -> dict[str, tuple[str, str]]:
        """Rows that a rank cannot get the frames of; see `LearnerWorker.unreadable`."""
        found: dict[str, tuple[str, str]] = self._call_all(
            "unreadable", lambda rank: rank.unreadable.remote(rows), what="a look for frames"
        )
        return found

    def hurry(self) -> None:
        """Wish that the ranks gave up an update, if that has changed nothing yet.

        It raises `AbandonedError` then. From any thread.
        """
        for worker in self.workers:
            host = host_of(worker._actor_id.hex())
            if host is not None:
                on_node(host.node, partial(presence.wish, host.pid))

    def log_probs(
        self, rows: Sequence[LearnerRow], *, reference: bool = False
    ) -> list[tuple[np.ndarray, ...]]:
        """Log-probabilities of the answers' tokens; see `LearnerWorker.log_probs`."""
        values: list[tuple[np.ndarray, ...]] = self._call_all(
            "log_probs",
            lambda rank: rank.log_probs.remote(rows, reference=reference),
            what="log-probabilities",
        )
        return values

    def export_weights_refs(self) -> list[ObjectRef]:
        """References of `WeightBucket`s with the current weights, when they are there."""
        of_ranks: list[list[ObjectRef]] = self._call_each(
            "export_buckets",
            lambda rank: rank.export_buckets.remote(),
            what="the weights to be exported",
        )
        return [ref for refs in of_ranks for ref in refs]

    def begin_save(self, folder: str | Path) -> int:
        """Have everything copied to host memory, and written from there; returns the writers."""
        path = str(Path(folder).absolute())
        with _own_errors():
            num_writers: int = self._call_all(
                "begin_save", lambda rank: rank.begin_save.remote(path), what="a copy to be saved"
            )
        return num_writers

    def is_saved(self) -> bool:
        """Whether what was begun is written; does not wait for it."""
        with _own_errors():
            of_ranks = self._call_each(
                "is_saved", lambda rank: rank.is_saved.remote(), what="news of what is saved"
            )
        return all(of_ranks)

    def finish_save(self) -> None:
        """Wait until what was begun is written."""
        with _own_errors():
            self._call_all(
                "finish_save", lambda rank: rank.finish_save.remote(), what="the files to be saved"
            )

    def load_state(self, folder: str | Path) -> None:
        """Go on from a saved state; the weights are those that the pool was started with."""
        path = str(Path(folder).absolute())
        self._call_all(
            "load_state", lambda rank: rank.load_state.remote(path), what="the state to be loaded"
        )

    def shutdown(self) -> None:
        """End the ranks; the pool cannot be used afterwards."""
        for worker in self.workers:
            end_worker(worker)
        self.workers = []
        if self._group is not None:
            release(self._group)
            self._group = None

    def _set_up(self) -> None:
        """Let the ranks find each other and load the model."""
        first = self._call([0], "rendezvous", lambda rank: rank.rendezvous.remote())
        ((address, port),) = self._wait(first, "rank 0 to start")
        self._call_all(
            "setup",
            lambda rank: rank.setup.remote(address, port),
            what="the learner ranks to load the model",
        )

    def _call_all(self, method: str, call: Callable[[Any], Any], *, what: str) -> Any:
        """Call every rank at the same time and wait for all; returns rank 0's answer."""
        return self._call_each(method, call, what=what)[0]

    def _call_each(self, method: str, call: Callable[[Any], Any], *, what: str) -> list[Any]:
        """As `_call_all`; returns all answers by rank."""
        return self._wait(self._call(range(len(self.workers)), method, call), what)

    def _call(self, ranks: Sequence[int], method: str, call: Callable[[Any], Any]) -> _Round:
        """Have ranks called by `call(handle)`; their reports arrive in the mailbox."""
        round_ = _Round(ranks)
        for rank in ranks:
            follow(
                self.mailbox,
                Call("learner", rank, method, call(self.workers[rank])),
                then=partial(round_.results.__setitem__, rank),
                on_loss=partial(self._on_loss, round_),
                on_error=partial(self._on_error, round_, rank),
                is_wanted=lambda: not round_.is_over,
            )
        return round_

    def _wait(self, round_: _Round, what: str) -> list[Any]:
        """The answers by rank when all have answered; the first loss or error ends the wait."""
        try:
            wait_for(
                self.mailbox,
                lambda: round_.is_settled,
                lambda: f"{what}; still missing: rank {', '.join(map(str, round_.missing))}",
                timeout_s=self.timeout_s,
                setting="learner.timeout_s",
            )
            if (suspect := round_.suspect) is not None:
                # Until Ray knows that a node is lost, it would count on its room.
                self.mailbox.wait(
                    lambda: round_.loss is not None,
                    2 * CAUSE_S,
                    lambda: f"waited {2 * CAUSE_S:g} s for Ray to say why {suspect}",
                )
        finally:
            round_.end()
        if round_.loss is not None:
            raise LearnerWorkerError(str(round_.loss), round_.loss)
        if round_.error is not None:
            raise round_.error
        return [round_.results[rank] for rank in round_.ranks]

    def _on_error(self, round_: _Round, rank: int, error: Exception) -> None:
        """Where a rank is lost, those that were to talk to it fail first: wait for that news."""
        round_.failed.add(rank)
        if round_.error is None:
            round_.error = error
            self.mailbox.post_later(_LOSS_S, round_.end)

    def _on_loss(self, round_: _Round, loss: Loss) -> None:
        round_.failed.add(loss.worker)
        if round_.suspect is None:
            round_.suspect = loss
            then = partial(setattr, round_, "loss")
            find_cause(self.mailbox, self.workers[loss.worker], loss, then)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise a rank's own `SaveError` instead of Ray's, which holds a traceback in its words."""
    try:
        yield
    except SaveError as error:
        raise SaveError(str(met_by_worker(error))) from error


def _needs_base(recipe: Recipe) -> bool:
    """Whether the weights that the run began with are needed for as long as it goes on."""
    is_grpo = recipe.stage == "grpo"
    has_reference = is_grpo and recipe.algorithm.kl_coef > 0
    return bool(recipe.model.path) and (has_reference or recipe.model.lora.rank > 0)


def _actor_options(recipe: Recipe) -> dict[str, Any]:
    """What Ray reserves for a rank, and the environment that its libraries read at import."""
    cfg = recipe.learner
    env = cpu_threads(recipe.device, cfg.num_threads) | {
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {
        "num_cpus": cfg.num_cpus,
        "num_gpus": 1 if recipe.device == "cuda" else 0,
        **(share_of_bundle(recipe) if is_colocated(recipe) else {}),
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": env},
    }

"""One rank of the learner: SFT steps, GRPO updates, scoring, export and saving.

A plain class: a process makes one, calls `setup`, and every rank then calls the same methods with
the SAME rows. Each rank takes its shard of them by a rule that all of them know, so denominators
and mini-batches are those of the whole batch whatever the number of ranks.

    rows ─► shard_rows ─► micro-batches ─► forward, loss_fn, backward ─► optimiser step ─► metrics
            └───── batch/loader ─────┘     └───────── optimizer_step, loss/, strategies/ ────────┘
"""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from actrep_ray.cluster import presence
from actrep_ray.cluster.stopping import AbandonedError
from actrep_ray.config import Recipe
from actrep_ray.learner.batch.feature_store import FeatureStore
from actrep_ray.learner.batch.loader import MicroBatchLoader
from actrep_ray.learner.batch.prompts import PromptEncoder
from actrep_ray.learner.batch.rows import check_rows, mini_batches, shard_rows
from actrep_ray.learner.forward import Forward, WithoutAdapters, score_rows
from actrep_ray.learner.grpo import GrpoUpdate
from actrep_ray.learner.loss import algorithms, objective
from actrep_ray.learner.loss.algorithms import BatchCounts
from actrep_ray.learner.loss.correction import TokenWeights
from actrep_ray.learner.model_io import Checkpoints, ModelIO, load_policy, load_reference
from actrep_ray.learner.optimizer_step import OptimizerSteps
from actrep_ray.learner.ranks import Ranks
from actrep_ray.learner.saving import BackgroundSave
from actrep_ray.learner.strategies.ema import Ema
from actrep_ray.learner.strategies.factory import make_strategy
from actrep_ray.media.frame_cache import FrameCache
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.torch_names import device_named, host_threads
from actrep_ray.planning.training import optimizer_steps_per_step
from actrep_ray.records import LearnerRow

_log = logging.getLogger(__name__)


class LearnerWorker:
    """A rank that trains.

    Args:
        recipe: All settings; `recipe.stage` says which of `sft_step` and `update` is meant.
        model_path: Checkpoint to start or go on from.
        rank: Number of this rank, from 0.
        world_size: Number of ranks.
        total_steps: Steps of the loop, with the last of which the learning rate schedule ends.
        base_path: Checkpoint of the reference policy, and that which adapters belong to;
            `model_path` if None.
    """

    def __init__(
        self,
        recipe: Recipe,
        model_path: str,
        rank: int,
        world_size: int,
        total_steps: int,
        base_path: str | None = None,
    ) -> None:
        self.recipe = recipe
        self.checkpoints = Checkpoints(Path(model_path), Path(base_path or model_path))
        self.device = device_named(recipe.device)
        self.ranks = Ranks(rank, world_size, self.device)
        self.total_steps = total_steps
        self.kl_coef = recipe.algorithm.kl_coef
        self.saving = BackgroundSave()
        self._num_at_begin = 0  # optimiser steps when the call under way began

    def setup(self, master_addr: str, master_port: int) -> None:
        """Join the other ranks and load the model; returns when this rank can train."""
        recipe, ranks, checkpoints = self.recipe, self.ranks, self.checkpoints
        if self.device.type == "cpu":
            torch.set_num_threads(recipe.learner.num_threads)
        else:  # Ray lets a process have one for each CPU that it reserves: one
            torch.set_num_threads(host_threads())
        torch.manual_seed(recipe.seed)
        ranks.join(master_addr, master_port, recipe.learner.timeout_s)
        self.inputs = QwenVLInputs(checkpoints.model)
        frames = FrameCache.of(recipe.video)
        self.encoder = PromptEncoder(
            self.inputs, frames, int(recipe.learner.prompt_cache_gib * 2**30)
        )
        self.loader = MicroBatchLoader(self.encoder, ranks, recipe.learner, self._give_way)
        visual_ids = self.inputs.visual_token_ids
        loaded = load_policy(recipe, checkpoints, visual_ids, ranks)
        self.policy = loaded.policy
        self.strategy = make_strategy(self.policy, ranks.mesh, recipe, loaded.source)
        if (tower := self.policy.tower) is not None:
            max_bytes = int(recipe.learner.feature_cache_gib * 2**30)
            self.encoder.features = FeatureStore(frames, max_bytes, tower, self.inputs)
        decay = recipe.learner.ema_decay
        self.ema = None if decay is None else Ema(self.strategy, decay)
        self.steps = OptimizerSteps(
            recipe,
            ranks,
            self.policy,
            self.strategy,
            self.ema,
            self.loader,
        )
        self.model_io = ModelIO(
            recipe,
            ranks,
            self.policy,
            self.strategy,
            self.ema,
            checkpoints,
            loaded.base_fingerprint,
            self.inputs,
        )
        self.reference: Forward | None = None
        if recipe.stage == "grpo":
            if recipe.algorithm.kl_coef > 0 and recipe.model.lora.rank > 0:
                self.reference = WithoutAdapters(self.policy, self.strategy)
            elif recipe.algorithm.kl_coef > 0:
                self.reference = load_reference(
                    recipe, checkpoints.base, self.policy, visual_ids, ranks
                )
            algorithms.preload()
        self.grpo = GrpoUpdate(
            recipe, ranks, self.loader, self.strategy.forward, self.reference, self.steps
        )

    @property
    def num_optimizer_steps(self) -> int:
        """Optimiser steps taken, those before a restart included."""
        return self.steps.num_taken

    def shutdown(self) -> None:
        """Leave the other ranks."""
        self.ranks.leave()

    # ---------------------------------------------------------------- training

    def sft_step(self, rows: Sequence[LearnerRow]) -> dict[str, float]:
        """One optimiser step of cross-entropy on the answers' tokens; `loss` is per token."""
        start = time.monotonic()
        check_rows(rows, self.inputs.visual_token_ids)
        self._num_at_begin = self.num_optimizer_steps
        learned = objective.learned_tokens(rows)
        counts = self._count(rows, learned)
        metrics = self.steps.take(
            rows,
            range(len(rows)),
            lambda batch, log_probs, entropy: objective.sft_loss(
                log_probs, entropy, counts, learned.mask(batch)
            ),
            counts,
            temperature=1.0,
            num_left=max(1, self.total_steps - self.num_optimizer_steps),
        )
        return metrics | _speed(counts, start)

    @torch.no_grad()
    def sft_loss(self, rows: Sequence[LearnerRow]) -> dict[str, float]:
        """Cross-entropy per token of the answers, without training.

        Raises:
            AbandonedError: if somebody wishes so.
        """
        check_rows(rows, self.inputs.visual_token_ids)
        self._num_at_begin = self.num_optimizer_steps
        sums = {"loss": 0.0, "entropy": 0.0}
        for micro in self.loader.load(rows, range(len(rows))):
            log_probs, entropy = self.strategy.forward(micro.batch, temperature=1.0)
            sums["loss"] -= float(log_probs.sum()) * micro.weight
            sums["entropy"] += float(entropy.sum()) * micro.weight
        num_tokens = self._count(rows).num_tokens
        return {key: value / num_tokens for key, value in self.ranks.sum(sums).items()}

    def update(self, rows: Sequence[LearnerRow], step: int) -> dict[str, float]:
        """All optimiser steps of one step's groups.

        Old log-probabilities are those of the weights before the first of them. Mini-batches are
        consecutive rows; each of `num_updates_per_batch` passes goes through all of them. Those
        without a gradient are skipped.

        Args:
            rows: Groups with advantages and the engine's log-probabilities.
            step: Of the loop; the schedule counts on full batches in those after it.

        Returns:
            Means over tokens (or answers, as the aggregation says) of the last pass; the
            log-probability gap to the engine is that before the first optimiser step.

        Raises:
            LearnerError: if a loss or gradient is not finite; no optimiser step was taken then.
            AbandonedError: if somebody wishes so before the first optimiser step; likewise.
        """
        start = time.monotonic()
        check_rows(rows, self.inputs.visual_token_ids)
        num_before = self._num_at_begin = self.num_optimizer_steps
        num_later = (self.total_steps - step) * optimizer_steps_per_step(self.recipe)
        metrics, self.kl_coef = self.grpo.run(rows, self.kl_coef, max(0, num_later))
        _log.info("step %d: %s", step, metrics)
        metrics["num_optimizer_steps"] = float(self.num_optimizer_steps - num_before)
        if self.num_optimizer_steps == num_before and self.ranks.is_first:
            _log.warning("step %d: no optimiser step was taken: no answer has a gradient", step)
        return metrics | _speed(self._count(rows), start)

    def unreadable(self, rows: Sequence[LearnerRow]) -> dict[str, tuple[str, str]]:
        """Reason and message of each row whose frames the rank that trains on it cannot get.

        Asked before an optimiser step, which no rank can leave alone. The others' frames are in
        their node's cache afterwards.
        """
        train, size = self.recipe.train, self.ranks.size
        is_sft = self.recipe.stage == "sft"
        minis = [list(range(len(rows)))] if is_sft else mini_batches(len(rows), train)
        own = [i for mini in minis for i in shard_rows(rows, mini, size)[self.ranks.rank]]
        found = {}
        for row in (rows[i] for i in own):
            if problem := self.encoder.problem(row):
                found[row.row_id] = problem
        return {name: why for part in self.ranks.gather(found) for name, why in part.items()}

    def log_probs(
        self, rows: Sequence[LearnerRow], *, reference: bool = False
    ) -> list[tuple[np.ndarray, ...]]:
        """Log-probability of every token of every answer, float32 [R_i], in the order of rows.

        Divided by the temperature of sampling in GRPO. Every rank returns all of them.

        Raises:
            ValueError: if the reference policy is asked for and there is none.
        """
        if reference and self.reference is None:
            raise ValueError("there is no reference policy: algorithm.kl_coef is 0")
        forward = self.reference if reference else self.strategy.forward
        assert forward is not None
        check_rows(rows, self.inputs.visual_token_ids)
        is_sft = self.recipe.stage == "sft"
        temperature = 1.0 if is_sft else self.recipe.rollout.temperature
        minis = mini_batches(len(rows), self.recipe.train)
        values = score_rows(self.loader, rows, minis, forward, temperature)
        of_all = {key: v for part in self.ranks.gather(values) for key, v in part.items()}
        return [
            tuple(of_all[i, a] for a in range(len(row.responses))) for i, row in enumerate(rows)
        ]

    # ---------------------------------------------------------------- weights and state

    def iter_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name in the checkpoint's files, whole weight on the CPU in the model's dtype).

        This rank's share of them (`shares.Shares`), gathered one by one; every rank must go
        through to the end. A tied output layer is left out; adapters are merged, or come alone,
        under the model's own names, where the recipe sends them.
        """
        return self.model_io.iter_weights()

    def save_model(self, folder: str | Path) -> None:
        """Write an ordinary Hugging Face folder: config, weights, tokenizer, processor.

        Adapters are merged into the weights. The moving average, if there is one, becomes such a
        folder in it: `ema`.
        """
        self.model_io.save_model(Path(folder))

    def save_state(self, folder: str | Path) -> None:
        """Write what training goes on from, beside the model folder.

        With LoRA also the adapter in peft's format, in `adapter/`.
        """
        self.model_io.save_state(Path(folder), self._progress())

    def begin_save(self, folder: str | Path) -> int:
        """Copy model and state to host memory and begin to write them: to `folder`, `training/`.

        Returns:
            How many ranks write: all.
        """
        self.saving.wait()  # and raise nothing on one rank alone, for the others would wait for it
        snapshot = self.model_io.snapshot(self._progress())
        self.saving.begin(snapshot, Path(folder), self.ranks.rank)
        return self.ranks.size

    def is_saved(self) -> bool:
        """Whether this rank's share of what was begun is written; does not wait.

        Raises:
            SaveError: if it could not be.
        """
        if not self.saving.is_over:
            return False
        self.saving.finish()
        return True

    def finish_save(self) -> None:
        """Wait until this rank's share of what was begun is written.

        Raises:
            SaveError: if it could not be.
        """
        self.saving.finish()

    def load_state(self, folder: str | Path) -> None:
        """Go on from a saved state; the weights are those of `model_path`.

        Raises:
            ValueError: if it belongs to another model, or its adapter to another base.
        """
        progress = self.model_io.load_state(Path(folder))
        self.steps.num_taken = int(progress["num_optimizer_steps"])
        if self.recipe.algorithm.kl_target is not None and "kl_coef" in progress:
            self.kl_coef = float(progress["kl_coef"])

    def _give_way(self) -> None:
        """Between two micro-batches: leave what has changed nothing, if that is wished.

        Raises:
            AbandonedError: on all ranks, or on none.
        """
        if self.num_optimizer_steps != self._num_at_begin:
            return
        if self.ranks.max(float(presence.is_wished())):
            self.strategy.reshard()
            raise AbandonedError("given up before an optimiser step was taken")

    def _progress(self) -> dict[str, float]:
        return {"num_optimizer_steps": self.num_optimizer_steps, "kl_coef": self.kl_coef}

    def _count(
        self, rows: Sequence[LearnerRow], weights: TokenWeights | None = None
    ) -> BatchCounts:
        return objective.count_batch(
            rows,
            range(len(rows)),
            num_ranks=self.ranks.size,
            max_answer_tokens=self.recipe.rollout.max_response_tokens,
            weights=weights,
        )


def _speed(counts: BatchCounts, start: float) -> dict[str, float]:
    seconds = time.monotonic() - start
    return {
        "num_response_tokens": float(counts.num_tokens),
        "tokens_per_s": counts.num_tokens / seconds,
        "seconds": seconds,
    }

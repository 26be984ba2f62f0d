"""One update of GRPO: score the groups, then optimiser steps over mini-batches of them.

rows ─► ref, old log-probabilities ─► KL penalty, corrections ─► passes x mini-batches ─► metrics
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from actrep_ray.config import Recipe
from actrep_ray.learner.batch.loader import MicroBatchLoader
from actrep_ray.learner.batch.packing import PackedBatch
from actrep_ray.learner.batch.rows import (
    LogProbGap,
    TokenValues,
    by_answer,
    mini_batches,
    shard_rows,
)
from actrep_ray.learner.forward import Forward, score_rows
from actrep_ray.learner.loss import algorithms
from actrep_ray.learner.loss.algorithms import BatchCounts
from actrep_ray.learner.loss.correction import apply_kl_penalty, token_weights
from actrep_ray.learner.loss.covariance import pick_tokens
from actrep_ray.learner.loss.objective import LossAndSums, PolicyTargets, count_batch, grpo_loss
from actrep_ray.learner.optimizer_step import OptimizerSteps
from actrep_ray.learner.ranks import Ranks
from actrep_ray.records import LearnerRow


class GrpoUpdate:
    """Trains on one step's groups at a time.

    Args:
        recipe: Settings.
        ranks: All of them make the same calls.
        loader: Makes micro-batches.
        policy: Forward pass of what is trained.
        reference: That of the reference policy; None: no KL.
        steps: Takes the optimiser steps.
    """

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        loader: MicroBatchLoader,
        policy: Forward,
        reference: Forward | None,
        steps: OptimizerSteps,
    ) -> None:
        self._recipe = recipe
        self._ranks = ranks
        self._loader = loader
        self._policy = policy
        self._reference = reference
        self._steps = steps
        self._num_before = 0  # optimiser steps when this update began

    def run(
        self, rows: Sequence[LearnerRow], kl_coef: float, num_later: int
    ) -> tuple[dict[str, float], float]:
        """All optimiser steps of one step's groups; see `LearnerWorker.update`.

        Args:
            rows: Groups with advantages and the engine's log-probabilities.
            kl_coef: Weight of the KL to the reference policy.
            num_later: Optimiser steps that are to come after these.

        Returns:
            Metrics, and the weight of the KL in the next update.
        """
        minis = mini_batches(len(rows), self._recipe.train)
        num_passes = self._recipe.train.num_updates_per_batch
        is_single = len(minis) * num_passes == 1
        targets, gap = self._prepare(rows, minis, kl_coef, is_single=is_single)
        self._num_before = self._steps.num_taken
        metrics: dict[str, float] = {}
        for num_passes_left in reversed(range(num_passes)):
            later = num_later + num_passes_left * len(minis)
            metrics = self._pass(minis, targets, gap, later)
        metrics |= gap.metrics(self._ranks) | dict(targets.weights.metrics)
        if targets.ref is None:
            return metrics, kl_coef
        metrics["kl_coef"] = kl_coef
        num_answers = sum(
            targets.weights.num_kept.get((i, a), 1) > 0
            for i, row in enumerate(rows)
            for a in range(len(row.responses))
        )
        if num_answers == 0:  # a KL of no token says nothing
            return metrics, kl_coef
        cfg = self._recipe.algorithm
        return metrics, algorithms.next_kl_coef(kl_coef, metrics["ref_kl"], num_answers, cfg)

    def _prepare(
        self,
        rows: Sequence[LearnerRow],
        minis: Sequence[list[int]],
        kl_coef: float,
        *,
        is_single: bool,
    ) -> tuple[PolicyTargets, LogProbGap]:
        """Score rows before the first optimiser step; `is_single`: there will be no other."""
        cfg, ranks = self._recipe.algorithm, self._ranks
        temperature = self._recipe.rollout.temperature
        ref = old = None
        if self._reference is not None:
            ref = score_rows(self._loader, rows, minis, self._reference, temperature)
        # A single optimiser step sees the old weights itself, if nothing asks for them before.
        if not is_single or cfg.needs_old_log_probs:
            old = score_rows(self._loader, rows, minis, self._policy, temperature)
        own = {i for mini in minis for i in shard_rows(rows, mini, ranks.size)[ranks.rank]}
        gap = LogProbGap(rows, own)
        if old is not None:
            gap.add(old)
        if old is not None and ref is not None and cfg.kl_in == "reward":
            rows = apply_kl_penalty(rows, own, old, ref, kl_coef, cfg, ranks.gather)
        weights = token_weights(rows, own, old, cfg, ranks.gather)
        return PolicyTargets(rows, old, ref, weights, kl_coef), gap

    def _pass(
        self,
        minis: Sequence[list[int]],
        targets: PolicyTargets,
        gap: LogProbGap,
        num_later: int,
    ) -> dict[str, float]:
        """An optimiser step on each mini-batch; means over tokens of their metrics."""
        all_counts = [
            count_batch(
                targets.rows,
                mini,
                num_ranks=self._ranks.size,
                max_answer_tokens=self._recipe.rollout.max_response_tokens,
                weights=targets.weights,
            )
            for mini in minis
        ]
        found = [
            self._step(mini, counts, targets, gap, num_later + len(minis) - k)
            for k, (mini, counts) in enumerate(zip(minis, all_counts, strict=True))
        ]
        num_tokens = [counts.num_tokens for counts in all_counts]
        return {
            key: float(np.average([metrics[key] for metrics in found], weights=num_tokens))
            for key in found[0]
        }

    def _step(
        self,
        mini: Sequence[int],
        counts: BatchCounts,
        targets: PolicyTargets,
        gap: LogProbGap,
        num_left: int,
    ) -> dict[str, float]:
        """One optimiser step on a mini-batch of groups."""
        cfg = self._recipe.algorithm
        if cfg.picks_tokens:
            targets = replace(targets, picked=self._pick(mini, targets))

        def loss_fn(
            batch: PackedBatch, log_probs: torch.Tensor, entropy: torch.Tensor
        ) -> LossAndSums:
            if targets.old is None:
                gap.add(by_answer(batch, log_probs))
            return grpo_loss(batch, log_probs, entropy, targets, counts, cfg)

        return self._steps.take(
            targets.rows,
            mini,
            loss_fn,
            counts,
            temperature=self._recipe.rollout.temperature,
            num_left=num_left,
            with_entropy_grad=cfg.entropy_coef > 0,
        )

    def _pick(self, mini: Sequence[int], targets: PolicyTargets) -> TokenValues:
        """Tokens of a mini-batch that stand out by the weights that its step is about to change."""
        rows, ranks, num_taken = targets.rows, self._ranks, self._steps.num_taken
        assert targets.old is not None, "picking compares with the old log-probabilities"
        now = targets.old
        if num_taken > self._num_before:
            temperature = self._recipe.rollout.temperature
            now = score_rows(self._loader, rows, [mini], self._policy, temperature)
        return pick_tokens(
            rows,
            shard_rows(rows, mini, ranks.size)[ranks.rank],
            now,
            targets.old,
            targets.weights.masks,
            self._recipe.algorithm,
            (self._recipe.seed, num_taken),
            ranks.gather,
        )

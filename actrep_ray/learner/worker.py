"""One rank of the learner: SFT steps, GRPO updates, scoring, export and saving.

A plain class: a process makes one, calls `setup`, and every rank then calls the same methods with
the SAME rows. Each rank takes its share of them by a rule that all of them know, so denominators
and mini-batches are those of the whole batch whatever the number of ranks.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers.core_model_loading import revert_weight_conversion

from actrep_ray.config import Recipe
from actrep_ray.learner.batch.packing import (
    PackedBatch,
    PackedRow,
    collate,
    micro_batches,
    split_row,
)
from actrep_ray.learner.batch.prompts import PromptEncoder
from actrep_ray.learner.batch.rows import (
    LogProbGap,
    Share,
    TokenValues,
    by_answer,
    check_rows,
    deal,
    mini_batches,
)
from actrep_ray.learner.folders import complete_folder, copy_processor_files
from actrep_ray.learner.loss import algorithms
from actrep_ray.learner.loss.algorithms import BatchCounts
from actrep_ray.learner.loss.correction import TokenWeights, take_kl_off_rewards, token_weights
from actrep_ray.learner.policy import Policy
from actrep_ray.learner.strategies import fsdp, optimizer
from actrep_ray.learner.strategies.base import make_strategy
from actrep_ray.learner.strategies.ema import Ema
from actrep_ray.media.frame_cache import FrameCache
from actrep_ray.models import loading, lora
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.planning.training import optimizer_steps_per_step
from actrep_ray.records import LearnerRow
from actrep_ray.weights.buckets import BUCKET_BYTES

_log = logging.getLogger(__name__)

LossFn = Callable[[PackedBatch, torch.Tensor, torch.Tensor], tuple[torch.Tensor, dict[str, float]]]
"""(batch, log_probs, entropy) to a share of the loss and sums over tokens."""

ForwardFn = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""(batch, temperature=) to log-probabilities and entropies: of the policy or the reference."""


class LearnerError(RuntimeError):
    """Training cannot go on; the message says why and which rows were at hand."""


class LearnerWorker:
    """A rank that trains.

    Args:
        recipe: All settings; `recipe.stage` says which of `sft_step` and `update` is meant.
        model_path: Checkpoint to start or go on from.
        rank: Of this process.
        world_size: Number of ranks.
        total_steps: Steps of the loop that the learning rate schedule spans.
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
        self.model_path = Path(model_path)
        self.base_path = Path(base_path or model_path)
        self.rank = rank
        self.world_size = world_size
        self.total_optimizer_steps = total_steps * optimizer_steps_per_step(recipe)
        self.num_optimizer_steps = 0
        self.kl_coef = recipe.algorithm.kl_coef
        self.device = _device(recipe.device)
        self.dtype: torch.dtype = getattr(torch, recipe.model.dtype)

    def setup(self, master_addr: str, master_port: int) -> None:
        """Join the other ranks and load the model; returns when this rank can train."""
        if self.device.type == "cpu":
            torch.set_num_threads(self.recipe.learner.num_threads)
        torch.manual_seed(self.recipe.seed)
        if not dist.is_initialized():  # a process may hold more than one learner
            dist.init_process_group(
                # gloo beside NCCL, for what is offloaded to CPU memory
                "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo",
                init_method=f"tcp://{master_addr}:{master_port}",
                rank=self.rank,
                world_size=self.world_size,
                timeout=timedelta(seconds=self.recipe.learner.timeout_s),
            )
        self.mesh = init_device_mesh(self.device.type, (self.world_size,))
        self.inputs = QwenVLInputs(self.model_path)
        video = self.recipe.video
        frames = FrameCache(video.cache_dir, int(video.cache_gib * 2**30))
        self.encoder = PromptEncoder(self.inputs, frames)
        self.policy = self._load_policy()
        self.strategy = make_strategy(self.policy, self.mesh, self.recipe)
        decay = self.recipe.learner.ema_decay
        self.ema = None if decay is None else Ema(self.strategy, decay)
        self.reference: ForwardFn | None = None
        if self.recipe.stage == "grpo":
            if self.recipe.algorithm.kl_coef > 0:
                self.reference = self._base_forward if self._has_lora else self._load_reference()
            algorithms.preload()

    def shutdown(self) -> None:
        """Leave the other ranks."""
        if dist.is_initialized():
            dist.destroy_process_group()

    # ---------------------------------------------------------------- training

    def sft_step(self, rows: Sequence[LearnerRow]) -> dict[str, float]:
        """One optimiser step of cross-entropy on the answers' tokens; `loss` is per token."""
        start = time.monotonic()
        self._check(rows)
        loss_of = self._sft_loss_of(self._counts(rows))
        metrics = self._optimizer_step(rows, range(len(rows)), loss_of, temperature=1.0)
        return self._finish(metrics, self._counts(rows).num_tokens, start)

    @torch.no_grad()
    def sft_loss(self, rows: Sequence[LearnerRow]) -> dict[str, float]:
        """Cross-entropy per token of the answers, without training."""
        self._check(rows)
        sums = {"loss": 0.0, "entropy": 0.0}
        for share, batch in self._batches(rows, range(len(rows))):
            log_probs, entropy = self.strategy.forward(batch, temperature=1.0)
            sums["loss"] -= float(log_probs.sum()) * share.weight
            sums["entropy"] += float(entropy.sum()) * share.weight
        num_tokens = self._counts(rows).num_tokens
        return {key: value / num_tokens for key, value in self._sum(sums).items()}

    def update(self, rows: Sequence[LearnerRow], step: int) -> dict[str, float]:
        """All optimiser steps of one step's groups.

        Old log-probabilities are those of the weights before the first of them. Mini-batches are
        consecutive rows; each of `num_updates_per_batch` passes goes through all of them.

        Args:
            rows: Groups with advantages and the engine's log-probabilities.
            step: Of the loop, for the log.

        Returns:
            Means over tokens (or answers, as the aggregation says) of the last pass; the
            log-probability gap to the engine is that before the first optimiser step.

        Raises:
            LearnerError: if a loss or gradient is not finite; no optimiser step was taken then.
        """
        start = time.monotonic()
        cfg = self.recipe.train
        self._check(rows)
        minis = self._mini_batches(rows)
        temperature = self.recipe.rollout.temperature
        ref = self._score(rows, self.reference, temperature) if self.reference else None
        # A single optimiser step sees the old weights itself.
        is_single = len(minis) * cfg.num_updates_per_batch == 1 and not self._compares_old
        old = None if is_single else self._score(rows, self.strategy.forward, temperature)
        own = {i for m in minis for i in deal(rows, m, self.world_size)[self.rank]}
        gap = LogProbGap(rows, own)
        if old is not None:
            gap.add(old)
        algorithm = self.recipe.algorithm
        if old is not None and ref is not None and algorithm.kl_in == "reward":
            rows = take_kl_off_rewards(rows, own, old, ref, self.kl_coef, algorithm, self._gather)
        weights = token_weights(rows, own, old, algorithm, self._gather)
        metrics: dict[str, float] = {}
        for _ in range(cfg.num_updates_per_batch):
            passes = [self._train(rows, mini, old, ref, gap, weights) for mini in minis]
            tokens = [self._kept_counts(rows, mini, weights).num_tokens for mini in minis]
            metrics = {
                key: float(np.average([m[key] for m in passes], weights=tokens))
                for key in passes[0]
            }
        metrics |= self._log_prob_gap(gap) | dict(weights.metrics)
        if ref is not None:
            metrics["kl_coef"] = self.kl_coef
            num_answers = sum(len(row.responses) for row in rows)
            self.kl_coef = algorithms.next_kl_coef(
                self.kl_coef, metrics["ref_kl"], num_answers, algorithm
            )
        _log.info("step %d: %s", step, metrics)
        metrics["num_optimizer_steps"] = float(len(minis) * cfg.num_updates_per_batch)
        return self._finish(metrics, self._counts(rows).num_tokens, start)

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
        self._check(rows)
        is_sft = self.recipe.stage == "sft"
        temperature = 1.0 if is_sft else self.recipe.rollout.temperature
        values = self._score(rows, forward, temperature)
        everything = {key: value for part in self._gather(values) for key, value in part.items()}
        return [
            tuple(everything[i, a] for a in range(len(row.responses))) for i, row in enumerate(rows)
        ]

    # ---------------------------------------------------------------- weights

    def export_weights(self) -> list[tuple[str, torch.Tensor]]:
        """All of `iter_weights` at once."""
        return list(self.iter_weights())

    def iter_weights(self, bucket_bytes: int = BUCKET_BYTES) -> Iterator[tuple[str, torch.Tensor]]:
        """(name in the checkpoint's files, whole weight on the CPU in the model's dtype).

        Gathered piece by piece, so that no more than `bucket_bytes` of them exist beside what the
        caller keeps. A tied output layer is left out; adapters are merged, or come alone, under
        the model's own names, where the recipe sends them. Rank 0 gets them, the others nothing;
        every rank must go through to the end.
        """
        if self.recipe.sends_adapters:
            yield from self._on_rank_0(lora.adapter_weights(self.policy.model, self.strategy.whole))
            return
        bucket: dict[str, torch.Tensor] = {}
        size = 0
        for name, weight in self._model_weights():
            bucket[name], size = weight, size + weight.nbytes
            if size >= bucket_bytes:
                yield from revert_weight_conversion(self.policy.model, bucket).items()
                bucket, size = {}, 0
        yield from revert_weight_conversion(self.policy.model, bucket).items()

    def save_model(self, folder: str | Path) -> None:
        """Write an ordinary Hugging Face folder: config, weights, tokenizer, processor.

        Adapters are merged into the weights. The moving average, if there is one, becomes such a
        folder in it: `ema`.
        """
        with complete_folder(Path(folder), is_writer=self.rank == 0) as target:
            self._write_model(target, self._model_weights())
            if self.ema is not None:
                with self.ema.in_place():
                    whole = lora.merged_weights(self.policy.model, self.strategy.whole_master)
                    self._write_model(target / "ema", self._on_rank_0(whole))
        dist.barrier()

    def save_state(self, folder: str | Path) -> None:
        """Write what training goes on from, beside the model folder.

        With LoRA also the adapter in peft's format, in `adapter/`.
        """
        is_writer = self.rank == 0
        self.strategy.reshard()
        state: dict[str, Any] = {
            "num_optimizer_steps": self.num_optimizer_steps,
            "kl_coef": self.kl_coef,
        }
        if self._has_lora:
            state |= {"base_model": str(self.base_path), "base_fingerprint": self._base_fingerprint}
        with complete_folder(Path(folder), is_writer=is_writer) as target:
            optimizer.save_optimizer(
                target,
                self.policy.model,
                self.strategy,
                state,
                is_writer=is_writer,
                weights_of=self._is_saved_exactly,
            )
            if self.ema is not None:
                self.ema.save(target, self.policy.model, is_writer=is_writer)
            if self._has_lora:
                adapter = {
                    name: self.strategy.whole_master(parameter).to("cpu", copy=True)
                    for name, parameter in self.policy.model.named_parameters()
                    if lora.is_adapter(name)
                }
                if is_writer:
                    lora.save_adapter(target / "adapter", self.recipe.model.lora, adapter)
        dist.barrier()

    def load_state(self, folder: str | Path) -> None:
        """Go on from a saved state; the weights are those of `model_path`.

        Raises:
            ValueError: if it belongs to another model, or its adapter to another base.
        """
        if self._has_lora:
            self._check_base(Path(folder))
        self.strategy.reshard()
        state = optimizer.load_optimizer(Path(folder), self.policy.model, self.strategy)
        if self.ema is not None:
            self.ema.load(Path(folder), self.policy.model)
        self.num_optimizer_steps = int(state["num_optimizer_steps"])
        if self.recipe.algorithm.kl_target is not None and "kl_coef" in state:
            self.kl_coef = float(state["kl_coef"])

    # ---------------------------------------------------------------- one optimiser step

    def _train(
        self,
        rows: Sequence[LearnerRow],
        mini: Sequence[int],
        old: TokenValues | None,
        ref: TokenValues | None,
        gap: LogProbGap,
        weights: TokenWeights,
    ) -> dict[str, float]:
        """One optimiser step on a mini-batch of groups."""
        counts = self._kept_counts(rows, mini, weights)
        return self._optimizer_step(
            rows,
            mini,
            self._grpo_loss_of(rows, counts, old, ref, gap, weights),
            temperature=self.recipe.rollout.temperature,
            with_entropy_grad=self.recipe.algorithm.entropy_coef > 0,
            num_tokens=counts.num_tokens,
        )

    def _sft_loss_of(self, counts: BatchCounts) -> LossFn:
        """Cross-entropy per token of the whole batch."""

        def loss_of(
            batch: PackedBatch, log_probs: torch.Tensor, entropy: torch.Tensor
        ) -> tuple[torch.Tensor, dict[str, float]]:
            total = -log_probs.sum()
            sums = {"loss": float(total.detach()), "entropy": float(entropy.detach().sum())}
            return total / counts.num_tokens * counts.num_ranks, sums

        return loss_of

    def _grpo_loss_of(
        self,
        rows: Sequence[LearnerRow],
        counts: BatchCounts,
        old: TokenValues | None,
        ref: TokenValues | None,
        gap: LogProbGap,
        weights: TokenWeights | None = None,
    ) -> LossFn:
        """Policy loss, entropy bonus and KL of a mini-batch; `old` None: the weights are those."""
        cfg = self.recipe.algorithm
        weights = weights or TokenWeights()

        def loss_of(
            batch: PackedBatch, log_probs: torch.Tensor, entropy: torch.Tensor
        ) -> tuple[torch.Tensor, dict[str, float]]:
            mask = weights.mask(batch)
            advantages = batch.targets.new_tensor(
                [float(rows[i].advantages[a]) for i, a in batch.answers], dtype=torch.float32
            )
            if old is None:
                before = log_probs.detach()
                gap.add(by_answer(batch, before))
            else:
                before = batch.padded([old[key] for key in batch.answers])
            loss, sums = algorithms.policy_loss(
                log_probs, before, advantages, mask, cfg, counts, weights.weight(batch)
            )
            # The metrics are divided by all tokens later on; this loss has its divisor already.
            sums["loss"] = float(loss.detach()) * counts.num_tokens / counts.num_ranks
            sums["entropy"] = float((entropy.detach() * mask).sum())
            if cfg.entropy_coef > 0:
                bonus = algorithms.aggregate(entropy, mask, cfg, counts)
                loss = loss - cfg.entropy_coef * bonus
            if ref is not None:
                ref_log_probs = batch.padded([ref[key] for key in batch.answers])
                kl = algorithms.kl_to_reference(log_probs, ref_log_probs, cfg)
                sums["ref_kl"] = float((kl.detach() * mask).sum())
                if cfg.kl_in == "loss":
                    loss = loss + self.kl_coef * algorithms.aggregate(kl, mask, cfg, counts)
            return loss, sums

        return loss_of

    def _optimizer_step(
        self,
        rows: Sequence[LearnerRow],
        chosen: Sequence[int],
        loss_of: LossFn,
        *,
        temperature: float,
        with_entropy_grad: bool = False,
        num_tokens: int | None = None,
    ) -> dict[str, float]:
        """Accumulate gradients, check them, clip, step.

        Returns:
            The sums of `loss_of` divided by the tokens of all ranks that count, `grad_norm`, `lr`.
        """
        sums, bad = self._accumulate(
            rows, chosen, loss_of, temperature=temperature, with_entropy_grad=with_entropy_grad
        )
        rollouts = [f"{rows[i].row_id}/{a}" for i in chosen for a in range(len(rows[i].responses))]
        cfg, step = self.recipe.learner, self.num_optimizer_steps
        norm = self.strategy.step(optimizer.lr_factor(step, cfg, self.total_optimizer_steps))
        if not np.isfinite(norm):
            self._stop(bad, rollouts)
        if self.ema is not None:
            self.ema.update()
        self.num_optimizer_steps += 1
        num_tokens = num_tokens or self._counts([rows[i] for i in chosen]).num_tokens
        means = {key: value / num_tokens for key, value in self._sum(sums).items()}
        rates = optimizer.learning_rates(step, cfg, self.total_optimizer_steps)
        return {**means, "grad_norm": norm, **rates}

    def _accumulate(
        self,
        rows: Sequence[LearnerRow],
        chosen: Sequence[int],
        loss_of: LossFn,
        *,
        temperature: float,
        with_entropy_grad: bool = False,
    ) -> tuple[dict[str, float], list[str]]:
        """Forward and backward of this rank's micro-batches; gradients end up in the parameters.

        Returns:
            The sums of `loss_of` on this rank, and the ids of rollouts whose loss is not finite.
        """
        sums: dict[str, float] = {}
        bad: list[str] = []
        self._set_dropout(is_on=True)
        for share, batch in self._batches(rows, chosen):
            log_probs, entropy = self.strategy.forward(
                batch, temperature=temperature, with_entropy_grad=with_entropy_grad
            )
            loss, parts = loss_of(batch, log_probs, entropy)
            if not torch.isfinite(loss):
                is_bad = (~log_probs.detach().isfinite()).any(dim=1).tolist()
                found = [key for key, b in zip(batch.answers, is_bad, strict=True) if b]
                bad += [f"{rows[i].row_id}/{a}" for i, a in found or batch.answers]
            if share.is_last and self._max(len(bad)):
                loss = loss * torch.nan  # so that no strategy takes the step, on any rank
            self.strategy.backward(loss * share.weight, is_last=share.is_last)
            for key, value in parts.items():
                sums[key] = sums.get(key, 0.0) + value * share.weight
        self._set_dropout(is_on=False)
        return sums, bad

    def _stop(self, bad_here: list[str], rollouts: list[str]) -> NoReturn:
        """End training; the ids of the mini-batch's rollouts are left in the run's folder.

        Args:
            bad_here: Rollouts of this rank whose loss is not finite.
            rollouts: Those of the mini-batch, over all ranks.
        """
        found = sorted({name for part in self._gather(bad_here) for name in part})
        what, bad = ("loss", found) if found else ("gradient norm", rollouts)
        step = self.num_optimizer_steps + 1
        path = (self.recipe.run_dir / f"not-finite-{step:06d}.json").absolute()
        if self.rank == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"optimizer_step": step, "what": what, "bad": bad, "mini_batch": rollouts}
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        named = dict.fromkeys(rollout.rpartition("/")[0] for rollout in bad)
        raise LearnerError(
            f"optimiser step {step}: the {what} is not finite; nothing was changed. "
            f"Rows: {', '.join(named)}. Rollouts: {', '.join(bad[:8])}"
            f"{f' and {len(bad) - 8} more' if len(bad) > 8 else ''}; all are in {path}. "
            "Lower learner.lr or look at these clips"
        )

    # ---------------------------------------------------------------- batches

    def _batches(
        self, rows: Sequence[LearnerRow], chosen: Sequence[int]
    ) -> Iterator[tuple[Share, PackedBatch]]:
        """This rank's micro-batches of the chosen rows, as many on every rank.

        Each is collated in the background while the one before it is computed.
        """
        shares = self._shares(rows, chosen)
        with ThreadPoolExecutor(max_workers=1) as background:
            ahead = background.submit(collate, shares[0].rows)
            for i, share in enumerate(shares):
                batch = ahead.result()
                if i + 1 < len(shares):
                    ahead = background.submit(collate, shares[i + 1].rows)
                yield share, batch.to(self.device)

    def _shares(self, rows: Sequence[LearnerRow], chosen: Sequence[int]) -> list[Share]:
        cfg = self.recipe.learner
        mine = deal(rows, chosen, self.world_size)[self.rank]
        packed = [piece for i in mine for piece in self._pack(i, rows[i])]
        shares = [Share(batch, 1.0) for batch in micro_batches(packed, cfg.micro_batch_tokens)]
        most = int(self._max(len(shares)))
        # FSDP's ranks run forward and backward together: who has less repeats without weight.
        filler = shares[-1].rows if shares else self._pack(chosen[0], rows[chosen[0]])[:1]
        shares += [Share(filler, 0.0)] * (most - len(shares))
        return [*shares[:-1], replace(shares[-1], is_last=True)]

    def _pack(self, i: int, row: LearnerRow) -> list[PackedRow]:
        return split_row(
            i,
            row.row_id,
            self.encoder.encode(row),
            row.responses,
            budget=self.recipe.learner.micro_batch_tokens,
            shares_prefix=self.recipe.learner.packing == "shared_prefix",
        )

    def _check(self, rows: Sequence[LearnerRow]) -> None:
        """Refuse rows that cannot be trained on; every rank looks at all of them."""
        check_rows(rows, self.inputs.visual_token_ids)

    def _mini_batches(self, rows: Sequence[LearnerRow]) -> list[list[int]]:
        return mini_batches(len(rows), self.recipe.train)

    @torch.no_grad()
    def _score(
        self, rows: Sequence[LearnerRow], forward: ForwardFn, temperature: float
    ) -> TokenValues:
        """Log-probabilities of this rank's answers under a policy."""
        values: TokenValues = {}
        # Mini by mini, so that this rank scores the very rows that it will train on.
        for mini in self._mini_batches(rows):
            for share, batch in self._batches(rows, mini):
                log_probs, _ = forward(batch, temperature=temperature)
                if share.weight or any(key not in values for key in batch.answers):
                    values |= by_answer(batch, log_probs)
        return values

    def _counts(self, rows: Sequence[LearnerRow]) -> BatchCounts:
        return self._kept_counts(rows, range(len(rows)), TokenWeights())

    def _kept_counts(
        self, rows: Sequence[LearnerRow], chosen: Sequence[int], weights: TokenWeights
    ) -> BatchCounts:
        """What counts over all ranks; at least 1 each, so that nothing is divided by 0."""
        lengths = [
            weights.num_kept.get((i, a), len(response))
            for i in chosen
            for a, response in enumerate(rows[i].responses)
        ]
        return BatchCounts(
            num_tokens=max(1, sum(lengths)),
            num_answers=max(1, sum(length > 0 for length in lengths)),
            num_ranks=self.world_size,
            max_answer_tokens=self.recipe.rollout.max_response_tokens,
        )

    # ---------------------------------------------------------------- the rest

    @property
    def _compares_old(self) -> bool:
        """Whether the old log-probabilities are needed before the first forward pass."""
        cfg = self.recipe.algorithm
        return cfg.rollout_correction != "off" or (cfg.kl_in == "reward" and cfg.kl_coef > 0)

    @property
    def _has_lora(self) -> bool:
        return self.recipe.model.lora.rank > 0

    def _load_policy(self) -> Policy:
        """What is trained, not split yet: parts frozen, adapters at their start."""
        path = self.base_path if self._has_lora else self.model_path
        is_whole = self.rank == 0 or self.recipe.learner.strategy == "deepspeed"
        model: Any = loading.load(path, dtype="float32", is_reader=is_whole)
        if self._has_lora:
            torch.manual_seed(self.recipe.seed)  # adapters start alike on all ranks
            lora.add_adapters(model, self.recipe.model.lora)
            self._base_fingerprint = self._gather(
                lora.base_fingerprint(model) if self.rank == 0 else None
            )[0]
        else:
            optimizer.freeze(model, self.recipe.model.freeze)
        if self.recipe.learner.gradient_checkpointing:
            self._enable_checkpointing(model)
        model.train(self.recipe.learner.gradient_checkpointing)
        lora.set_dropout(model, is_on=False)
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(self.dtype)
        return Policy(model, self.inputs.visual_token_ids, self.recipe.learner.attention)

    def _enable_checkpointing(self, model: Any) -> None:
        # ZeRO-3 frees weights that a checkpoint without re-entering autograd would compare.
        cfg = self.recipe.learner
        is_reentrant = cfg.strategy == "deepspeed" and cfg.zero_stage == 3
        model.gradient_checkpointing_enable({"use_reentrant": is_reentrant})
        if is_reentrant:
            # Such a checkpoint gives no gradient to a layer whose input needs none.
            for first in (model.get_input_embeddings(), model.model.visual.patch_embed):
                first.register_forward_hook(lambda module, inputs, output: output.requires_grad_())

    def _load_reference(self) -> ForwardFn:
        """The frozen policy of the KL term, split by FSDP2 whatever the strategy."""
        dtype = self.recipe.model.dtype
        model: Any = loading.load(self.base_path, dtype=dtype, is_reader=self.rank == 0)
        model.requires_grad_(False)
        model.eval()
        policy = Policy(model, self.inputs.visual_token_ids, self.recipe.learner.attention)
        fsdp.shard(policy, self.mesh, self.recipe)
        return policy

    def _base_forward(
        self, batch: PackedBatch, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The policy without its adapters, which is the reference of LoRA."""
        with lora.adapters_off(self.policy.model):
            return self.strategy.forward(batch, **options)

    def _check_base(self, folder: Path) -> None:
        """Refuse an adapter that was trained beside other weights than those that were loaded."""
        path = folder / "learner.json"
        state = json.loads(path.read_bytes()) if path.is_file() else {}
        if state and state.get("base_fingerprint") != self._base_fingerprint:
            raise ValueError(
                f"{folder}: its adapter belongs to {state.get('base_model', 'no base')}, not to "
                f"the weights of {self.base_path}: set model.path to the base it was trained on"
            )

    def _set_dropout(self, *, is_on: bool) -> None:
        """Dropout of adapters, drawn from the seed and the optimiser step: a resumed run agrees."""
        if self.recipe.model.lora.rank and self.recipe.model.lora.dropout:
            lora.set_dropout(self.policy.model, is_on)
            torch.manual_seed(hash((self.recipe.seed, self.num_optimizer_steps, self.rank)))

    def _is_saved_exactly(self, name: str) -> bool:
        """Whether a weight's float32 is kept in the state: the model folder has less of it."""
        return lora.is_adapter(name) if self._has_lora else self.dtype != torch.float32

    def _model_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole weights by their names in the Hugging Face model, adapters merged; on rank 0."""
        yield from self._on_rank_0(lora.merged_weights(self.policy.model, self.strategy.whole))

    def _write_model(self, folder: Path, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Write a model folder on rank 0; the other ranks take part in gathering."""
        gathered = dict(weights)
        if self.rank == 0:
            folder.mkdir(exist_ok=True)
            copy_processor_files(self.model_path, folder)
            self.policy.model.save_pretrained(folder, state_dict=gathered)

    def _on_rank_0(
        self, weights: Iterator[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole weights on the CPU in the model's dtype; the other ranks only gather them."""
        for name, weight in weights:
            if self.rank == 0:
                yield name, weight.to("cpu", self.dtype, copy=True).contiguous()

    def _gather(self, value: Any) -> list[Any]:
        """A value of every rank, on every rank."""
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, value)
        return parts

    def _sum(self, values: dict[str, float]) -> dict[str, float]:
        """Sum over ranks; every rank has the same keys."""
        keys = sorted(values)
        tensor = torch.tensor([values[k] for k in keys], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return dict(zip(keys, tensor.tolist(), strict=True))

    def _max(self, value: float) -> float:
        """Maximum over ranks."""
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return float(tensor.item())

    def _log_prob_gap(self, gap: LogProbGap) -> dict[str, float]:
        if not gap.num_expected:
            return {}
        sums = self._sum({"total": gap.total, "tokens": float(gap.num_tokens)})
        return {
            "log_prob_gap_mean": sums["total"] / sums["tokens"],
            "log_prob_gap_max": self._max(gap.largest),
        }

    def _finish(self, metrics: dict[str, float], num_tokens: int, start: float) -> dict[str, float]:
        seconds = time.monotonic() - start
        return {
            **metrics,
            "num_response_tokens": float(num_tokens),
            "tokens_per_s": num_tokens / seconds,
            "seconds": seconds,
        }


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)

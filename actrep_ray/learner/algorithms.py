"""Group-relative advantages and policy losses: a thin layer over verl's registries.

verl is imported on first use, because that takes 10-40 s; `preload` does it in the background.

What this layer adds: groups are told apart by `prompt_id`, a group whose rewards are all equal
gets exact zeros, and every sum is divided by counts of the whole mini-batch over all ranks, so
that the gradient does not depend on how the work is split.
"""

import importlib
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from actrep_ray.config import AlgorithmConfig
from actrep_ray.types import RolloutGroup


@dataclass(frozen=True)
class BatchCounts:
    """What the sums of a mini-batch are divided by.

    Attributes:
        num_tokens: Answer tokens of the mini-batch, over all ranks and micro-batches.
        num_answers: Answers of the mini-batch, likewise.
        num_ranks: Ranks, over which gradients are averaged; losses are multiplied by it.
    """

    num_tokens: int
    num_answers: int
    num_ranks: int


def preload() -> threading.Thread:
    """Begin to import verl in the background."""
    thread = threading.Thread(target=_verl, name="import-verl", daemon=True)
    thread.start()
    return thread


def compute_advantages(groups: Sequence[RolloutGroup], cfg: AlgorithmConfig) -> list[RolloutGroup]:
    """The groups with `advantages` assigned, float32 [G] each.

    Raises:
        ValueError: if a group has one answer, is not scored, or shares its prompt_id with another.
    """
    if not groups:
        return []
    _check_groups(groups)
    rewards = np.concatenate([group.rewards for group in groups]).astype(np.float64)
    ids = np.repeat([g.prompt.prompt_id for g in groups], [len(g.rollouts) for g in groups])
    name, options = cfg.advantage, {}
    if name == "dr_grpo":  # GRPO without the division by the standard deviation
        name, options = "grpo", {"norm_adv_by_std_in_grpo": False}
    estimate = _verl().get_adv_estimator_fn(name)
    scores = torch.from_numpy(rewards)[:, None]
    advantages, _ = estimate(
        token_level_rewards=scores.clone(),
        response_mask=torch.ones_like(scores),
        index=ids,
        **options,
    )
    ends = np.cumsum([len(group.rollouts) for group in groups])[:-1]
    pieces = np.split(advantages[:, 0].numpy(), ends)
    return [
        replace(group, advantages=_exact(piece, group.rewards))
        for group, piece in zip(groups, pieces, strict=True)
    ]


def policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    cfg: AlgorithmConfig,
    counts: BatchCounts,
) -> tuple[torch.Tensor, dict[str, float]]:
    """A micro-batch's share of the mini-batch's policy loss.

    Args:
        log_probs: Now, with gradient. float32 [A, T]
        old_log_probs: Before the first update. float32 [A, T]
        advantages: Of each answer. float32 [A]
        mask: bool [A, T], which tokens count.
        cfg: Loss, clip ranges and aggregation.
        counts: Of the mini-batch.

    Returns:
        The share, to be summed over micro-batches and averaged over ranks; and sums over tokens:
        `clip_fraction` (ratio clipped), `approx_kl` (old minus new log-probability).
    """
    weights = mask.to(log_probs.dtype)
    loss, metrics = _verl().get_policy_loss_fn(cfg.loss)(
        old_log_prob=old_log_probs,
        log_prob=log_probs,
        advantages=advantages[:, None].expand_as(log_probs),
        response_mask=weights,
        loss_agg_mode=cfg.aggregation,
        config=_actor_config(cfg, counts),
    )
    num_tokens = float(weights.sum())
    return loss, {
        "clip_fraction": float(metrics["actor/pg_clipfrac"]) * num_tokens,
        "approx_kl": float(metrics["actor/ppo_kl"]) * num_tokens,
    }


def kl_to_reference(
    log_probs: torch.Tensor, ref_log_probs: torch.Tensor, cfg: AlgorithmConfig
) -> torch.Tensor:
    """Estimate of each token's KL to the reference policy, by `kl_type`: [A, T]."""
    kl: torch.Tensor = _verl().kl_penalty(log_probs, ref_log_probs, cfg.kl_type)
    return kl


def aggregate(
    values: torch.Tensor, mask: torch.Tensor, cfg: AlgorithmConfig, counts: BatchCounts
) -> torch.Tensor:
    """A micro-batch's share of the mini-batch's aggregate of token values [A, T]."""
    share: torch.Tensor = _verl().agg_loss(
        loss_mat=values,
        loss_mask=mask.to(values.dtype),
        loss_agg_mode=cfg.aggregation,
        **_global_counts(counts),
    )
    return share


@cache
def _verl() -> Any:
    if not torch.cuda.is_available():  # else DeepSpeed, which verl imports, warns on the console
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return importlib.import_module("verl.trainer.ppo.core_algos")


def _actor_config(cfg: AlgorithmConfig, counts: BatchCounts) -> Any:
    config = importlib.import_module("verl.workers.config").ActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        use_dynamic_bsz=True,
        clip_ratio=cfg.clip_high,
        clip_ratio_low=cfg.clip_low,
        clip_ratio_high=cfg.clip_high,
        clip_ratio_c=cfg.dual_clip,
        loss_agg_mode=cfg.aggregation,
    )
    config.global_batch_info.update(_global_counts(counts))
    return config


def _global_counts(counts: BatchCounts) -> dict[str, int]:
    return {
        "dp_size": counts.num_ranks,
        "batch_num_tokens": counts.num_tokens,
        "global_batch_size": counts.num_answers,
    }


def _check_groups(groups: Sequence[RolloutGroup]) -> None:
    repeated = [name for name, n in Counter(g.prompt.prompt_id for g in groups).items() if n > 1]
    if repeated:
        raise ValueError(f"prompt_id={repeated[0]!r} names more than one group of a batch")
    for group in groups:
        where = f"group {group.prompt.prompt_id!r}"
        if len(group.rollouts) < 2:
            raise ValueError(
                f"{where} has {len(group.rollouts)} answers: a group-relative advantage needs 2"
            )
        if len(group.rewards) != len(group.rollouts):
            raise ValueError(
                f"{where} has {len(group.rollouts)} answers and {len(group.rewards)} rewards"
            )
        if not np.isfinite(group.rewards).all():
            raise ValueError(f"{where} has rewards {group.rewards.tolist()}, expected finite ones")


def _exact(advantages: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """Zeros where all rewards are equal: rounding over the small divisor would give noise."""
    if rewards.max() == rewards.min():
        return np.zeros(len(rewards), np.float32)
    return advantages.astype(np.float32)

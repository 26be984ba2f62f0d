"""Group-relative advantages and policy losses: a thin layer over verl's registries.

verl is imported on first use, because that takes 10-40 s; `preload` does it in the background.

What this layer adds: groups are told apart by `prompt_id`, a group whose rewards are all equal
gets exact zeros, and every sum is divided by counts of the whole mini-batch over all ranks, so
that the gradient does not depend on how the work is split. The tokens that clip_cov and kl_cov
pick come from `covariance.py` for that reason, and not from verl's losses of these names.
"""

import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from actrep_ray.config import AlgorithmConfig
from actrep_ray.records import RolloutGroup

_NO_CLIP = 1e9  # above any ratio: verl bounds log-ratios by 20
_K3_BEND = 20.0  # k3 goes on along its tangent from here: its exponential cannot overflow


@dataclass(frozen=True)
class BatchCounts:
    """What the sums of a mini-batch are divided by.

    Attributes:
        num_tokens: Answer tokens of the mini-batch, over all ranks and micro-batches.
        num_answers: Answers of the mini-batch, likewise.
        num_ranks: Ranks, over which gradients are averaged; losses are multiplied by it.
        max_answer_tokens: Most tokens that an answer may have: `rollout.max_response_tokens`.
    """

    num_tokens: int
    num_answers: int
    num_ranks: int
    max_answer_tokens: int = 1


def preload() -> threading.Thread:
    """Begin to import verl in the background."""
    thread = threading.Thread(target=_verl, name="import-verl", daemon=True)
    thread.start()
    return thread


def compute_advantages(
    groups: Sequence[RolloutGroup],
    cfg: AlgorithmConfig,
    part_weights: Mapping[str, float] | None = None,
) -> list[RolloutGroup]:
    """The groups with `advantages` assigned, float32 [G] each.

    Args:
        groups: Scored, or with a `failure`: those keep their place, without advantages.
        cfg: The estimator.
        part_weights: Weight of each of `reward_parts`, which "gdpo" needs.

    Raises:
        ValueError: if a group has one answer, is not scored, or shares its prompt_id with another;
            if "gdpo" does not know the weights.
    """
    if any(group.failure for group in groups):
        scored = [group for group in groups if not group.failure]
        weighed = iter(compute_advantages(scored, cfg, part_weights))
        return [group if group.failure else next(weighed) for group in groups]
    if not groups:
        return []
    _check_groups(groups)
    if cfg.advantage == "gdpo":
        found = _gdpo(groups, part_weights)
    else:
        lengths = [[len(rollout.token_ids) for rollout in group.rollouts] for group in groups]
        found = estimate_advantages([group.rewards for group in groups], lengths, cfg)
    return [replace(g, advantages=values) for g, values in zip(groups, found, strict=True)]


def estimate_advantages(
    rewards: Sequence[np.ndarray], lengths: Sequence[Sequence[int]], cfg: AlgorithmConfig
) -> list[np.ndarray]:
    """Advantages of the answers of each group by any estimator but "gdpo".

    Args:
        rewards: float [G] of each group.
        lengths: Tokens of each answer: "opo" weighs its baseline with them, and
            "reinforce_plus_plus_baseline" whitens over the tokens of all groups.
        cfg: The estimator.

    Returns:
        float32 [G] of each group; exact zeros where all rewards are equal.
    """
    if cfg.advantage == "raft":
        return [_exact(group == group.max(), np.ptp(group) == 0) for group in rewards]
    sizes = [len(group) for group in rewards]
    flat = torch.from_numpy(np.concatenate(rewards).astype(np.float64))
    num_tokens = torch.tensor([length for group in lengths for length in group])
    mask = (torch.arange(int(num_tokens.max())) < num_tokens[:, None]).double()  # [N, T]
    name: str = cfg.advantage
    options: dict[str, Any] = {}
    if name == "dr_grpo":  # GRPO without the division by the standard deviation
        name, options = "grpo", {"norm_adv_by_std_in_grpo": False}
    elif name == "grpo_passk":
        options = {"config": {"norm_adv_by_std_in_grpo": True}}
    values, _ = _verl().get_adv_estimator_fn(name)(
        token_level_rewards=torch.nn.functional.pad(flat[:, None], (0, mask.shape[1] - 1)),
        response_mask=mask,
        index=np.repeat(np.arange(len(sizes)), sizes),
        **options,
    )
    pieces = np.split(values[:, 0].numpy(), np.cumsum(sizes)[:-1])
    return [_exact(piece, np.ptp(group) == 0) for piece, group in zip(pieces, rewards, strict=True)]


def policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    cfg: AlgorithmConfig,
    counts: BatchCounts,
    weights: torch.Tensor | None = None,
    picked: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """A micro-batch's contribution to the mini-batch's policy loss.

    Args:
        log_probs: Now, with gradient. float32 [A, T]
        old_log_probs: Before the first update. float32 [A, T]
        advantages: Of each answer or of each token. float32 [A] or [A, T]
        mask: bool [A, T], which tokens count.
        cfg: Loss, clip ranges and aggregation.
        counts: Of the mini-batch.
        weights: Importance weights of tokens, float32 [A, T]; None: 1.
        picked: Tokens that clip_cov or kl_cov picks, bool [A, T]; None: no token.

    Returns:
        The contribution, to be summed over micro-batches and averaged over ranks; and sums over
        tokens: `clip_fraction` (tokens whose gradient is cut or, with clip_cov, that were picked;
        0 for losses that do not clip), `approx_kl` (old minus new log-probability).
    """
    if advantages.dim() == 1:
        advantages = advantages[:, None].expand_as(log_probs)
    response_mask = mask.to(log_probs.dtype)
    num_tokens = float(response_mask.sum())
    if num_tokens == 0:  # all of it is masked: means over nothing would be NaN
        return (log_probs * 0.0).sum(), {"clip_fraction": 0.0, "approx_kl": 0.0}
    name, token_weights = cfg.loss, weights
    if cfg.loss in ("clip_cov", "kl_cov"):
        name = "vanilla"
    if cfg.loss == "clip_cov" and picked is not None:
        uncut = (~picked).to(log_probs.dtype)
        token_weights = uncut if weights is None else weights * uncut
    loss, metrics = _verl().get_policy_loss_fn(name)(
        old_log_prob=old_log_probs,
        log_prob=log_probs,
        advantages=advantages,
        response_mask=response_mask,
        loss_agg_mode=cfg.aggregation,
        config=_actor_config(cfg, counts),
        rollout_is_weights=token_weights,
    )
    num_clipped = float(metrics.get("actor/pg_clipfrac", 0.0)) * num_tokens
    if cfg.loss == "clip_cov" and picked is not None:
        num_clipped += float((picked & mask).sum())
    if cfg.loss == "kl_cov" and picked is not None:
        moved = (log_probs - old_log_probs).abs() * picked
        moved = moved if weights is None else moved * weights
        loss = loss + cfg.kl_cov_coef * aggregate(moved, mask, cfg, counts)
    if cfg.loss == "geo_mean":  # verl's is a mean over the answers at hand
        loss = loss * (len(log_probs) * counts.num_ranks / counts.num_answers)
    return loss, {
        "clip_fraction": num_clipped,
        "approx_kl": float(metrics["actor/ppo_kl"]) * num_tokens,
    }


def kl_to_reference(
    log_probs: torch.Tensor, ref_log_probs: torch.Tensor, cfg: AlgorithmConfig
) -> torch.Tensor:
    """Estimate of each token's KL to the reference policy, by `kl_type`: [A, T].

    k1 has the gradient of k2: its own has expectation 0 (arXiv 2506.09477), k2's is that of the KL
    (arXiv 2510.01555). k3 and its gradient are those of arXiv 2402.03300, eq. 4, while the
    reference is at most e^20 times likelier; its tangent from there keeps them finite. (verl's k3
    has no gradient above a value of 10, where the reference is 14 times likelier.)
    """
    if cfg.kl_type == "k3":
        ratio = ref_log_probs - log_probs
        bent = ratio.clamp(max=_K3_BEND)
        return bent.exp() * (1.0 + (ratio - bent)) - ratio - 1.0
    name = "k1+" if cfg.kl_type == "k1" else cfg.kl_type
    kl: torch.Tensor = _verl().kl_penalty(log_probs, ref_log_probs, name)
    return kl


def next_kl_coef(kl_coef: float, kl: float, num_answers: int, cfg: AlgorithmConfig) -> float:
    """The weight of the KL after a step whose KL per token was `kl`; see `kl_target`.

    verl's controller (arXiv 1909.08593): it grows while the KL is above the target.
    """
    if cfg.kl_target is None:
        return kl_coef
    controller = _verl().AdaptiveKLController(kl_coef, cfg.kl_target, cfg.kl_horizon)
    controller.update(kl, num_answers)
    return float(controller.value)


def aggregate(
    values: torch.Tensor, mask: torch.Tensor, cfg: AlgorithmConfig, counts: BatchCounts
) -> torch.Tensor:
    """A micro-batch's contribution to the mini-batch's aggregate of token values [A, T]."""
    loss: torch.Tensor = _verl().agg_loss(
        loss_mat=values,
        loss_mask=mask.to(values.dtype),
        loss_agg_mode=cfg.aggregation,
        **_global_counts(cfg, counts),
    )
    return loss


@cache
def _verl() -> Any:
    if not torch.cuda.is_available():  # else DeepSpeed, which verl imports, warns on the console
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from verl.trainer.ppo import core_algos

    return core_algos


def _actor_config(cfg: AlgorithmConfig, counts: BatchCounts) -> Any:
    from verl.workers.config import ActorConfig, PolicyLossConfig

    low, high, dual = cfg.clip_low, cfg.clip_high, cfg.dual_clip
    if cfg.loss == "kl_cov":  # its ratio has no bound
        low = high = _NO_CLIP
    config = ActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        use_dynamic_bsz=True,
        clip_ratio=high,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=dual if dual and cfg.loss == "vanilla" else _NO_CLIP,
        loss_agg_mode=cfg.aggregation,
        tau_pos=cfg.sapo_tau[0],
        tau_neg=cfg.sapo_tau[1],
        policy_loss=PolicyLossConfig(loss_mode=cfg.loss),
    )
    config.global_batch_info.update(_global_counts(cfg, counts))
    return config


def _global_counts(cfg: AlgorithmConfig, counts: BatchCounts) -> dict[str, int]:
    return {
        "dp_size": counts.num_ranks,
        "batch_num_tokens": counts.num_tokens,
        "global_batch_size": counts.num_answers,
        "loss_scale_factor": cfg.loss_scale_tokens or counts.max_answer_tokens,
    }


def _gdpo(
    groups: Sequence[RolloutGroup], part_weights: Mapping[str, float] | None
) -> list[np.ndarray]:
    """GDPO (arXiv 2601.05242): each part normalised in its group, summed, whitened over answers.

    A part that is the same for a whole group, or applies to none of it, adds 0.
    """
    if part_weights is None or set(groups[0].reward_parts) - set(part_weights):
        raise ValueError(
            f"algorithm.advantage=gdpo: no weights of the rewards {list(groups[0].reward_parts)}"
        )
    names = [name for name in groups[0].reward_parts if part_weights[name] > 0]
    parts = {
        name: np.concatenate([_varying(group.reward_parts[name]) for group in groups])
        for name in names
    }
    sizes = [len(group.rollouts) for group in groups]
    ones = torch.ones(sum(sizes), 1)
    values, _ = _verl().get_adv_estimator_fn("gdpo")(
        token_level_rewards=ones,
        response_mask=ones,
        index=np.repeat(np.arange(len(sizes)), sizes),
        config={
            "gdpo_reward_keys": names,
            "gdpo_reward_weights": [part_weights[name] for name in names],
        },
        non_tensor_batch=parts,
        batch={"prompts": ones[:, :0], "attention_mask": ones.long()},
    )
    pieces = np.split(values[:, 0].numpy(), np.cumsum(sizes)[:-1])
    is_flat = [
        not any(_varying(group.reward_parts[name]).any() for name in names) for group in groups
    ]
    return [_exact(piece, flat) for piece, flat in zip(pieces, is_flat, strict=True)]


def _varying(values: np.ndarray) -> np.ndarray:
    """Zeros in place of values that are all equal or not there."""
    return values if np.ptp(values) > 0 else np.zeros_like(values)


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


def _exact(advantages: np.ndarray, is_flat: bool) -> np.ndarray:
    """Zeros where all rewards are equal: rounding over the small divisor would give noise."""
    if is_flat:
        return np.zeros(len(advantages), np.float32)
    return advantages.astype(np.float32)

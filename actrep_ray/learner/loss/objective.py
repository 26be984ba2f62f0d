"""The losses of SFT and GRPO, over explicit data: no model, no ranks, no state.

A loss is a micro-batch's contribution to the mini-batch's loss, times the number of ranks: summed
over micro-batches and averaged over ranks it is that of the mini-batch, however work is split.
Beside it go sums over tokens, which whoever steps divides by all tokens that count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from actrep_ray.config import AlgorithmConfig
from actrep_ray.learner.batch.packing import PackedBatch
from actrep_ray.learner.batch.rows import TokenValues
from actrep_ray.learner.loss import algorithms
from actrep_ray.learner.loss.algorithms import BatchCounts
from actrep_ray.learner.loss.correction import TokenWeights
from actrep_ray.records import LearnerRow

LossAndSums = tuple[torch.Tensor, dict[str, float]]
"""A micro-batch's contribution to the loss, and sums over its tokens by name."""

LossFn = Callable[[PackedBatch, torch.Tensor, torch.Tensor], LossAndSums]
"""(batch, log-probabilities [A, T], entropies [A, T]) to the loss and sums."""


@dataclass(frozen=True)
class PolicyTargets:
    """What the policy's log-probabilities are compared with in an update.

    Attributes:
        rows: Of the whole batch, with advantages.
        old: Log-probabilities before the update; None: those of the forward pass itself, as is
            right for a single optimiser step.
        ref: Log-probabilities of the reference policy; None: no KL.
        weights: Which tokens count, and how much.
        kl_coef: Weight of the KL to the reference policy.
        picked: Tokens that clip_cov or kl_cov picks, bool [R_i]; None: no token.
    """

    rows: Sequence[LearnerRow]
    old: TokenValues | None = None
    ref: TokenValues | None = None
    weights: TokenWeights = field(default_factory=TokenWeights)
    kl_coef: float = 0.0
    picked: TokenValues | None = None


def count_batch(
    rows: Sequence[LearnerRow],
    chosen: Sequence[int],
    *,
    num_ranks: int,
    max_answer_tokens: int,
    weights: TokenWeights | None = None,
) -> BatchCounts:
    """What counts of some rows, over all ranks; at least 1 each, so that nothing is divided by 0.

    Args:
        rows: Of the whole batch.
        chosen: Numbers of the rows of the mini-batch.
        num_ranks: Over which gradients will be averaged.
        max_answer_tokens: `rollout.max_response_tokens`.
        weights: Which tokens count; None: all.
    """
    num_kept = {} if weights is None else weights.num_kept
    lengths = [
        num_kept.get((i, a), len(response))
        for i in chosen
        for a, response in enumerate(rows[i].responses)
    ]
    return BatchCounts(
        num_tokens=max(1, sum(lengths)),
        num_answers=max(1, sum(length > 0 for length in lengths)),
        num_ranks=num_ranks,
        max_answer_tokens=max_answer_tokens,
    )


def learned_tokens(rows: Sequence[LearnerRow]) -> TokenWeights:
    """Which tokens of some rows SFT learns."""
    masks = {(i, a): mask for i, row in enumerate(rows) for a, mask in enumerate(row.learned)}
    return TokenWeights(masks, num_kept={key: int(mask.sum()) for key, mask in masks.items()})


def sft_loss(
    log_probs: torch.Tensor,
    entropy: torch.Tensor,
    counts: BatchCounts,
    mask: torch.Tensor | None = None,
) -> LossAndSums:
    """Cross-entropy per answer token of the whole batch.

    Args:
        log_probs: Of the answers' tokens, zeros on padding. float32 [A, T]
        entropy: Likewise, for the metrics. float32 [A, T]
        counts: Of the whole batch.
        mask: Which of them are learned; None: all. bool [A, T]
    """
    if mask is not None:
        log_probs, entropy = log_probs * mask, entropy * mask
    total = -log_probs.sum()
    sums = {"loss": float(total.detach()), "entropy": float(entropy.detach().sum())}
    return total / counts.num_tokens * counts.num_ranks, sums


def grpo_loss(
    batch: PackedBatch,
    log_probs: torch.Tensor,
    entropy: torch.Tensor,
    targets: PolicyTargets,
    counts: BatchCounts,
    cfg: AlgorithmConfig,
) -> LossAndSums:
    """Policy loss, entropy bonus and KL to the reference policy.

    Args:
        batch: Says which answers the tokens belong to.
        log_probs: Of the answers' tokens now, with gradient. float32 [A, T]
        entropy: Likewise. float32 [A, T]
        targets: What is known of all rows.
        counts: Of the mini-batch.
        cfg: Loss, aggregation and coefficients.
    """
    mask = targets.weights.mask(batch)
    advantages = batch.padded([targets.rows[i].token_advantages(a) for i, a in batch.answers])
    old = log_probs.detach() if targets.old is None else _laid_out(batch, targets.old)
    picked = None if targets.picked is None else _laid_out(batch, targets.picked).bool()
    loss, sums = algorithms.policy_loss(
        log_probs, old, advantages, mask, cfg, counts, targets.weights.weight(batch), picked
    )
    # The metrics are divided by all tokens later on; this loss has its divisor already.
    sums["loss"] = float(loss.detach()) * counts.num_tokens / counts.num_ranks
    sums["entropy"] = float((entropy.detach() * mask).sum())
    if cfg.entropy_coef > 0:
        bonus = algorithms.aggregate(entropy, mask, cfg, counts)
        loss = loss - cfg.entropy_coef * bonus
    if targets.ref is not None:
        kl = algorithms.kl_to_reference(log_probs, _laid_out(batch, targets.ref), cfg)
        sums["ref_kl"] = float((kl.detach() * mask).sum())
        if cfg.kl_in == "loss":
            loss = loss + targets.kl_coef * algorithms.aggregate(kl, mask, cfg, counts)
    return loss, sums


def _laid_out(batch: PackedBatch, values: TokenValues) -> torch.Tensor:
    """Values of the answers' tokens as a batch's targets: [A, T]."""
    return batch.padded([values[key] for key in batch.answers])

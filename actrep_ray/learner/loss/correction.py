"""Which tokens of an update count, and how much: truncated answers and the engine's difference.

An engine computes slightly other log-probabilities than the learner (kernels, precision) or had
older weights. `algorithm.rollout_correction` weighs or leaves out tokens by the ratio of the two,
through verl's `rollout_corr_helper`:

    token_truncate      weight min(ratio, c) of each token           (TIS)
    sequence_truncate   weight min(ratio of the whole answer, c)
    token_reject        tokens whose ratio is outside of 1/c to c are left out
    sequence_reject     answers whose ratio is

What is left out is in no sum and in no denominator.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from actrep_ray.config import AlgorithmConfig
from actrep_ray.learner.batch.packing import AnswerKey, PackedBatch
from actrep_ray.learner.loss.algorithms import estimate_advantages, kl_to_reference
from actrep_ray.records import LearnerRow

Gather = Callable[[Any], list[Any]]
"""A value of this rank to the values of all ranks."""

_REPORTED = {
    "kl": "engine_kl",
    "k3_kl": "engine_kl_k3",
    "chi2_token": "engine_chi2",
    "rollout_is_mean": "correction_weight_mean",
    "rollout_is_max": "correction_weight_max",
    "rollout_is_eff_sample_size": "correction_sample_size",
    "rollout_rs_masked_fraction": "rejected_tokens",
}
"""verl's names of what is reported, and ours."""


@dataclass(frozen=True)
class TokenWeights:
    """How a rank's answers count in the loss; one that is not listed counts in full.

    Attributes:
        masks: bool [R_i], which tokens count.
        weights: float32 [R_i], importance weights.
        metrics: Means over this rank's tokens; `*_max` is a maximum.
        num_kept: Tokens that count of each answer that does not count in full, on all ranks.
    """

    masks: Mapping[AnswerKey, np.ndarray] = field(default_factory=dict)
    weights: Mapping[AnswerKey, np.ndarray] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    num_kept: Mapping[AnswerKey, int] = field(default_factory=dict)

    def mask(self, batch: PackedBatch) -> torch.Tensor:
        """Which of a batch's targets count: bool [A, T]."""
        if not self.masks:
            return batch.target_mask
        return _laid_out(batch, self.masks).bool()

    def weight(self, batch: PackedBatch) -> torch.Tensor | None:
        """The importance weights of a batch's targets, float32 [A, T]; None: 1."""
        if not self.weights:
            return None
        return _laid_out(batch, self.weights)


def token_weights(
    rows: Sequence[LearnerRow],
    own: set[int],
    old: Mapping[AnswerKey, np.ndarray] | None,
    cfg: AlgorithmConfig,
    gather: Gather,
) -> TokenWeights:
    """Masks and importance weights of a rank's answers. Every rank must take part.

    Args:
        rows: Of the whole batch.
        own: Numbers of the rows that this rank trains on.
        old: The learner's log-probabilities of their tokens; needed where a correction is on.
        cfg: What is masked and corrected.
        gather: Gives a value of every rank to every rank.

    Raises:
        ValueError: if a correction is asked for and a row lacks the engine's log-probabilities.
    """
    if cfg.rollout_correction == "off" and not cfg.mask_truncated:
        return TokenWeights()
    found = _own_weights(rows, own, old, cfg)
    kept = {key: int(mask.sum()) for key, mask in found.masks.items()}
    num_own = sum(len(response) for i in own for response in rows[i].responses)
    parts = gather((kept, dict(found.metrics), num_own))
    metrics: dict[str, float] = {}
    for key in sorted({key for _, part, _ in parts for key in part}):
        values = [part[key] for _, part, _ in parts if key in part]
        sizes = [size for _, part, size in parts if key in part]
        is_max = key.endswith("_max")
        metrics[key] = max(values) if is_max else float(np.average(values, weights=sizes))
    num_kept = {key: number for part, _, _ in parts for key, number in part.items()}
    metrics["masked_answers"] = float(sum(number == 0 for number in num_kept.values()))
    return replace(found, metrics=metrics, num_kept=num_kept)


def apply_kl_penalty(
    rows: Sequence[LearnerRow],
    own: set[int],
    old: Mapping[AnswerKey, np.ndarray],
    ref: Mapping[AnswerKey, np.ndarray],
    kl_coef: float,
    cfg: AlgorithmConfig,
    gather: Gather,
) -> list[LearnerRow]:
    """Rows with the advantages of `reward - kl_coef * KL of the answer`. Every rank takes part.

    Raises:
        ValueError: if a row lacks its rewards.
    """
    found = {}
    for key in old:
        if key[0] in own:
            now, reference = torch.from_numpy(old[key]), torch.from_numpy(ref[key])
            found[key] = float(kl_to_reference(now, reference, cfg).sum())
    kl = {key: value for part in gather(found) for key, value in part.items()}
    rewards, lengths = [], []
    for i, row in enumerate(rows):
        if len(row.rewards) != len(row.responses):
            raise ValueError(
                f"{row.row_id}: {len(row.responses)} answers and {len(row.rewards)} rewards, which "
                "algorithm.kl_in=reward takes the KL off"
            )
        rewards.append(
            row.rewards - kl_coef * np.array([kl[i, a] for a in range(len(row.rewards))])
        )
        lengths.append([len(response) for response in row.responses])
    advantages = estimate_advantages(rewards, lengths, cfg)
    return [replace(row, advantages=a) for row, a in zip(rows, advantages, strict=True)]


def _own_weights(
    rows: Sequence[LearnerRow],
    own: set[int],
    old: Mapping[AnswerKey, np.ndarray] | None,
    cfg: AlgorithmConfig,
) -> TokenWeights:
    masks = {
        (i, a): np.zeros(len(rows[i].responses[a]), bool)
        for i in (own if cfg.mask_truncated else ())
        for a in np.flatnonzero(rows[i].is_truncated).tolist()
    }
    keys = [(i, a) for i in sorted(own) for a in range(len(rows[i].responses))]
    keys = [key for key in keys if key not in masks]
    if cfg.rollout_correction == "off" or not keys:
        return TokenWeights(masks)
    assert old is not None, "a correction compares the old log-probabilities with the engine's"
    for i in own:
        if not rows[i].rollout_log_probs:
            raise ValueError(
                f"{rows[i].row_id}: no log-probabilities of the engine, which "
                f"algorithm.rollout_correction={cfg.rollout_correction} compares with"
            )
    return _corrected(keys, masks, [rows[i].rollout_log_probs[a] for i, a in keys], old, cfg)


def _corrected(
    keys: Sequence[AnswerKey],
    masks: dict[AnswerKey, np.ndarray],
    engine: Sequence[np.ndarray],
    old: Mapping[AnswerKey, np.ndarray],
    cfg: AlgorithmConfig,
) -> TokenWeights:
    level, what = cfg.rollout_correction.split("_")
    threshold = cfg.rollout_correction_threshold
    options: dict[str, Any] = {"rollout_is": level, "rollout_is_threshold": threshold}
    if what == "reject":
        kind = "token_k1" if level == "token" else "seq_sum_k1"
        options = {"rollout_rs": kind, "rollout_rs_threshold": f"{1 / threshold}_{threshold}"}
    lengths = [len(old[key]) for key in keys]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    from verl.trainer.ppo import rollout_corr_helper as helper

    found, kept, metrics = helper.compute_rollout_correction_and_rejection_mask(
        old_log_prob=_padded([old[key] for key in keys]),
        rollout_log_prob=_padded(engine),
        response_mask=mask.float(),
        **options,
    )
    reported = {
        name: float(metrics[f"rollout_corr/{theirs}"])
        for theirs, name in _REPORTED.items()
        if f"rollout_corr/{theirs}" in metrics
    }
    if what == "reject":
        new = {key: kept[k, : lengths[k]].bool().numpy() for k, key in enumerate(keys)}
        return TokenWeights(masks | new, {}, reported)
    table = found.batch["rollout_is_weights"].numpy()
    weights = {key: table[k, : lengths[k]] for k, key in enumerate(keys)}
    return TokenWeights(masks, weights, reported)


def _padded(values: Sequence[np.ndarray]) -> torch.Tensor:
    tensors = [torch.from_numpy(np.asarray(value, dtype=np.float32)) for value in values]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def _laid_out(batch: PackedBatch, values: Mapping[AnswerKey, np.ndarray]) -> torch.Tensor:
    """Values of tokens, 1 for answers that are not listed, as the batch's targets: [A, T]."""
    lengths = batch.target_mask.sum(dim=1).tolist()
    return batch.padded(
        [
            values.get(key, np.ones(length))
            for key, length in zip(batch.answers, lengths, strict=True)
        ]
    )

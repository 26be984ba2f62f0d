"""The tokens that clip_cov and kl_cov treat apart, arXiv 2505.22617: those of high covariance.

    cov = (log p - mean log p) (A - mean A)      now, over the tokens of the mini-batch that count

Means and picks are of the whole mini-batch, so that they do not depend on ranks and micro-batches;
clip_cov draws by the run's seed and the number of optimiser steps, so that a resumed run draws the
same. (verl's code picks within each micro-batch.)
"""

from collections.abc import Mapping, Sequence

import numpy as np

from actrep_ray.config import AlgorithmConfig
from actrep_ray.learner.batch.packing import AnswerKey
from actrep_ray.learner.batch.rows import TokenValues
from actrep_ray.learner.loss.correction import Gather
from actrep_ray.records import LearnerRow


def pick_tokens(
    rows: Sequence[LearnerRow],
    own: Sequence[int],
    now: TokenValues,
    old: TokenValues,
    masks: Mapping[AnswerKey, np.ndarray],
    cfg: AlgorithmConfig,
    draw: tuple[int, int],
    gather: Gather,
) -> TokenValues:
    """Which tokens of the mini-batch's answers are picked. Every rank must take part.

    Args:
        rows: Of the whole batch.
        own: Numbers of the rows of the mini-batch that this rank trains on.
        now: Log-probabilities of their tokens by the weights that the step is about to change.
        old: Those from before the update.
        masks: Which tokens count; answers that are not listed count in full.
        cfg: Names the loss, the share that it picks and where from.
        draw: The run's seed and the number of optimiser steps taken.
        gather: Gives a value of every rank to every rank.

    Returns:
        bool [R_i] of every answer of the mini-batch, the same on all ranks.
    """
    keys = [(i, a) for i in own for a in range(len(rows[i].responses))]
    found = {
        key: (now[key], old[key], masks.get(key, np.ones(len(now[key]), bool))) for key in keys
    }
    of_all = {key: values for part in gather(found) for key, values in part.items()}
    order = sorted(of_all)
    lengths = [len(of_all[key][0]) for key in order]
    log_p, before, counts = (
        np.concatenate([of_all[key][part] for key in order]) for part in range(3)
    )
    advantages = np.concatenate([rows[i].token_advantages(a) for i, a in order])
    picked = np.zeros(len(log_p), bool)
    kept = np.flatnonzero(counts)
    if len(kept):
        picked[kept[_picked(log_p[kept], before[kept], advantages[kept], cfg, draw)]] = True
    pieces = np.split(picked, np.cumsum(lengths)[:-1])
    return dict(zip(order, pieces, strict=True))


def _picked(
    log_p: np.ndarray,
    old: np.ndarray,
    advantages: np.ndarray,
    cfg: AlgorithmConfig,
    draw: tuple[int, int],
) -> np.ndarray:
    """Numbers of the picked tokens among N that count, in float64 and in a stated order."""
    log_p, old, advantages = (x.astype(np.float64) for x in (log_p, old, advantages))
    covariance = (log_p - log_p.mean()) * (advantages - advantages.mean())
    number = max(1, int(cfg.cov_fraction * len(log_p)))
    if cfg.loss == "kl_cov":
        return np.argsort(-covariance, kind="stable")[:number]
    ratio = np.exp(log_p - old)
    is_clipped = np.where(
        advantages > 0,
        ratio > 1 + cfg.clip_high,
        (ratio < 1 - cfg.clip_low) & (advantages < 0),
    )
    low, high = cfg.clip_cov_range
    candidates = np.flatnonzero((covariance > low) & (covariance < high) & ~is_clipped)
    return np.random.default_rng(draw).permutation(candidates)[:number]

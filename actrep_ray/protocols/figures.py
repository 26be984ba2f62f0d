"""The numbers of a protocol that no evaluation has: harmonic mean, certainty, AUROC, rejection."""

from collections.abc import Sequence

import numpy as np

from actrep_ray.records import Reading

SURE = 0.5
"""Share of sampled answers that must agree with the greedy one, or it is no answer."""


def harmonic_mean(first: float, second: float) -> float:
    """2ab / (a + b); 0 where both are 0."""
    return 2 * first * second / (first + second) if first + second else 0.0


def agreement(reading: Reading | None, sampled: Sequence[Reading | None]) -> float:
    """The share of sampled answers that say the same; 0 for an answer that cannot be read."""
    if reading is None:
        return 0.0
    return sum(other == reading for other in sampled) / len(sampled)


def auroc(known: Sequence[float], unknown: Sequence[float]) -> float:
    """How often one of `known` is above one of `unknown`, a tie counted half.

    Raises:
        ValueError: without one of each.
    """
    if not known or not unknown:
        raise ValueError(f"{len(known)} known and {len(unknown)} unknown: expected some of each")
    above = np.asarray(known, float)[:, None] - np.asarray(unknown, float)
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def rejected_share(certainties: Sequence[float]) -> float:
    """The share of answers that are too unsure to count (`SURE`)."""
    return float((np.asarray(certainties, float) < SURE).mean())

"""95% intervals of what is measured on a sample of clips.

a share (k of n clips)        Wilson score interval: holds where a bootstrap collapses, at 0
                              and at n of n (20 of 20: [0.839, 1.000])
a mean error, a difference    percentile bootstrap over clips, seeded; the clips are drawn
                              once a resample for everything that is compared on them
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

Method = Literal["wilson", "bootstrap", "definition"]
Take = Callable[[np.ndarray], np.ndarray]

LEVEL = 0.95
_TAILS = (2.5, 97.5)  # percentiles at the ends of it
_MOST_ROWS = 400_000  # of one block of resamples: bounds the memory, not the result


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% interval.

    Attributes:
        value: The figure.
        low: Lower end.
        high: Upper end.
        method: Where the ends come from; "definition" where the value cannot be another.
    """

    value: float
    low: float
    high: float
    method: Method = "bootstrap"

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high < 0


def wilson_interval(num_right: int, num_clips: int) -> Interval:
    """The share `num_right` of `num_clips` with its Wilson score interval.

    Raises:
        ValueError: unless 0 <= num_right <= num_clips and num_clips > 0.
    """
    from scipy.stats import binomtest  # half a second, and a training imports this module

    if num_clips < 1:
        raise ValueError(f"num_clips={num_clips}: a share needs at least one clip")
    interval = binomtest(num_right, num_clips).proportion_ci(LEVEL, method="wilson")
    return Interval(num_right / num_clips, float(interval.low), float(interval.high), "wilson")


def bootstrap_intervals(
    statistic: Callable[[Take], np.ndarray],
    num_clips: int,
    *,
    num_bootstrap: int,
    seed: int,
    most_rows: int = _MOST_ROWS,
) -> list[Interval]:
    """Percentile intervals of one or several figures of the same clips.

    Args:
        statistic: Gets a function that takes the drawn clips out of any table [N, ...], with
            leading axes for the resamples; returns the figures, float [..., F].
        num_clips: N.
        num_bootstrap: Resamples.
        seed: Of the resamples.
        most_rows: Clips that are drawn at once.
    """
    point = statistic(_take_all)
    rng = np.random.default_rng(seed)
    block = max(1, most_rows // num_clips)
    samples = []
    for first in range(0, num_bootstrap, block):
        shape = (min(block, num_bootstrap - first), num_clips)
        samples.append(statistic(partial(_take_rows, rng.integers(0, num_clips, size=shape))))
    low, high = np.percentile(np.concatenate(samples), _TAILS, axis=0)
    return [
        Interval(float(v), float(a), float(b)) for v, a, b in zip(point, low, high, strict=True)
    ]


def mean_intervals(
    columns: Mapping[str, np.ndarray], *, num_bootstrap: int, seed: int
) -> dict[str, Interval]:
    """Means over the same clips or prompts, by name.

    One of zeros and ones is a share of clips, else a mean of shares: a bootstrap collapses where
    all clips are alike, Wilson's interval does not.

    Args:
        columns: What each clip adds to each mean. float64 [N] each
        num_bootstrap: Resamples of the intervals of what is no share.
        seed: Of the resamples.
    """
    table = np.stack(list(columns.values()), axis=-1)
    num_clips = len(table)
    intervals = bootstrap_intervals(
        lambda take: take(table).mean(axis=-2), num_clips, num_bootstrap=num_bootstrap, seed=seed
    )
    return {
        name: wilson_interval(int(column.sum()), num_clips)
        if np.isin(column, (0.0, 1.0)).all()
        else interval
        for (name, column), interval in zip(columns.items(), intervals, strict=True)
    }


def _take_all(table: np.ndarray) -> np.ndarray:
    return table


def _take_rows(rows: np.ndarray, table: np.ndarray) -> np.ndarray:
    chosen: np.ndarray = table[rows]
    return chosen

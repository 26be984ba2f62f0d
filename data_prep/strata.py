"""Ranges of counts: what results are shown by, and what Random Count Sampling draws first."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stratum:
    """A range of counts.

    Attributes:
        name: For example "0", "1-5", "41+".
        low: Its lowest count.
        high: Its highest count, or None for no bound.
    """

    name: str
    low: int
    high: int | None

    def holds(self, count: int) -> bool:
        """Whether a count lies in it."""
        return self.low <= count and (self.high is None or count <= self.high)


def make_strata(bins: Sequence[int]) -> tuple[Stratum, ...]:
    """Strata from the upper ends of their counts; one more, without a bound, above the last.

    >>> [stratum.name for stratum in make_strata((0, 5, 40))]
    ['0', '1-5', '6-40', '41+']
    """
    lows = (0, *(end + 1 for end in bins))
    strata = [
        Stratum(str(low) if low == high else f"{low}-{high}", low, high)
        for low, high in zip(lows, bins, strict=False)
    ]
    return (*strata, Stratum(f"{lows[-1]}+", lows[-1], None))


def stratum_of(count: int, strata: Sequence[Stratum]) -> Stratum:
    """The stratum that a count lies in."""
    for stratum in strata:
        if stratum.holds(count):
            return stratum
    raise ValueError(f"count={count} lies in none of {', '.join(s.name for s in strata)}")


BINS = make_strata((0, 5, 10, 20, 40))
"""What histograms and results are shown by."""

"""Count rewards: how much a predicted number of repetitions is worth, given the true one.

Owns the named variants. e = |predicted - target|, g = target. The published variants keep their
published values (`hybrid` and `fuzzy` reach 1.5); where a publication divides by g, g = 0 is
undefined there and max(g, 1) is ours. A missing prediction is worth 0 in every variant.
"""

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Final

_MAX_ERROR: Final = 10**9  # every variant is 0 far before it; keeps huge integers out of floats


def count_reward(variant: str, predicted: int | None, target: int) -> float:
    """The value of a predicted count.

    Args:
        variant: A name of `VARIANTS`.
        predicted: The count that was answered; None where no integer was.
        target: The true count.

    Returns:
        A number in [0, `MAX_VALUES[variant]`].

    Raises:
        ValueError: for an unknown variant or a target that is not an integer of at least 0.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}, expected one of {', '.join(VARIANTS)}")
    if isinstance(target, bool) or not isinstance(target, int) or target < 0:
        raise ValueError(f"target={target!r}, expected an integer of at least 0")
    if predicted is None:
        return 0.0
    return VARIANTS[variant](min(abs(predicted - target), _MAX_ERROR), min(target, _MAX_ERROR))


def obo(e: int, g: int) -> float:
    """The default: graded in relative error, with a step where each metric has its own.

    1 if e = 0, else c(e) exp(-3 e / max(g, 1)) with c(1) = 0.95 and c(e) = 0.75 for e >= 2.

    The exponential makes an off-by-one nearly worthless where it is a 100% error and nearly full
    where it is 2%. The factor keeps exact apart from off-by-one (OBZ) and off-by-one apart from
    the rest (OBO) at every g, which the exponential alone does not do for large g.

    ====  =====  =====  =====  =====
    g     e = 0  e = 1  e = 2  e = 5
    ====  =====  =====  =====  =====
    0     1.000  0.047  0.002  0.000
    1     1.000  0.047  0.002  0.000
    2     1.000  0.212  0.037  0.000
    3     1.000  0.349  0.102  0.005
    10    1.000  0.704  0.412  0.167
    50    1.000  0.895  0.665  0.556
    ====  =====  =====  =====  =====
    """
    if e == 0:
        return 1.0
    return (0.95 if e == 1 else 0.75) * math.exp(-3.0 * e / max(g, 1))


def gaussian(e: int, g: int) -> float:
    """exp(-e^2 / (2 s^2)) with s = max(1, 0.2 g). In [0, 1]."""
    return math.exp(-(e**2) / (2.0 * max(1.0, 0.2 * g) ** 2))


def linear(e: int, g: int) -> float:
    """max(0, 1 - e / max(g, 1)). In [0, 1]."""
    return max(0.0, 1.0 - e / max(g, 1))


def fixed_gaussian(e: int, g: int) -> float:
    """exp(-e^2 / (2 * 3^2)), the same width for every g. In [0, 1]."""
    return math.exp(-(e**2) / 18.0)


def hybrid(e: int, g: int) -> float:
    """exp(-n^2 / (2 * 0.2^2)) + 0.5 [e <= 1] with n = e / (g + 0.1). In [0, 1.5].

    Kept as published. Its flat bonus pays 0.5 for a 100% error at g = 1.
    """
    n = e / (g + 0.1)
    return math.exp(-(n**2) / (2.0 * 0.2**2)) + (0.5 if e <= 1 else 0.0)


def fuzzy(e: int, g: int) -> float:
    """1.5 - e / g while e / g < 0.5, else 0 (CrowdVLM-R1, arXiv 2504.03724). In [0, 1.5]."""
    relative = e / max(g, 1)
    return 1.5 - relative if relative < 0.5 else 0.0


def exact(e: int, g: int) -> float:
    """1 if e = 0, else 0."""
    return 1.0 if e == 0 else 0.0


VARIANTS: Final = MappingProxyType[str, Callable[[int, int], float]](
    {
        "obo": obo,
        "gaussian": gaussian,
        "linear": linear,
        "fixed_gaussian": fixed_gaussian,
        "hybrid": hybrid,
        "fuzzy": fuzzy,
        "exact": exact,
    }
)
MAX_VALUES: Final = MappingProxyType(
    {name: 1.5 if name in ("hybrid", "fuzzy") else 1.0 for name in VARIANTS}
)

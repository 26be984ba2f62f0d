"""Cycle rewards: does the list of repetitions match the annotated ones, one to one.

Owns the validity of a listed cycle (positive length, in order, no overlap, inside the clip) and
the matching. An invalid cycle can match nothing and still counts as listed. Matching keeps the
order: the k-th match of the list is later than the k-1-th in both. Intervals are never merged:
the union of contiguous repetitions is one block, and any list that covers it would look right.
"""

from typing import Final

import numpy as np

from rewards.grammar.layout import Cycle
from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference

TOLERANCE: Final = 0.4  # of a cycle's length: a list shifted by half a cycle matches nothing
_ROUNDING_S: Final = 0.1  # the grammar writes one decimal


def cycle_f1(
    response: ParsedResponse,
    reference: Reference,
    *,
    tolerance: float = TOLERANCE,
    require_consistent: bool = True,
) -> float | None:
    """F1 of listed and annotated cycles, 2 m / (listed + annotated). In [0, 1].

    A listed cycle matches an annotated one if both of its ends are within `tolerance` times the
    annotated length (at least 0.1 s, the grammar's resolution).

    Args:
        response: The answer.
        reference: Its labels; needs `cycles`.
        tolerance: Share of the annotated cycle's length.
        require_consistent: Give 0 to a list that contradicts the total or the answer, as evidence
            for neither.

    Returns:
        None where the clip has no annotated cycles.
    """
    if not reference.cycles:
        return None
    if require_consistent and not is_consistent(response):
        return 0.0
    valid = valid_cycles(response.cycles, reference)
    if not valid:
        return 0.0
    close = close_pairs(valid, reference.cycles, tolerance)
    matched = best_matching(close.astype(np.float64))
    return 2.0 * matched / (len(response.cycles) + len(reference.cycles))


def cycle_tiou(
    response: ParsedResponse, reference: Reference, *, require_consistent: bool = True
) -> float | None:
    """Mean temporal IoU of the best one-to-one matching in order. In [0, 1].

    The sum over matched pairs is divided by the larger of the two numbers of cycles, so that a
    cycle too many costs as much as one too few. Arguments and None as in `cycle_f1`.
    """
    if not reference.cycles:
        return None
    if require_consistent and not is_consistent(response):
        return 0.0
    valid = valid_cycles(response.cycles, reference)
    if not valid:
        return 0.0
    total = best_matching(_tiou(valid, reference.cycles))
    return min(1.0, total / max(len(response.cycles), len(reference.cycles)))


def matched_tiou(response: ParsedResponse, reference: Reference) -> np.ndarray | None:
    """Temporal IoU of each listed cycle with the annotated one matched to it. float64 [listed].

    The matching is that of `cycle_tiou`: one to one, in order, of the largest sum. 0 for a cycle
    that is invalid or matched with none. None where the clip has no annotated cycles.
    """
    if not reference.cycles:
        return None
    found = np.zeros(len(response.cycles))
    valid = valid_cycles(response.cycles, reference)
    if not valid:
        return found
    values = _tiou(valid, reference.cycles)
    at = [response.cycles.index(cycle) for cycle in valid]  # of equal ones the first is valid
    for row, column in _pairs(values):
        found[at[column]] = values[row, column]
    return found


def consistency(response: ParsedResponse, reference: Reference) -> float | None:
    """1 if the listed cycles, the total and the answer are the same number, else 0.

    It never looks at the labels, so any self-consistent answer earns it: use it beside a reward
    that does. A list with an invalid cycle agrees with nothing. The list may be absent only where
    the clip has no annotated cycles or the answer is 0.
    """
    if response.count is None or response.count != response.total:
        return 0.0
    if not response.cycles and not reference.cycles:
        return 1.0
    num_valid = len(valid_cycles(response.cycles, reference))
    return float(num_valid == len(response.cycles) == response.count)


def is_consistent(response: ParsedResponse) -> bool:
    """Whether the answer, the total and the number of listed cycles are the same."""
    return response.count is not None and (response.count == response.total == len(response.cycles))


def valid_cycles(cycles: tuple[Cycle, ...], reference: Reference) -> tuple[Cycle, ...]:
    """The listed cycles of positive length that start after the last valid one, inside the clip.

    The clip ends at `duration_s` or the last annotated cycle, whichever is later, plus the 0.1 s
    that writing one decimal can add; without a duration it has no end.
    """
    limit = float("inf")
    if reference.duration_s is not None:
        last = reference.cycles[-1][1] if reference.cycles else 0.0
        limit = max(reference.duration_s, last) + _ROUNDING_S
    valid = []
    previous_end = 0.0
    for start, end in cycles:
        if previous_end <= start < end <= limit:
            valid.append((start, end))
            previous_end = end
    return tuple(valid)


def close_pairs(
    listed: tuple[Cycle, ...], annotated: tuple[Cycle, ...], tolerance: float = TOLERANCE
) -> np.ndarray:
    """Which annotated cycle each listed one matches. bool [annotated, listed].

    Raises:
        ValueError: if `tolerance` is not in (0, 1).
    """
    if not 0.0 < tolerance < 1.0:
        raise ValueError(f"tolerance={tolerance!r}, expected a share of the cycle in (0, 1)")
    a = np.asarray(annotated, np.float64)[:, None, :]
    p = np.asarray(listed, np.float64)[None, :, :]
    # Rounding moves each end by up to 0.05 s, so a correct end is never outside 0.1 s.
    allowed = np.maximum(_ROUNDING_S, tolerance * (a[..., 1] - a[..., 0])) + 1e-9
    matched: np.ndarray = np.abs(p - a).max(axis=-1) <= allowed
    return matched


def _tiou(listed: tuple[Cycle, ...], annotated: tuple[Cycle, ...]) -> np.ndarray:
    """Temporal IoU of every pair. float64 [annotated, listed]."""
    a = np.asarray(annotated, np.float64)[:, None, :]
    p = np.asarray(listed, np.float64)[None, :, :]
    overlap = np.minimum(a[..., 1], p[..., 1]) - np.maximum(a[..., 0], p[..., 0])
    union = np.maximum(a[..., 1], p[..., 1]) - np.minimum(a[..., 0], p[..., 0])
    ratio: np.ndarray = np.maximum(overlap, 0.0) / union
    return ratio


def best_matching(values: np.ndarray) -> float:
    """Largest sum of values over pairs whose rows and columns both rise. values: [R, C], >= 0.

    best[j] after row i is the optimum over the first i rows and j columns; a row is skipped, a
    column is skipped (the running maximum), or the pair is taken.
    """
    return float(_best_sums(values)[-1, -1])


def _best_sums(values: np.ndarray) -> np.ndarray:
    """The optimum over the first i rows and j columns: float64 [R + 1, C + 1]."""
    best = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    for i, row in enumerate(values):
        best[i + 1, 1:] = np.maximum.accumulate(np.maximum(best[i, 1:], best[i, :-1] + row))
    return best


def _pairs(values: np.ndarray) -> list[tuple[int, int]]:
    """(row, column) of the pairs of `best_matching`, of values above 0, in order."""
    best = _best_sums(values)
    i, j = values.shape
    pairs = []
    while i and j:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]

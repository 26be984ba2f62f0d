"""Where repetitions begin and end: the best chain of closed excursions.

A repetition leaves a pose, goes somewhere, and comes back to the pose in the same direction of
motion. Every pair of moments (i, j) gets a gain for being one repetition::

    gain = excursion - MISMATCH_COST * max(0, mismatch - TOLERANCE) - LEAST_GAIN

    excursion  how far the clip goes from both ends in between, as a share of its amplitude, at
               most 1
    mismatch   how unlike both ends are: their poses and those shortly before and after them, for
               a pendulum passes its lowest point twice in a swing, in two directions

and the chain of non-overlapping repetitions with the largest sum wins, found exactly by dynamic
programming. To the gain comes COVERAGE * (way from i to j), so that a chain which explains all of
the motion beats one that begins half a repetition late. A change of tempo between neighbours costs
TEMPO_COST * |log ratio|, so that speed may drift freely and does not jump without need. Time
between repetitions is free: it may be a pause, an interruption, or the rest before and after. A
motion that never returns closes no excursion, which is why it counts 0.

This differs from RepNet, which sums 1 / period over periodic frames: a chain has borders that can
be compared with marks, and finds a single repetition, which no period can.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

MISMATCH_COST = 2.0
TOLERANCE = 0.2
LEAST_GAIN = 0.45
TEMPO_COST = 0.6
STILL = 0.06  # share of the amplitude: less is no motion
COVERAGE = 0.05  # gain for each amplitude of the way that a repetition explains
GAP = 0.2  # share of a repetition: a shorter gap to its neighbour is no pause
MOST_UNEVEN = 1.5  # ratio of a repetition's length to that of the others
HIDDEN_MISMATCH = 0.3  # of a moment that cannot be seen: neither proof nor disproof

# Neighbours of a moment at these distances tell its direction; longer ones for longer cycles.
_DELAYS_S = (0.08, 0.16, 0.32)
_CYCLE_PER_DELAY = 6.0
_NEIGHBOUR_WEIGHT = 0.5  # of a neighbour's squared distance against the moment's own
_REST = 0.1  # squared share of the amplitude below which a neighbour is the same pose: at rest


@dataclass(frozen=True)
class Chain:
    """Repetitions in order.

    Attributes:
        borders: First and last moment of each, [N, 2]; they may touch, and do not overlap.
        gains: Gain of each, without what it explains. [N]
    """

    borders: NDArray[np.int64]
    gains: Array


def find_chain(
    distances: Array, is_hidden: NDArray[np.bool_], fps: float, *, min_s: float, max_s: float
) -> Chain:
    """The best chain of cycles.

    Args:
        distances: Distances of moments as shares of the clip's amplitude. [T, T]
        is_hidden: Moments at which the motion cannot be seen. [T]
        fps: Moments per second.
        min_s: Shortest repetition.
        max_s: Longest repetition.
    """
    low = max(2, int(np.ceil(min_s * fps)))
    high = min(len(distances) - 1, int(max_s * fps))
    if high < low:
        return Chain(np.zeros((0, 2), np.int64), np.zeros(0, np.float32))
    gains = cycle_gains(distances, is_hidden, fps)
    path = np.concatenate([[0.0], np.cumsum(np.diagonal(distances, 1))])
    explained = np.asarray(COVERAGE * (path[None] - path[:, None]), np.float32)
    borders = best_chain(gains + explained, low, high)
    return Chain(borders, gains[borders[:, 0], borders[:, 1]])


def trim_rest(borders: NDArray[np.int64], distances: Array) -> NDArray[np.int64]:
    """Move ends that lie in a rest to where the motion begins or ends; borders that touch stay.

    A chain is indifferent to how much of a rest belongs to a repetition.
    """
    trimmed = borders.copy()
    for k, (start, end) in enumerate(borders):
        if k == 0 or borders[k - 1, 1] != start:
            moved = distances[start, start : end + 1] > STILL
            trimmed[k, 0] = start + max(0, int(moved.argmax()) - 1)
        if k == len(borders) - 1 or borders[k + 1, 0] != end:
            moved = distances[end, start : end + 1][::-1] > STILL
            trimmed[k, 1] = end - max(0, int(moved.argmax()) - 1)
    return trimmed


def close_gaps(cycles: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Let neighbours share a border where the gap between them is too short for a pause, seconds.

    >>> close_gaps([(0.0, 1.0), (1.1, 2.1), (3.0, 4.0)])
    [(0.0, 1.05), (1.05, 2.1), (3.0, 4.0)]
    """
    closed = list(cycles)
    for k in range(1, len(closed)):
        (start, end), (next_start, next_end) = closed[k - 1], closed[k]
        if next_start - end <= GAP * min(end - start, next_end - next_start):
            border = round((end + next_start) / 2.0, 3)
            closed[k - 1], closed[k] = (start, border), (border, next_end)
    return closed


def whole_clip(distances: Array, borders: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The chain that begins and ends with the clip, where the motion at both ends is one more.

    Someone who never stands twice in quite the same pose is counted from one lowest point to the
    next, and half a repetition is left over at each end. The new borders are the moments in each
    repetition that are most like both ends of the clip. None where those are no repetitions of
    about the same length.
    """
    if len(borders) < 2:
        return None
    ends = distances[[0, -1]].max(axis=0)  # [T]
    inner = [i + int(ends[i : j + 1].argmin()) for i, j in borders]
    marks = np.array([0, *inner, len(distances) - 1])
    lengths = np.diff(marks)
    typical = float(np.median(borders[:, 1] - borders[:, 0]))
    if lengths.min() < typical / MOST_UNEVEN or lengths.max() > typical * MOST_UNEVEN:
        return None
    return np.stack([marks[:-1], marks[1:]], axis=1)


def cycle_gains(distances: Array, is_hidden: NDArray[np.bool_], fps: float) -> Array:
    """Gain of each pair (i, j), i < j, for being one repetition; the rest is not defined. [T, T]"""
    mismatch = closing_mismatch(distances, fps)
    unseen = is_hidden[:, None] | is_hidden[None]
    mismatch = np.where(unseen, np.float32(TOLERANCE + HIDDEN_MISMATCH), mismatch)
    cost = MISMATCH_COST * np.maximum(mismatch - TOLERANCE, 0.0)
    return np.asarray(np.minimum(excursions(distances), 1.0) - cost - LEAST_GAIN)


def excursions(distances: Array) -> Array:
    """How far the clip goes from moments i and j between them, the smaller of both. [T, T]"""
    later = np.triu(distances)
    from_start = np.maximum.accumulate(later, axis=1)
    from_end = np.maximum.accumulate(later[::-1], axis=0)[::-1]
    return np.asarray(np.minimum(from_start, from_end))


def closing_mismatch(distances: Array, fps: float) -> Array:
    """How unlike two moments are, with their direction of motion. [T, T]

    The moments before the first and after the second do not matter where nothing moves there: a
    repetition may begin from rest and end in rest.
    """
    squares = np.square(distances)
    num = len(squares)
    indices = np.arange(num)
    lags_s = np.abs(indices[:, None] - indices[None]) / fps
    result = np.empty_like(squares)
    shortest = 0.0
    for delay, longer in zip(_DELAYS_S, (*_DELAYS_S[1:], np.inf), strict=True):
        step = max(1, round(delay * fps))
        before, after = np.maximum(indices - step, 0), np.minimum(indices + step, num - 1)
        weight_before = np.minimum(squares[before, indices] / _REST, 1.0)
        weight_after = np.minimum(squares[after, indices] / _REST, 1.0)
        neighbours = weight_before[:, None] * squares[np.ix_(before, before)]
        neighbours += weight_after[None] * squares[np.ix_(after, after)]
        mixed = (squares + _NEIGHBOUR_WEIGHT * neighbours) / (1.0 + 2.0 * _NEIGHBOUR_WEIGHT)
        longest = _CYCLE_PER_DELAY * np.sqrt(delay * longer)
        chosen = (lags_s >= shortest) & (lags_s < longest)
        result[chosen] = mixed[chosen]
        shortest = longest
    roots: np.ndarray = np.sqrt(result)
    return roots


def best_chain(gains: Array, low: int, high: int) -> NDArray[np.int64]:
    """Borders [N, 2] of the chain with the largest sum of gains less the costs of its tempo.

    value[j, l]: the best chain whose last repetition took lags[l] moments and ended by moment j.
    entry[i, l]: the best that can stand before a repetition of lags[l] moments that begins at i.
    """
    num, lags = len(gains), np.arange(low, high + 1)
    indices = np.arange(len(lags))
    log_lags = np.log(lags)
    tempo = (TEMPO_COST * np.abs(log_lags[:, None] - log_lags[None])).astype(np.float32)
    value = np.full(len(lags), -np.inf, np.float32)
    last_end = np.full(len(lags), -1)
    entry = np.zeros((num, len(lags)), np.float32)
    entry_lag = np.full((num, len(lags)), -1)  # index of the lag before; -1: none before
    entry_end = np.full((num, len(lags)), -1)
    for j in range(num):
        fits = indices[: max(0, min(j, high) - low + 1)]
        starts = j - lags[fits]
        offered = entry[starts, fits] + gains[starts, j]
        better = fits[offered > value[fits]]
        value[better] = offered[better]
        last_end[better] = j
        if j and not len(better):
            entry[j], entry_lag[j], entry_end[j] = entry[j - 1], entry_lag[j - 1], entry_end[j - 1]
            continue
        totals = value[None] - tempo
        before = totals.argmax(axis=1)
        best = totals[indices, before]
        useful = best > 0
        entry[j] = np.where(useful, best, 0.0)
        entry_lag[j] = np.where(useful, before, -1)
        entry_end[j] = np.where(useful, last_end[before], -1)
    index = int(value.argmax())
    if not value[index] > 0:
        return np.zeros((0, 2), np.int64)
    borders = []
    end = int(last_end[index])
    while index >= 0:
        start = end - int(lags[index])
        borders.append((start, end))
        index, end = int(entry_lag[start, index]), int(entry_end[start, index])
    return np.array(borders[::-1], np.int64)

"""Taking two shots apart where one fades into the other.

In a fade each picture is (1 - w) * A + w * B. A and B change little in so short a time but for what
moves in them, so that w is read off their medians, and each shot gets its own pictures back as long
as it has most of the weight.
"""

import numpy as np
from numpy.typing import NDArray

from data_prep.periodicity.shots import BLANK

Array = NDArray[np.float32]
Frames = NDArray[np.uint8]

_LONGEST_S = 1.4  # of a fade
_STILL_S = 1.0  # before and after it, of which the median is taken
_MIXED = (0.1, 0.9)  # weights between them are of a fade
_TELLING = 4.0  # grey values between both shots: pixels that differ less tell nothing of a weight
_LEAST = 3  # pictures of a fade; fewer are a cut
_MOST_FOREIGN = 0.7  # weight of the other shot up to which a picture is taken apart


def take_apart(
    frames: Frames, spans: list[tuple[int, int]], fps: float
) -> list[tuple[int, int, Frames]]:
    """First frame, the one after the last, and the pictures of each shot, without the other's.

    Spans overlap where two shots are seen at a time.

    Args:
        frames: Grey values. [T, H, W]
        spans: First frame of each shot and the one after its last.
        fps: Frames per second.
    """
    shots = [(first, last, frames[first:last]) for first, last in spans]
    for k in range(len(shots) - 1):
        fade = _fade(frames, spans[k], spans[k + 1], fps)
        if fade is None:
            continue
        first, weights, before, after = fade
        mixed = frames[first : first + len(weights)].astype(np.float32)
        w = weights[:, None, None]
        num_left = int((np.maximum.accumulate(weights) < _MOST_FOREIGN).sum())
        left = (mixed - w * after)[:num_left] / (1.0 - w[:num_left])
        start, stop, own = shots[k]
        # The fade may begin after the end that was told of its shot.
        own = np.concatenate([own[: first - start], frames[stop:first], _as_grey(left)])
        shots[k] = (start, first + num_left, own)
        num_right = int((np.minimum.accumulate(weights[::-1]) > 1.0 - _MOST_FOREIGN).sum())
        right = (mixed - (1.0 - w) * before)[len(w) - num_right :] / w[len(w) - num_right :]
        end = first + len(weights)
        _, last, own = shots[k + 1]
        own = np.concatenate([_as_grey(right), frames[end:last]])
        shots[k + 1] = (end - num_right, last, own)
    return shots


def _fade(
    frames: Frames, left: tuple[int, int], right: tuple[int, int], fps: float
) -> tuple[int, Array, Array, Array] | None:
    """First mixed frame, weights of the later shot, and the medians of both; None for a cut."""
    reach, still = round(_LONGEST_S * fps / 2.0), max(2, round(_STILL_S * fps))
    low, high = left[1] - reach, right[0] + reach
    if low - left[0] < still or right[1] - high < still:
        return None
    before = np.median(frames[low - still : low], axis=0)
    after = np.median(frames[high : high + still], axis=0)
    way = (after - before).ravel()
    between = (frames[low:high].astype(np.float32) - before).reshape(high - low, -1)
    telling = np.abs(way) > max(float(np.median(np.abs(way))), _TELLING)
    if not telling.any():
        return None
    weights = np.median(between[:, telling] / way[telling], axis=1)  # whatever else moves
    others = np.flatnonzero((weights <= _MIXED[0]) | (weights >= _MIXED[1]))
    middle = np.searchsorted(others, (left[1] + right[0]) // 2 - low)
    begin, end = np.concatenate([[-1], others, [len(weights)]])[middle : middle + 2]
    mixed = np.arange(begin + 1, end)
    if len(mixed) < _LEAST:
        return None
    if frames[low + mixed].std(axis=(1, 2)).min() < BLANK:
        return None
    chosen = np.clip(weights[mixed], *_MIXED).astype(np.float32)
    return low + int(mixed[0]), chosen, before, after


def _as_grey(pictures: NDArray[np.floating]) -> Frames:
    return np.clip(pictures, 0.0, 255.0).astype(np.uint8)

"""Where one shot ends and the next begins: the picture changes for good.

Two pictures are of different places if a large share of their pixels differ, whatever the light.
There is a border at a moment if *no* picture shortly before it and *no* picture shortly after it
are of the same place: a motion changes a part of the picture and comes back, a pan or a shake has a
neighbour that is alike, a flash gives the picture back. A fade takes time: pictures within it are
left out, are mixed of both ends, and the details on both sides must be unlike at every small shift.
Pictures of one grey value, as black frames, are a border; a few of them, only to another place.
"""

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import minimum_filter1d

Array = NDArray[np.float32]

BLANK = 3.0  # standard deviation of a picture that shows nothing: grey values
LEAST_S = 0.7  # of a shot: less is a piece of a transition
_SIDE = 32  # pixels of the longer side that is looked at
_BEFORE_S = 2.0  # how far apart two pictures may be that show the same place
_FADES_S = (0.0, 0.4, 0.8, 1.2)  # time that a transition takes; 0: a cut
_CHANGED = 12.0  # grey values by which a pixel differs
_CHANGED_SHARE = 0.4  # of the pixels that make it another place: a large subject covers a third
_ALL_CHANGED = 0.8  # of them: another place, however alike its details are
_FADED_SHARE = 0.45  # of them, for a fade: a large subject moves meanwhile
_UNMIXED = 0.25  # of a fade's difference: the part that is no mixture
_OFF_MIDDLE = 0.25  # of a fade: its middle picture is half of each
_ALIKE = 0.6  # correlation of the details, above which it is the same place
_ASIDE_S = 0.3  # of pictures before and after that are averaged for it
_BLACK = 20.0  # grey value of bars beside a picture
_BLANK_SHARE = 0.25  # of the contrast of a clip: less shows nothing, if it is below BLANK, too
_BLANK_S = (0.2, 0.5)  # of such pictures: less is a flash; more is a border whatever follows
_FLAT = 1.0  # grey values: less is no detail
_DETAIL = 2.5  # pixels: larger structures are light
_REACH = 0.1  # of a side: so far a camera may move during a fade


def find_shots(frames: NDArray[np.uint8], fps: float) -> list[tuple[int, int]]:
    """First frame and the one after the last of each shot, in order.

    What is no shot, as black frames or a fade between two, belongs to none.

    Args:
        frames: Grey values 0 .. 255. [T, H, W]
        fps: Frames per second.
    """
    num, least = len(frames), max(3, round(LEAST_S * fps))
    if num < 2 * least:
        return [(0, num)]
    frames = _without_bars(frames)
    small = _small(frames)
    shares = _changed_shares(small, max(2, round(_BEFORE_S * fps)))
    edges = [(0, 0)]
    for start, end in _transitions(small, shares, _blanks(frames, small, fps), fps):
        edges.append((start, end))
    edges.append((num, num))
    shots = [(a[1], b[0]) for a, b in pairwise(edges)]
    return [(a, b) for a, b in shots if b - a >= least] or [(0, num)]


def _without_bars(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pictures without black bars beside them. [T, H, W]"""
    shown = frames[:: max(1, len(frames) // 200)].max(axis=0) > _BLACK
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    if not (len(rows) and len(columns)):
        return frames
    return frames[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _small(frames: NDArray[np.uint8]) -> Array:
    """Small pictures of one brightness. [T, h, w]"""
    height, width = frames.shape[1:]
    shrink = min(1.0, _SIDE / max(height, width))
    size = (max(4, round(width * shrink)), max(4, round(height * shrink)))
    small = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames])
    small = small.astype(np.float32)
    light = np.median(small, axis=(1, 2))
    gain = np.clip(light / max(float(np.median(light)), 1.0), 0.4, 2.5)
    return np.asarray(small / gain[:, None, None], np.float32)


def _changed_shares(small: Array, most: int) -> Array:
    """Share of the pixels that differ between frame i and frame i + lag. [lags + 1, T]"""
    num = len(small)
    shares = np.ones((min(most, num - 1) + 1, num), np.float32)
    flat = small.reshape(num, -1)
    for lag in range(1, len(shares)):
        shares[lag, : num - lag] = (np.abs(flat[lag:] - flat[:-lag]) > _CHANGED).mean(axis=1)
    return shares


def _blanks(frames: NDArray[np.uint8], small: Array, fps: float) -> list[tuple[int, int]]:
    """Runs of pictures that show nothing: long ones, and those between two places."""
    window, found = max(2, round(_ASIDE_S * fps)), []
    contrast = frames.std(axis=(1, 2))
    is_blank = contrast < min(BLANK, _BLANK_SHARE * float(np.median(contrast)))
    for first, last in _runs(is_blank):
        if last - first < _BLANK_S[0] * fps or first < 2 or last > len(frames) - 2:
            continue
        if last - first >= _BLANK_S[1] * fps:
            found.append((first, last))
            continue
        before = small[max(0, first - window) : first].mean(axis=0)
        after = small[last : last + window].mean(axis=0)
        has_changed = (np.abs(after - before) > _CHANGED).mean() > _CHANGED_SHARE
        if has_changed or likeness(before, after) < _ALIKE:
            found.append((first, last))
    return found


def _transitions(
    small: Array, shares: Array, blanks: list[tuple[int, int]], fps: float
) -> list[tuple[int, int]]:
    """First frame of each transition and the first after it, in order; equal for a cut."""
    num = len(small)
    taken = list(blanks)
    for fade_s in _FADES_S:
        gap = round(fade_s * fps)
        least = _least_shares(shares, gap)
        for start, end in _runs(least > _CHANGED_SHARE):
            first = start + int(np.argmax(least[start:end]))
            if gap:
                first = _most_even(small, start, min(end, num - gap), gap, first)
            last = first + gap
            is_free = all(last < a - gap or first > b + gap for a, b in taken)
            inside = first >= 2 and last <= num - 2
            if is_free and inside and _is_border(small, first, last, float(least[first]), fps):
                taken.append((first, last))
    return sorted(taken)


def _most_even(small: Array, start: int, end: int, gap: int, first: int) -> int:
    """Where in a run the pictures between are mixed most evenly of those at both ends."""
    places = range(max(start, 1), end)
    blends = [_blend(small, place, place + gap) for place in places]
    unlike = [rest + abs(middle - 0.5) for rest, middle in blends]
    return places[int(np.argmin(unlike))] if unlike else first


def _least_shares(shares: Array, gap: int) -> Array:
    """Least share that changes from any frame before t to any from t + gap on. [T]"""
    num = shares.shape[1]
    least = np.full(num, np.inf, np.float32)
    for lag in range(gap + 1, len(shares)):
        # Pairs (i, i + lag) with t + gap - lag <= i <= t - 1.
        size = lag - gap
        padded = np.concatenate([np.ones(size, np.float32), shares[lag]])
        padded[num + size - lag :] = 1.0
        window = minimum_filter1d(padded, size, origin=(size - 1) // 2)  # trailing
        least = np.minimum(least, window[size - 1 : size - 1 + num])
    least[np.isinf(least)] = 0.0
    return least


def _runs(is_true: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First of each run of true values and the one after its last."""
    edges = np.diff(np.concatenate([[0], is_true.astype(int), [0]]))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]


def _is_border(small: Array, first: int, last: int, share: float, fps: float) -> bool:
    """Whether what lies between two moments is a cut, or a fade, to another place."""
    window = max(2, round(_ASIDE_S * fps))
    before = small[max(0, first - window) : first].mean(axis=0)
    after = small[last : last + window].mean(axis=0)
    if likeness(before, after) >= _ALIKE and share < _ALL_CHANGED:
        return False
    if first == last:
        return True
    rest, middle = _blend(small, first, last)
    return share > _FADED_SHARE and rest < _UNMIXED and abs(middle - 0.5) < _OFF_MIDDLE


def _blend(small: Array, first: int, last: int) -> tuple[float, float]:
    """The part of a fade's pictures that is no mixture of both ends, and how far its middle is.

    A motion has pictures of its own; of a fade the first is about 0, the second about 0.5.
    """
    before = small[first - 1]
    way = (small[last] - before).ravel()
    length = float(way @ way)
    between = (small[first:last] - before).reshape(last - first, -1)
    mixed = between @ way / max(length, 1e-9)
    rest = np.sqrt(np.square(between - mixed[:, None] * way).sum(axis=1) / max(length, 1e-9))
    return float(rest.mean()), float(mixed[len(mixed) // 2])


def likeness(before: Array, after: Array) -> float:
    """Correlation of the details of two pictures at the best of small shifts; 1: the same place."""
    first, second = (p - cv2.GaussianBlur(p, (0, 0), _DETAIL) for p in (before, after))
    reach = max(1, round(_REACH * max(before.shape)))
    if min(before.shape) <= 2 * reach + 2:
        reach = 1
    inner = second[reach:-reach, reach:-reach]
    contrasts = sorted((float(inner.std()), float(first.std())))
    if contrasts[0] < _FLAT:  # black frames are like nothing that has details
        return 0.0 if contrasts[1] > 3.0 * _FLAT else 1.0
    scores = cv2.matchTemplate(
        first.astype(np.float32), inner.astype(np.float32), cv2.TM_CCOEFF_NORMED
    )
    return float(np.nan_to_num(scores).max())

"""A long file: looked at window by window, so that it takes no more memory than a short one.

    repetitions   ////  ///////   ////////////////////////////////////   ////
    window 1     [///   /////// | ////////]      cut in the longest pause of its latter half
    window 2                    [ //////////////////////|/////]    no pause: where one repetition
    window 3                              [/////////////|//////////////| ...    ends, and the next
                                                                    window begins a little earlier

The periodicity score of a moment is that of the repetitions around it, and 0 between them; so a cut
lies where it is lowest. A repetition belongs to the window on whose side of the cut its middle
lies: none is counted twice, and none is lost where two windows see it a little shifted.

A window may show several things, one after the other, with a rest between; their repetitions are of
different sizes, and the smaller are lost beside the larger. So what moves between two rests is
looked at once more, alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.periodicity.detector import (
    Detection,
    detect_cycles,
    detect_in_frames,
    join_windows,
)
from data_prep.periodicity.features import FPS, MAX_FRAMES, read_grey
from data_prep.periodicity.verdict import Shot, judge
from data_prep.schema import Clip
from rewards.grammar.layout import Cycle

LONGEST_S = MAX_FRAMES / FPS
"""Length up to which a clip is looked at as a whole, at the full rate."""

LEAST_PAUSE_S = 1.0
"""Between two repetitions; a shorter gap is no pause."""

WINDOW_S = 40.0
"""Of a window of a longer one."""

MARGIN = 1 / 6
"""Of a window: before its end, where a repetition may be cut off, nothing is cut; a rest of a file
that is shorter is no window of its own."""

_OVERLAP = 2.0  # repetitions that the next window looks at again, where there is no pause

_LAG_S = 0.3  # between two pictures that are compared
_MOVED = 10  # grey values by which a pixel, blurred, has changed
_MOVED_SHARE = 0.002  # of the pixels
_BLUR = 1.5  # pixels
_REST_S = 1.5  # a shorter one divides nothing
_AROUND_S = 2.0  # of a rest that is shown with what moves; at most half of it


@dataclass(frozen=True)
class Cut:
    """Where one window ends and the next begins.

    Attributes:
        at_s: Repetitions before it belong to the window before.
        next_s: Start of the next window, not later.
    """

    at_s: float
    next_s: float


def detect_long(clip: Clip) -> Detection:
    """Find the repetitions in a clip of any length; one of up to 80 s as `detect_cycles` does.

    The pictures of a longer one (times, distances, signal) are left out: they grow with its square.

    Raises:
        VideoError: if the video cannot be read.
    """
    if clip.duration_s <= LONGEST_S:
        return detect_cycles(clip)
    return join_windows([shot for window in _windows(clip) for shot in window])


def _windows(clip: Clip) -> Iterator[list[Shot]]:
    """The shots of one window after another; those that a cut divides are there in two."""
    start = kept_to = 0.0
    while start < clip.duration_s:
        end = start + WINDOW_S
        if end + MARGIN * WINDOW_S >= clip.duration_s:  # no short rest
            end = clip.duration_s
        window = replace(clip, start_s=clip.start_s + start, end_s=clip.start_s + end, cycles=None)
        shots, cut = settle(
            look_at(*read_grey(window)), start, end, kept_to, is_last=end >= clip.duration_s
        )
        yield shots
        start, kept_to = cut.next_s, cut.at_s


def settle(
    shots: Sequence[Shot], start_s: float, end_s: float, from_s: float, *, is_last: bool
) -> tuple[list[Shot], Cut]:
    """What of a window's shots belongs to it, and where the next window begins.

    Args:
        shots: Of the window, seconds from its start.
        start_s: Of the window.
        end_s: Its end.
        from_s: Where the window before it was cut.
        is_last: Whether no window follows.
    """
    cycles = [(a + start_s, b + start_s) for shot in shots for a, b in shot.cycles]
    cut = Cut(end_s, end_s) if is_last else choose_cut(cycles, start_s, end_s)
    kept = [_kept(shot, start_s, from_s, cut.at_s) for shot in shots]
    return [shot for shot in kept if shot is not None], cut


def look_at(grey: NDArray[np.uint8], fps: float) -> list[Shot]:
    """The shots of one window; what moves between two rests alone, where that is clearer.

    Args:
        grey: Grey values. [T, H, W]
        fps: Frames a second.
    """
    shots = list(detect_in_frames(grey, fps).shots)
    for first, last in _stretches(grey, fps):
        start, end = first / fps, last / fps
        alone = detect_in_frames(grey[first:last], fps)
        seen = [shot.score for shot in shots if between(shot.cycles, 0.0, start, end)]
        if alone.count > 1 and alone.score > max(seen, default=0.0):
            shots = _instead(shots, alone, start, end)
    return shots


def _instead(shots: list[Shot], alone: Detection, start_s: float, end_s: float) -> list[Shot]:
    """The shots, with what was seen alone from one second to another in the place of theirs."""
    around = [
        kept
        for shot in shots
        for a, b in ((0.0, start_s), (end_s, np.inf))
        if (kept := _kept(shot, 0.0, a, b)) is not None
    ]
    seen = [_kept(shot, start_s, start_s, end_s) for shot in alone.shots]
    return sorted([*around, *filter(None, seen)], key=lambda shot: shot.start_s)


def _stretches(grey: NDArray[np.uint8], fps: float) -> list[tuple[int, int]]:
    """(first, last + 1) frame of what moves between rests; none without a rest. [T, H, W]"""
    lag, rest, around = (max(1, round(s * fps)) for s in (_LAG_S, _REST_S, _AROUND_S))
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), _BLUR) for frame in grey])
    changed = np.abs(blurred[lag:].astype(np.int16) - blurred[:-lag]) > _MOVED
    moving = np.flatnonzero(changed.mean(axis=(1, 2)) > _MOVED_SHARE)
    if not len(moving):
        return []
    breaks = np.flatnonzero(np.diff(moving) > rest + lag)
    firsts = moving[np.concatenate([[0], breaks + 1])]
    lasts = moving[np.concatenate([breaks, [-1]])] + lag
    middles = (lasts[:-1] + firsts[1:]) // 2
    lows = np.maximum(firsts - around, np.concatenate([[0], middles]))
    highs = np.minimum(lasts + 1 + around, np.concatenate([middles, [len(grey)]]))
    found = list(zip(lows.tolist(), highs.tolist(), strict=True))
    is_all = len(found) == 1 and found[0][1] - found[0][0] + rest >= len(grey)
    return [] if is_all else found


def choose_cut(cycles: Sequence[Cycle], start_s: float, end_s: float) -> Cut:
    """Where to cut a window: in a pause of its latter half, else where a repetition ends.

    Args:
        cycles: Repetitions in the window, in order.
        start_s: Start of the window.
        end_s: Its end.
    """
    length = end_s - start_s
    low, high = start_s + 0.5 * length, end_s - MARGIN * length
    borders = [start_s, *(time for cycle in cycles for time in cycle), end_s]
    middle = middle_of_pause(zip(borders[::2], borders[1::2], strict=True), low, high)
    if middle is not None:
        return Cut(middle, middle)
    last = last_end(cycles, low, high)
    at = high if last is None else last
    usual = float(np.median([end - start for start, end in cycles])) if cycles else 0.0
    return Cut(at, max(at - _OVERLAP * usual, low))


def middle_of_pause(
    gaps: Iterable[tuple[float, float]], low_s: float, high_s: float
) -> float | None:
    """Middle of the longest of some gaps, as far as it lies between two times; None if short."""
    within = [(max(a, low_s), min(b, high_s)) for a, b in gaps]
    first, last = max(within, key=lambda gap: gap[1] - gap[0], default=(0.0, 0.0))
    return 0.5 * (first + last) if last - first >= LEAST_PAUSE_S else None


def last_end(cycles: Sequence[Cycle], low_s: float, high_s: float) -> float | None:
    """The last end of a repetition between two times; None without one."""
    ends = [end for _, end in cycles if low_s <= end <= high_s]
    return ends[-1] if ends else None


def _kept(shot: Shot, offset_s: float, from_s: float, to_s: float) -> Shot | None:
    """What of a shot lies between two cuts, seconds from the start of the clip."""
    start, end = max(shot.start_s + offset_s, from_s), min(shot.end_s + offset_s, to_s)
    if end <= start:
        return None
    cycles = between(shot.cycles, offset_s, from_s, to_s)
    rejected = between(shot.rejected, offset_s, from_s, to_s)
    told = shot.judgement
    if (len(cycles), len(rejected)) != (len(shot.cycles), len(shot.rejected)):  # one may be left
        told = judge(len(cycles), len(rejected), shot.score, has_period=True, moves=bool(cycles))
    return Shot(start, end, cycles, told, shot.score, rejected)


def between(
    cycles: Sequence[Cycle], offset_s: float, from_s: float, to_s: float
) -> tuple[Cycle, ...]:
    """Cycles, moved by an offset, whose middle lies between two times."""
    moved = [(round(a + offset_s, 3), round(b + offset_s, 3)) for a, b in cycles]
    return tuple((a, b) for a, b in moved if from_s <= 0.5 * (a + b) < to_s)

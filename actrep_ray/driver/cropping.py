"""Cuts a window of few cycles out of a clip of many, for strata that few clips lie in."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from actrep_ray.config import SamplingConfig
from data_prep.schema import Clip
from data_prep.strata import Stratum
from rewards.grammar.layout import Cycle

_MARK_SLACK_S = 1e-6  # marks may differ from the clip's end by less than this


def can_crop(clip: Clip, stratum: Stratum, config: SamplingConfig) -> bool:
    """Whether some window of a clip has a count of a stratum, and fewer cycles than the clip."""
    return any(_windows(clip, k, config) for k in _targets(clip, stratum, config))


def crop_clip(
    clip: Clip, stratum: Stratum, config: SamplingConfig, rng: np.random.Generator
) -> Clip:
    """Cut a window of k consecutive cycles out of a clip, k drawn from the stratum.

    The window starts and ends inside the gaps around those cycles, at most `crop_lead_s` away from
    them, so that it holds k cycles and no part of another; for k = 0 (with `zero_crops`, or of a
    clip that has no cycles) it lies inside one gap.

    Raises:
        ValueError: if no window of the clip can serve the stratum.
    """
    choices = [(k, w) for k in _targets(clip, stratum, config) for w in _windows(clip, k, config)]
    if not choices:
        raise ValueError(f"clip {clip.id!r} has no window with a count in {stratum.name!r}")
    targets = sorted({k for k, _ in choices})
    target = targets[int(rng.integers(len(targets)))]
    windows = [window for k, window in choices if k == target]
    window = windows[int(rng.integers(len(windows)))]
    start, end = _draw_bounds(window, config.crop_min_s, rng)
    cycles = tuple(
        (max(0.0, round(a - start, 3)), min(end - start, round(b - start, 3)))
        for a, b in (clip.cycles or ())
        if a >= start - _MARK_SLACK_S and b <= end + _MARK_SLACK_S
    )
    assert len(cycles) == target, f"{clip.id}: {len(cycles)} cycles in a crop for {target}"
    return replace(
        clip,
        id=f"{clip.id}@{start:.3f}-{end:.3f}",
        start_s=clip.start_s + start,
        end_s=clip.start_s + end,
        count=target,
        cycles=cycles,
        flags=(*clip.flags, "cropped"),
    )


@dataclass(frozen=True)
class _Window:
    """Where a crop may start and end, seconds from the start of the clip."""

    first_start: float
    last_start: float
    first_end: float
    last_end: float


def _targets(clip: Clip, stratum: Stratum, config: SamplingConfig) -> range:
    """Counts of the stratum that a proper crop of this clip could have.

    Annotators leave repetitions unmarked, so that a gap between marks need not be still: it is no
    crop of count 0 unless `zero_crops` says so. A clip whose own count is 0 was looked at whole.
    """
    if clip.cycles is None or len(clip.cycles) != clip.count or not _is_ordered(clip):
        return range(0)
    top = clip.count - 1 if clip.count else 0
    for bound in (stratum.high, config.crop_max_count):
        top = top if bound is None else min(top, bound)
    least = 1 if clip.count and not config.zero_crops else 0
    return range(max(stratum.low, least), top + 1)


def _windows(clip: Clip, target: int, config: SamplingConfig) -> list[_Window]:
    """Every window around `target` consecutive cycles that can be `crop_min_s` long."""
    cycles: tuple[Cycle, ...] = clip.cycles or ()
    edges = [(0.0, 0.0), *cycles, (clip.duration_s, clip.duration_s)]
    windows = []
    for i in range(len(edges) - 1 - target):
        gap_start, gap_end = edges[i][1], edges[i + target + 1][0]
        if target == 0:
            window = _Window(gap_start, gap_end, gap_start, gap_end)
        else:
            first, last = edges[i + 1][0], edges[i + target][1]
            window = _Window(
                max(gap_start, first - config.crop_lead_s),
                first,
                last,
                min(gap_end, last + config.crop_lead_s),
            )
        if window.last_end - window.first_start >= config.crop_min_s:
            windows.append(window)
    return windows


def _draw_bounds(window: _Window, min_s: float, rng: np.random.Generator) -> tuple[float, float]:
    """A start and an end, uniform over what is left once the crop is long enough.

    Rounded to milliseconds towards the cycles' outside, but never out of the window.
    """
    start = float(rng.uniform(window.first_start, min(window.last_start, window.last_end - min_s)))
    start = max(window.first_start, math.floor(start * 1000) / 1000)
    end = float(rng.uniform(max(window.first_end, start + min_s), window.last_end))
    return start, min(window.last_end, math.ceil(end * 1000) / 1000)


def _is_ordered(clip: Clip) -> bool:
    """Whether the cycles follow one another inside of the clip."""
    cycles = clip.cycles or ()
    is_inside = all(-_MARK_SLACK_S <= a < b <= clip.duration_s + _MARK_SLACK_S for a, b in cycles)
    return is_inside and all(b <= c + _MARK_SLACK_S for (_, b), (c, _) in pairwise(cycles))

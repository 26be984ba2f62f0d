"""What moves when: cycles of varying speed, pauses, lead-in and lead-out, without any pixels.

A timeline of three cycles with one pause (position 0 is the rest pose, 1 the furthest point)::

    1 |        /\\      /\\                 /\\
      |       /  \\    /  \\               /  \\
    0 |______/    \\__/    \\_____________/    \\_______
        lead-in  cycle  cycle   pause    cycle  lead-out
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.levels import Level, count_weights
from data_prep.synthetic.motions import ALL_MOTIONS, MOTIONS
from rewards.grammar.layout import Cycle

LEAD_S = 0.3  # shortest lead-in and lead-out
_DURATION_STEP_S = 0.5
_PAUSE_S = (0.4, 1.5)


@dataclass(frozen=True)
class Track:
    """Places of the moving part in every video frame; all arrays have shape [T].

    Attributes:
        times_s: Time of each frame, seconds from the start of the clip.
        position: 0 at the rest pose, 1 at the furthest point; for `arm_rotation` the angle as a
            fraction of a turn.
        is_moving: False in lead-in, pauses and lead-out.
    """

    times_s: NDArray[np.float64]
    position: NDArray[np.float64]
    is_moving: NDArray[np.bool_]


@dataclass(frozen=True)
class Timeline:
    """What moves when, without any pixels.

    Attributes:
        action: A key of `ALL_MOTIONS`.
        duration_s: Length of the clip.
        cycles: (start, end) in seconds, rounded to milliseconds; neighbours share their boundary
            unless a pause lies between.
        one_way: For a clip without cycles that moves all the same: (start, end, position reached);
            the part stays there.
    """

    action: str
    duration_s: float
    cycles: tuple[Cycle, ...]
    one_way: tuple[float, float, float] | None = None

    def track_at(self, times_s: NDArray[np.float64]) -> Track:
        """The exact track at any times [T], seconds."""
        position = np.zeros(len(times_s))
        is_moving = np.zeros(len(times_s), dtype=bool)
        if self.cycles:
            starts, ends = np.array(self.cycles).T
            cycle = np.maximum(np.searchsorted(starts, times_s, side="right") - 1, 0)
            phase = (times_s - starts[cycle]) / (ends[cycle] - starts[cycle])
            is_moving = (phase >= 0) & (phase < 1)
            position[is_moving] = ALL_MOTIONS[self.action].profile(phase[is_moving])
        elif self.one_way:
            start, end, reached = self.one_way
            phase = np.clip((times_s - start) / (end - start), 0.0, 1.0)
            position = reached * (0.5 - 0.5 * np.cos(np.pi * phase))
            is_moving = (phase > 0) & (phase < 1)
        return Track(times_s, position, is_moving)


def draw_timeline(rng: np.random.Generator, level: Level, fps: int) -> Timeline:
    """Draw action, cycles, pauses and duration of a clip of a level, in this order."""
    action = str(rng.choice(list(MOTIONS)))
    weights = count_weights(level)
    count = int(rng.choice(len(weights), p=weights))
    if count:
        return draw_repetitions(rng, level, fps, action, count)
    duration = float(rng.choice(_durations(level, fps)))
    return Timeline(action, duration, (), _draw_nothing(rng, duration))


def draw_repetitions(
    rng: np.random.Generator, level: Level, fps: int, action: str, count: int
) -> Timeline:
    """Draw a clip of a count of at least 1."""
    durations = _durations(level, fps)
    room = level.duration_s[1] - 2 * LEAD_S
    periods = _draw_periods(rng, level, count, room)
    gaps = _draw_pauses(rng, level, count, room - periods.sum())
    active = periods.sum() + gaps.sum()
    duration = float(rng.choice(durations[durations >= active + 2 * LEAD_S - 1e-9]))
    lead_in = LEAD_S + rng.uniform(0.0, max(0.0, duration - active - 2 * LEAD_S))
    starts = lead_in + np.concatenate([[0.0], np.cumsum(periods[:-1] + gaps)])
    ends = starts + periods
    ends[:-1] = np.where(gaps == 0.0, starts[1:], ends[:-1])  # shared to the last bit
    cycles = tuple(zip(np.round(starts, 3).tolist(), np.round(ends, 3).tolist(), strict=True))
    return Timeline(action, duration, cycles)


def _durations(level: Level, fps: int) -> NDArray[np.float64]:
    """Those with a whole number of frames: 15 fps rules out the half seconds."""
    steps = np.arange(level.duration_s[0], level.duration_s[1] + 1e-6, _DURATION_STEP_S)
    return np.asarray(steps[np.isclose(steps * fps % 1.0, 0.0)])


def _draw_nothing(rng: np.random.Generator, duration: float) -> tuple[float, float, float] | None:
    """Half of the clips without a repetition stand still, half move once and never return."""
    return None if rng.random() < 0.5 else draw_one_way(rng, duration)


def draw_one_way(rng: np.random.Generator, duration: float) -> tuple[float, float, float]:
    """Draw a motion that never returns: `Timeline.one_way`."""
    start = rng.uniform(LEAD_S, 0.4 * duration)
    end = start + rng.uniform(1.5, 0.5 * duration)
    return round(start, 3), round(end, 3), float(rng.uniform(0.6, 0.95))


def _draw_periods(
    rng: np.random.Generator, level: Level, count: int, room: float
) -> NDArray[np.float64]:
    """Lengths of the cycles [count], seconds: a base pace, a slow drift, a little unevenness."""
    shortest, longest = level.period_s
    base = math.exp(rng.uniform(math.log(shortest), math.log(min(longest, room / count))))
    drift = np.cumsum(rng.normal(size=count))
    drift -= (drift.max() + drift.min()) / 2
    drift /= max(float(np.abs(drift).max()), 1e-9)
    drift *= rng.uniform(0.0, 0.9) * math.log(level.tempo_factor)
    unevenness = rng.uniform(-0.1, 0.1, size=count) * math.log(level.tempo_factor)
    periods = np.clip(base * np.exp(drift + unevenness), shortest, longest)
    if periods.sum() > room:  # squeeze towards the shortest period, which always fits
        floor = count * shortest
        periods = shortest + (periods - shortest) * (room - floor) / (periods.sum() - floor)
    return periods


def _draw_pauses(
    rng: np.random.Generator, level: Level, count: int, room: float
) -> NDArray[np.float64]:
    """Length of the pause after each cycle but the last [count - 1], seconds, mostly 0."""
    gaps = np.zeros(count - 1)
    for i in range(count - 1):
        if rng.random() < level.pause_probability:
            pause = rng.uniform(*_PAUSE_S)
            if pause <= room:
                gaps[i] = pause
                room -= pause
    return gaps

"""What each level draws from, and how often each count occurs.

Long clips are as easy to see as easy ones, and last as long as medium ones. Real-like clips have
what real footage has: rooms, cuts, moving cameras, changing light (`real_like`, `footage`).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

_ZERO_PROBABILITY = 0.05
_COUNT_MODE = 3


@dataclass(frozen=True)
class Level:
    """What a level draws from. Ranges are (lowest, highest), lengths are in pixels or seconds."""

    frame_rates: tuple[int, ...]
    sizes: tuple[int, ...]
    duration_s: tuple[float, float]
    period_s: tuple[float, float]
    max_count: int
    count_spread: float  # sigma of the log-normal that shapes the counts
    tempo_factor: float  # a cycle's pace stays within base / factor ... base * factor
    pause_probability: float
    noise: tuple[int, int]  # peak of the uniform pixel noise, grey values
    lighting: float  # peak relative change of brightness
    jitter: float  # standard deviation of the camera's shift, fraction of the frame
    num_distractors: tuple[int, int]
    num_bars: tuple[int, int]  # bars in front of the figure
    is_real_like: bool = False  # kinds of `real_like` in rooms of `footage`


LEVELS = {
    "easy": Level(
        frame_rates=(12, 15),
        sizes=(64,),
        duration_s=(6.0, 12.0),
        period_s=(0.8, 2.4),
        max_count=12,
        count_spread=0.85,
        tempo_factor=1.25,
        pause_probability=0.05,
        noise=(2, 4),
        lighting=0.0,
        jitter=0.0,
        num_distractors=(0, 0),
        num_bars=(0, 0),
    ),
    "medium": Level(
        frame_rates=(12, 15),
        sizes=(64, 80),
        duration_s=(6.0, 16.0),
        period_s=(0.8, 2.6),
        max_count=16,
        count_spread=0.9,
        tempo_factor=1.5,
        pause_probability=0.10,
        noise=(6, 12),
        lighting=0.2,
        jitter=0.008,
        num_distractors=(1, 3),
        num_bars=(0, 0),
    ),
    "hard": Level(
        frame_rates=(24, 30),
        sizes=(64, 80, 96),
        duration_s=(6.0, 20.0),
        period_s=(0.7, 2.8),
        max_count=24,
        count_spread=1.0,
        tempo_factor=2.0,
        pause_probability=0.18,
        noise=(12, 22),
        lighting=0.35,
        jitter=0.018,
        num_distractors=(2, 5),
        num_bars=(1, 2),
    ),
}
LEVELS["long"] = replace(LEVELS["easy"], duration_s=LEVELS["medium"].duration_s, max_count=16)
LEVELS["real-like"] = Level(
    frame_rates=(24, 25, 30),
    sizes=(128, 160),
    duration_s=(6.0, 18.0),
    period_s=(0.8, 3.0),
    max_count=14,
    count_spread=0.9,
    tempo_factor=1.5,
    pause_probability=0.10,
    noise=(2, 8),
    lighting=0.05,
    jitter=0.0,
    num_distractors=(0, 0),
    num_bars=(0, 0),
    is_real_like=True,
)


def count_weights(level: Level) -> NDArray[np.float64]:
    """Probability of each count 0 .. max_count, [max_count + 1].

    A log-normal with its mode at 3 cut at the level's largest count: the long tail of RepCount-A's
    training split (bins 1-5 / 6-10 / 11-20 / 21-40 / 41+ hold 238 / 175 / 154 / 150 / 40 videos),
    scaled to what short clips can hold.
    """
    counts = np.arange(1, level.max_count + 1)
    centre = math.log(_COUNT_MODE) + level.count_spread**2
    shape = np.exp(-((np.log(counts) - centre) ** 2) / (2 * level.count_spread**2)) / counts
    return np.concatenate([[_ZERO_PROBABILITY], (1 - _ZERO_PROBABILITY) * shape / shape.sum()])

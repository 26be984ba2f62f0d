"""What surrounds the figure: distractors and bars, changing light, a camera that is not still."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.drawing import Colour, Look, Pen, Point, brightness, draw_colour
from data_prep.synthetic.levels import Level


@dataclass(frozen=True)
class _Shape:
    """A disc or bar that stands still or drifts in one direction."""

    start: Point
    end: Point  # where it is at the end of the clip
    radius: float
    colour: Colour
    is_disc: bool


@dataclass(frozen=True)
class Scenery:
    """What is drawn around the figure: distractors behind it, bars in front of it."""

    distractors: tuple[_Shape, ...]
    bars: tuple[tuple[float, float, bool, Colour], ...]  # (centre, width, upright, colour)
    duration_s: float

    def draw_behind(self, pen: Pen, time_s: float) -> None:
        """Draw the distractors where they are at a time."""
        progress = time_s / self.duration_s
        for shape in self.distractors:
            x = shape.start[0] + progress * (shape.end[0] - shape.start[0])
            y = shape.start[1] + progress * (shape.end[1] - shape.start[1])
            if shape.is_disc:
                pen.disc((x, y), shape.radius, shape.colour)
            else:
                half = 1.5 * shape.radius
                pen.line((x - half, y), (x + half, y), 1.2 * shape.radius, shape.colour)

    def draw_in_front(self, pen: Pen, time_s: float) -> None:
        """Draw the bars, which stand still."""
        for centre, width, is_upright, colour in self.bars:
            if is_upright:
                pen.line((centre, -0.2), (centre, 1.2), width, colour)
            else:
                pen.line((-0.2, centre), (1.2, centre), width, colour)


def draw_scenery(rng: np.random.Generator, level: Level, look: Look, duration_s: float) -> Scenery:
    """Distractors and bars that the level asks for, near the background in brightness."""
    base = brightness(look.background)
    towards = 1.0 if base < 128 else -1.0
    distractors = []
    for _ in range(rng.integers(level.num_distractors[0], level.num_distractors[1] + 1)):
        start = rng.uniform(0.05, 0.95, size=2)
        drift = rng.uniform(-0.5, 0.5, size=2) * (rng.random() < 0.5)
        grey = base + towards * rng.uniform(25, 70)
        distractors.append(
            _Shape(
                start=(float(start[0]), float(start[1])),
                end=(float(start[0] + drift[0]), float(start[1] + drift[1])),
                radius=float(rng.uniform(0.05, 0.11)),
                colour=draw_colour(rng, grey, grey + 1.0, 0.6),
                is_disc=bool(rng.random() < 0.5),
            )
        )
    bars = []
    for _ in range(rng.integers(level.num_bars[0], level.num_bars[1] + 1)):
        grey = base + towards * rng.uniform(40, 90)
        colour = draw_colour(rng, grey, grey + 1.0, 0.4)
        centre, width = rng.uniform(0.15, 0.85), rng.uniform(0.07, 0.13)
        bars.append((float(centre), float(width), bool(rng.random() < 0.5), colour))
    return Scenery(tuple(distractors), tuple(bars), duration_s)


def draw_gains(
    rng: np.random.Generator, lighting: float, times_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Brightness factor of each frame [T]: two slow waves that are no multiple of one another.

    Args:
        rng: Drawn from.
        lighting: Peak relative change.
        times_s: Times of the frames. [T]
    """
    gains = np.ones(len(times_s))
    for weight in (0.6, 0.4):
        period, phase = rng.uniform(3.0, 9.0), rng.uniform(0.0, 2.0 * np.pi)
        gains += lighting * weight * np.sin(2.0 * np.pi * times_s / period + phase)
    return gains


def draw_shifts(
    rng: np.random.Generator, jitter: float, num_frames: int, fps: int
) -> NDArray[np.float64]:
    """Shift of the camera in each frame [T, 2], fractions of the frame: a pulled-back walk.

    Args:
        rng: Drawn from.
        jitter: Standard deviation of a shift.
        num_frames: T.
        fps: Frames per second.
    """
    keep = math.exp(-1.0 / (0.35 * fps))  # forgets a shift after about a third of a second
    steps = rng.normal(size=(num_frames, 2)) * jitter * math.sqrt(1.0 - keep**2)
    for i in range(1, num_frames):
        steps[i] += keep * steps[i - 1]
    return steps

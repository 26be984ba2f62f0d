"""Pictures of poses in two styles, so that what is learned of one can be asked about the other.

`line` draws thin even strokes on a plain ground. `block` draws thick limbs, arms and legs in shades
of their own, on a ground with other shapes and grain. Where the joints are is the same in both.
"""

import math

import cv2
import numpy as np

from data_prep.activities.poses import POSES, Limb
from data_prep.synthetic.drawing import Colour, Image, Look, Pen, Point, draw_colour, draw_look

_Line = tuple[Point, Point]

STYLES = ("line", "block")

_TRUNK, _ARM, _THIGH, _SHIN, _NECK, _HEAD = 0.25, 0.125, 0.18, 0.18, 0.1, 0.065
_JITTER = 7.0  # degrees by which each joint may be off
_PEAK = 18  # of the grain, grey values


def draw_pose(name: str, style: str, size: int, rng: np.random.Generator) -> Image:
    """One picture of a class, uint8 [size, size, 3]; size, place, joints and colours vary.

    Args:
        name: Of the class.
        style: Of `STYLES`.
        size: Height and width, pixels.
        rng: Decides what varies.
    """
    look = draw_look(rng)
    image = np.empty((size, size, 3), np.uint8)
    image[:] = look.background
    pen = Pen(image, look.mirror)
    scale = float(rng.uniform(0.86, 1.0))
    shift = rng.uniform(-0.05, 0.05, size=2)
    trunk, head, limbs = _joints_of(name, scale, (float(shift[0]), float(shift[1])), rng)
    if style == "block":
        _draw_shapes(pen, look, rng)
    width = 0.042 if style == "line" else 0.09
    for i, (start, end) in enumerate(limbs):
        pen.line(start, end, width * scale, _shade(look.colour, i, style))
    pen.line(*trunk, (width if style == "line" else 1.5 * width) * scale, look.colour)
    colour = look.colour if style == "line" else look.accent
    pen.disc(head, _HEAD * (1.0 if style == "line" else 1.25) * scale, colour)
    if style == "block":
        grain = rng.integers(-_PEAK, _PEAK + 1, size=(size, size), dtype=np.int8)
        cv2.add(image, cv2.merge((grain, grain, grain)), dst=image, dtype=cv2.CV_8U)
    return image


def _joints_of(
    name: str, scale: float, shift: Point, rng: np.random.Generator
) -> tuple[_Line, Point, list[_Line]]:
    """The trunk, the head and the limbs, fractions of the picture."""
    pose = POSES[name]

    def reach(start: Point, direction: float, length: float) -> Point:
        angle = math.radians(direction + float(rng.uniform(-_JITTER, _JITTER)))
        return (
            start[0] + scale * length * math.sin(angle),
            start[1] - scale * length * math.cos(angle),
        )

    def limb(
        start: Point, directions: Limb, upper: float, lower: float
    ) -> list[tuple[Point, Point]]:
        middle = reach(start, directions[0], upper)
        return [(start, middle), (middle, reach(middle, directions[1], lower))]

    hips = (pose.hips[0] + shift[0], pose.hips[1] + shift[1])
    shoulders = reach(hips, pose.trunk, _TRUNK)
    head = reach(shoulders, pose.trunk, _NECK)
    limbs = [
        *(half for arm in pose.arms for half in limb(shoulders, arm, _ARM, _ARM)),
        *(half for leg in pose.legs for half in limb(hips, leg, _THIGH, _SHIN)),
    ]
    return (hips, shoulders), head, limbs


def _shade(colour: Colour, limb: int, style: str) -> Colour:
    """The colour of a limb: of `block`, arms and legs differ a little."""
    if style == "line":
        return colour
    factor = 0.8 if limb < 4 else 1.1
    red, green, blue = (min(250, round(factor * value)) for value in colour)
    return red, green, blue


def _draw_shapes(pen: Pen, look: Look, rng: np.random.Generator) -> None:
    """Discs and bars behind the figure, near the ground in brightness."""
    grey = 0.299 * look.background[0] + 0.587 * look.background[1] + 0.114 * look.background[2]
    towards = 1.0 if grey < 128 else -1.0
    for _ in range(int(rng.integers(2, 5))):
        bright = grey + towards * rng.uniform(15, 45)
        colour = draw_colour(rng, bright, bright + 1.0, 0.6)
        x, y = (float(value) for value in rng.uniform(0.05, 0.95, size=2))
        if rng.random() < 0.5:
            pen.disc((x, y), float(rng.uniform(0.05, 0.12)), colour)
        else:
            pen.line((x - 0.12, y), (x + 0.12, y), 0.08, colour)

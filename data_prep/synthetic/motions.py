"""The motions: the course of a repetition over a cycle, and the figure at each position."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.drawing import Colour, Look, Pen, Point


@dataclass(frozen=True)
class Motion:
    """One kind of repetition: its course over a cycle and its picture.

    Attributes:
        profile: Position [N] for phases [N] in [0, 1).
        draw: Draws the figure at a position.
    """

    profile: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    draw: Callable[[Pen, Look, float], None]


def _raised_cosine(phase: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * phase)


def _free_fall(phase: NDArray[np.float64]) -> NDArray[np.float64]:
    return 4.0 * phase * (1.0 - phase)


def _constant_speed(phase: NDArray[np.float64]) -> NDArray[np.float64]:
    return phase


def _draw_ball(pen: Pen, look: Look, position: float) -> None:
    floor, radius = 0.95, 0.125 * look.scale
    x = 0.5 + 4.0 * look.shift[0]
    travel = 0.48 + 0.1 * look.amplitude
    pen.line((0.0, floor + 0.02), (1.0, floor + 0.02), 0.04, look.dim)
    pen.disc((x, floor - radius - travel * position), radius, look.colour)


def _draw_pendulum(pen: Pen, look: Look, position: float) -> None:
    pivot = (0.5 + 0.5 * look.shift[0], 0.1)
    length = 0.64 * look.scale
    angle = math.radians(30.0 + 5.0 * look.amplitude) * (2.0 * position - 1.0)
    bob = (pivot[0] + length * math.sin(angle), pivot[1] + length * math.cos(angle))
    pen.line((pivot[0] - 0.15, 0.08), (pivot[0] + 0.15, 0.08), 0.05, look.dim)
    pen.line(pivot, bob, 0.8 * look.limb, look.colour)
    pen.disc(bob, 0.12, look.accent)


def _draw_squat(pen: Pen, look: Look, position: float) -> None:
    scale, x, floor = look.scale, 0.5 + 2.0 * look.shift[0], 0.96
    leg = 0.46 * scale
    hips = floor - leg + (0.40 + 0.02 * look.amplitude) * position
    shoulders = hips - 0.26 * scale
    half = (floor - hips) / 2.0
    knee = math.sqrt(max(0.0, (leg / 2.0) ** 2 - half**2))
    for side in (-1.0, 1.0):
        joint = (x + side * (0.07 + knee), hips + half)
        pen.line((x + side * 0.05, hips), joint, look.limb, look.colour)
        pen.line(joint, (x + side * 0.10, floor), look.limb, look.colour)
        hand = (x + side * 0.22, shoulders + 0.2 * (1.0 - position))
        pen.line((x, shoulders), hand, look.limb, look.colour)
    pen.line((x, hips), (x, shoulders), 1.2 * look.limb, look.colour)
    pen.disc((x, shoulders - 0.10 * scale), 0.09 * scale, look.accent)


def _draw_standing(pen: Pen, look: Look, colour: Colour, shoulders: Point, hips: float) -> None:
    """Trunk, legs and head of a figure that stays where it is."""
    x = shoulders[0]
    pen.line(shoulders, (x, hips), 1.2 * look.limb, colour)
    for side in (-1.0, 1.0):
        pen.line((x, hips), (x + side * 0.13, 0.96), look.limb, colour)
    pen.disc((x, shoulders[1] - 0.14), 0.085, colour)


def _draw_arm_raise(pen: Pen, look: Look, position: float) -> None:
    shoulders = (0.5 + 2.0 * look.shift[0], 0.42 + 0.5 * look.shift[1])
    _draw_standing(pen, look, look.dim, shoulders, 0.66)
    length = 0.33 * look.scale
    angle = math.radians(15.0 + (130.0 + 20.0 * look.amplitude) * position)
    for side in (-1.0, 1.0):
        start = (shoulders[0] + side * 0.03, shoulders[1])
        hand = (start[0] + side * length * math.sin(angle), start[1] + length * math.cos(angle))
        pen.line(start, hand, look.limb, look.colour)
        pen.disc(hand, 0.07, look.accent)


def _draw_arm_rotation(pen: Pen, look: Look, position: float) -> None:
    shoulder = (0.5 + 0.4 * look.shift[0], 0.5 + 0.4 * look.shift[1])
    _draw_standing(pen, look, look.dim, shoulder, 0.74)
    length = (0.34 + 0.03 * look.amplitude) * look.scale
    angle = 2.0 * math.pi * position
    hand = (shoulder[0] + length * math.sin(angle), shoulder[1] + length * math.cos(angle))
    pen.line(shoulder, hand, look.limb, look.colour)
    pen.disc(hand, 0.09, look.accent)


MOTIONS = {
    "ball_bounce": Motion(_free_fall, _draw_ball),
    "pendulum_swing": Motion(_raised_cosine, _draw_pendulum),
    "squat": Motion(_raised_cosine, _draw_squat),
    "arm_raise": Motion(_raised_cosine, _draw_arm_raise),
    "arm_rotation": Motion(_constant_speed, _draw_arm_rotation),
}


def _draw_jumping_jack(pen: Pen, look: Look, position: float) -> None:
    """Arms and legs open and close, left as right."""
    x, hips = 0.5 + 2.0 * look.shift[0], 0.62
    shoulders, lift = hips - 0.24 * look.scale, 0.03 * math.sin(math.pi * position)
    arm = math.radians(12.0 + (140.0 + 15.0 * look.amplitude) * position)
    leg = math.radians(4.0 + 26.0 * position)
    for side in (-1.0, 1.0):
        top, bottom = (x + 0.04 * side, shoulders - lift), (x + 0.03 * side, hips - lift)
        hand = (top[0] + 0.28 * side * math.sin(arm), top[1] + 0.28 * math.cos(arm))
        foot = (bottom[0] + 0.33 * side * math.sin(leg), bottom[1] + 0.33 * math.cos(leg))
        pen.line(top, hand, look.limb, look.colour)
        pen.line(bottom, foot, look.limb, look.colour)
    pen.line((x, hips - lift), (x, shoulders - lift), 1.3 * look.limb, look.colour)
    pen.disc((x, shoulders - lift - 0.11), 0.085, look.accent)


def _draw_bar_turn(pen: Pen, look: Look, position: float) -> None:
    """A bar with one marked end goes around its middle: half a turn gives nearly the same."""
    x, y, half = 0.5 + 0.5 * look.shift[0], 0.5 + 0.5 * look.shift[1], 0.36 * look.scale
    angle = 2.0 * math.pi * position
    dx, dy = half * math.cos(angle), half * math.sin(angle)
    pen.line((x - dx, y - dy), (x + dx, y + dy), look.limb, look.colour)
    pen.disc((x + 0.8 * dx, y + 0.8 * dy), 0.7 * look.limb, look.dim)


def _draw_hand_wave(pen: Pen, look: Look, position: float) -> None:
    """A standing figure of which one forearm moves."""
    shoulders = (0.5 + 2.0 * look.shift[0], 0.42 + 0.5 * look.shift[1])
    _draw_standing(pen, look, look.colour, shoulders, 0.66)
    elbow = (shoulders[0] + 0.13, shoulders[1] + 0.06)
    pen.line(shoulders, elbow, look.limb, look.colour)
    angle = math.radians(-20.0 + (65.0 + 15.0 * look.amplitude) * position)
    hand = (elbow[0] + 0.17 * math.sin(angle), elbow[1] - 0.17 * math.cos(angle))
    pen.line(elbow, hand, 0.7 * look.limb, look.colour)
    pen.disc(hand, 0.05, look.accent)


# Drawn for clips of `real_like` alone: the other levels draw from `MOTIONS`.
FIGURE_MOTIONS = {
    "jumping_jack": Motion(_raised_cosine, _draw_jumping_jack),
    "bar_turn": Motion(_constant_speed, _draw_bar_turn),
    "hand_wave": Motion(_raised_cosine, _draw_hand_wave),
}
ALL_MOTIONS = MOTIONS | FIGURE_MOTIONS

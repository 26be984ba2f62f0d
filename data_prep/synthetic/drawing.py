"""The pen that draws in fractions of the frame, and the colours and proportions of a clip."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # [H, W, 3] RGB
Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """How one clip looks. Lengths are fractions of the frame, colours are RGB."""

    background: Colour
    colour: Colour  # the moving part
    dim: Colour  # the parts that stand still
    accent: Colour  # the hand or bob
    mirror: bool
    scale: float
    shift: Point
    amplitude: float  # 0 .. 1 within what the motion allows
    limb: float


class Pen:
    """Draws in fractions of the frame, anti-aliased, with 1/16 pixel precision.

    Args:
        image: What is drawn on, in place. [H, W, 3]
        mirror: Whether left and right are exchanged.
        box: Left, top and side, in pixels, of the square whose fractions are meant; None: the
            whole of a square image.
    """

    def __init__(
        self, image: Image, mirror: bool, *, box: tuple[float, float, float] | None = None
    ) -> None:
        self.image = image
        self.left, self.top, self.size = box or (0.0, 0.0, float(image.shape[0]))
        self.mirror = mirror

    def _at(self, point: Point) -> tuple[int, int]:
        x = 1.0 - point[0] if self.mirror else point[0]
        left, top = self.left + x * self.size, self.top + point[1] * self.size
        return round(left * 16), round(top * 16)

    def line(self, a: Point, b: Point, width: float, colour: Colour) -> None:
        """Draw a line from `a` to `b` with round ends."""
        thickness = max(1, round(width * self.size))
        cv2.line(self.image, self._at(a), self._at(b), colour, thickness, cv2.LINE_AA, 4)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        """Draw a filled circle."""
        radius16 = round(radius * self.size * 16)
        cv2.circle(self.image, self._at(centre), radius16, colour, -1, cv2.LINE_AA, 4)


def draw_look(rng: np.random.Generator) -> Look:
    """Colours with a strong contrast (dark on bright or bright on dark), position and size."""
    is_dark = rng.random() < 0.6
    background = draw_colour(rng, *((15, 60) if is_dark else (185, 235)), 0.3)
    colour = draw_colour(rng, *((180, 230) if is_dark else (25, 70)), 0.5)
    accent = draw_colour(rng, *((170, 230) if is_dark else (25, 90)), 0.8)
    dim = tuple(round(0.6 * b + 0.4 * c) for b, c in zip(background, colour, strict=True))
    return Look(
        background=background,
        colour=colour,
        dim=(dim[0], dim[1], dim[2]),
        accent=accent,
        mirror=bool(rng.random() < 0.5),
        scale=float(rng.uniform(0.95, 1.04)),
        shift=(float(rng.uniform(-0.05, 0.05)), float(rng.uniform(-0.05, 0.05))),
        amplitude=float(rng.uniform(0.0, 1.0)),
        limb=float(rng.uniform(0.085, 0.11)),
    )


def draw_colour(rng: np.random.Generator, low: float, high: float, saturation: float) -> Colour:
    """A random hue whose brightness lies in [low, high]."""
    hue = rng.dirichlet((1.0, 1.0, 1.0)) * 3.0
    target = rng.uniform(low, high)
    mixed = target * ((1.0 - saturation) + saturation * hue)
    r, g, b = (round(float(v)) for v in np.clip(mixed, 5, 250))
    shift = round(target - brightness((r, g, b)))
    r, g, b = (min(250, max(5, v + shift)) for v in (r, g, b))
    return r, g, b


def brightness(colour: Colour) -> float:
    """Grey value of a colour, 0 to 255 (ITU-R BT.601)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]

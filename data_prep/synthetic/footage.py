"""The frames of a real-like clip: rooms with furniture, a camera that moves, light that changes.

The figure of `motions` is drawn into a room that is larger than the picture; a camera (shift, turn,
zoom) looks at it. Each shot has its own room, look and size of the figure.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.clip import ClipSpec
from data_prep.synthetic.drawing import Image, Look, Pen, brightness, draw_colour, draw_look
from data_prep.synthetic.motions import ALL_MOTIONS
from data_prep.synthetic.real_like import Scene
from data_prep.synthetic.scenery import draw_gains, draw_shifts
from data_prep.video_writer import Frames

Array = NDArray[np.float64]

_ROOM = 1.9  # sides of the picture
_FIGURE = (0.75, 0.95)  # side of the figure's box, of the picture's
_FIGURES = {
    "small": (0.45, 0.6),
    "travelling": (0.5, 0.65),
    "wandering": (0.45, 0.6),
    "pan": (0.6, 0.75),
}
_FURNITURE = (4, 9)
_SHAKE = 0.012  # of the picture: standard deviation of a hand-held camera
_SHAKE_TURN = 0.6  # degrees
_PAN = (0.25, 0.45)  # of the picture
_PAN_ZOOM = (0.95, 1.15)
_JERK = (0.25, 0.5)
_JERK_TURN = (5.0, 18.0)  # degrees
_REACH = 0.28  # of the picture, to both sides of its middle, of somebody who wanders
_TRAVEL = 0.42  # likewise, of somebody who goes from one side to the other
_STEP_S = (0.5, 1.8)  # between two moments at which somebody who wanders turns
_LAMP = (1.25, 1.5)  # times the light before
_DRIFT = 0.25
_FLASH_S = 0.15
_BLACK = 14.0  # grey value


@dataclass(frozen=True)
class _Camera:
    """Shift [T, 2] as shares of the picture, turn [T] in degrees, zoom [T]."""

    shifts: Array
    turns: Array
    zooms: Array


@dataclass(frozen=True)
class _Shot:
    """What does not change between two cuts: room [H, W, 3], look, side of the figure's box."""

    room: Image
    look: Look
    side: float


def draw_footage(rng: np.random.Generator, spec: ClipSpec) -> Frames:
    """All frames of a real-like clip without their noise, uint8 [T, H, W, 3]."""
    scene = spec.scene
    assert scene is not None, f"{spec.clip.id}: no scene"
    size, times = spec.clip.width, spec.track.times_s
    low, high = _FIGURES.get(scene.kind, _FIGURE)
    shots = [_draw_shot(rng, size, low, high) for _ in range(len(scene.cuts) + 1)]
    ways = _draw_ways(rng, scene.kind, times)
    camera = _draw_camera(rng, scene, spec)
    gains = _draw_light(rng, spec, scene.kind)
    frames = np.empty((len(times), size, size, 3), np.uint8)
    for t, time_s in enumerate(times.tolist()):
        weights = _weights(scene, time_s)
        picture = np.full((size, size, 3), _BLACK * (1.0 - sum(weights)))
        for shot, weight in zip(shots, weights, strict=True):
            if weight:
                position = float(spec.track.position[t])
                picture += weight * _look_at(shot, spec, position, ways[t], camera, t)
        frames[t] = np.clip(picture * gains[t], 0.0, 255.0)
    return frames


def _weights(scene: Scene, time_s: float) -> list[float]:
    """Share of each shot in the picture at a time; what lacks to 1 is black."""
    weights = [0.0] * (len(scene.cuts) + 1)
    for k, cut in enumerate(scene.cuts):
        if time_s < cut.start_s - 1e-6:
            weights[k] = 1.0
            return weights
        if time_s < cut.end_s - 1e-6:
            if cut.is_fade:
                later = (time_s - cut.start_s) / (cut.end_s - cut.start_s)
                weights[k], weights[k + 1] = 1.0 - later, later
            return weights
    weights[-1] = 1.0
    return weights


def _look_at(
    shot: _Shot, spec: ClipSpec, position: float, way: Array, camera: _Camera, t: int
) -> Frames:
    """One picture of a shot. [H, W, 3]"""
    size, world = spec.clip.width, shot.room.copy()
    middle, side = world.shape[0] / 2.0, shot.side * size
    corner = (middle + way[0] * size - side / 2.0, middle + way[1] * size - side / 2.0)
    pen = Pen(world, shot.look.mirror, box=(*corner, side))
    ALL_MOTIONS[spec.timeline.action].draw(pen, shot.look, position)
    matrix = cv2.getRotationMatrix2D(
        (middle, middle), float(camera.turns[t]), float(camera.zooms[t])
    )
    matrix[:, 2] += size / 2.0 - middle + camera.shifts[t] * size
    return np.asarray(
        cv2.warpAffine(world, matrix, (size, size), borderMode=cv2.BORDER_REFLECT), np.uint8
    )


def _draw_shot(rng: np.random.Generator, size: int, low: float, high: float) -> _Shot:
    look = draw_look(rng)
    return _Shot(_draw_room(rng, look, round(_ROOM * size)), look, float(rng.uniform(low, high)))


def _draw_room(rng: np.random.Generator, look: Look, size: int) -> Image:
    """A wall that is not lit evenly, a floor, furniture; all nearer to it than to the figure."""
    base = brightness(look.background)
    towards = 1.0 if base < 128 else -1.0
    room = np.empty((size, size, 3), np.uint8)
    room[:] = look.background
    pen = Pen(room, mirror=False)
    floor = rng.uniform(0.68, 0.8)
    grey = base + towards * rng.uniform(10, 35)
    pen.line((-0.2, floor + 0.5), (1.2, floor + 0.5), 1.0, draw_colour(rng, grey, grey + 1.0, 0.4))
    for _ in range(rng.integers(*_FURNITURE)):
        grey = base + towards * rng.uniform(15, 60)
        colour = draw_colour(rng, grey, grey + 1.0, 0.5)
        (x, y), (width, height) = rng.uniform(0.0, 1.0, 2), rng.uniform(0.05, 0.25, 2)
        a, b = (int(v * size) for v in (x, y))
        c, d = (int(v * size) for v in (x + width, y + height))
        cv2.rectangle(room, (a, b), (c, d), colour, -1)
    uneven = cv2.resize(rng.normal(0.0, 9.0, (6, 6)), (size, size), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0.0, 3.0, (size, size))
    return np.asarray(np.clip(room + (uneven + grain)[..., None], 0.0, 255.0), np.uint8)


def _draw_ways(rng: np.random.Generator, kind: str, times: Array) -> Array:
    """Where the figure is beside the middle of the room, shares of the picture. [T, 2]"""
    if kind == "travelling":
        forward = 1.0 if rng.random() < 0.5 else -1.0
        x = forward * _TRAVEL * np.linspace(-1.0, 1.0, len(times))
        return np.stack([x, np.zeros(len(times))], axis=1)
    if kind == "wandering":
        turns = np.cumsum(rng.uniform(*_STEP_S, size=2 + int(times[-1] / _STEP_S[0])))
        goals = rng.uniform(-_REACH, _REACH, (len(turns), 2))
        after = np.minimum(np.searchsorted(turns, times), len(turns) - 1)
        before = np.maximum(after - 1, 0)
        length = np.maximum(turns[after] - turns[before], 1e-9)
        share = np.clip((times - turns[before]) / length, 0.0, 1.0)
        smooth = (0.5 - 0.5 * np.cos(np.pi * share))[:, None]
        return np.asarray(goals[before] * (1.0 - smooth) + goals[after] * smooth)
    return np.zeros((len(times), 2))


def _draw_camera(rng: np.random.Generator, scene: Scene, spec: ClipSpec) -> _Camera:
    times = spec.track.times_s
    num = len(times)
    shifts, turns, zooms = np.zeros((num, 2)), np.zeros(num), np.ones(num)
    if scene.kind == "shake":
        shaken = draw_shifts(rng, _SHAKE, num, spec.fps)
        shifts, turns = shaken, draw_shifts(rng, _SHAKE_TURN, num, spec.fps)[:, 0]
    elif scene.kind == "pan":
        angle = rng.choice([0.0, np.pi]) + rng.uniform(-0.3, 0.3)
        course = np.linspace(-0.5, 0.5, num)[:, None] * rng.uniform(*_PAN)
        shifts = course * np.array([np.cos(angle), np.sin(angle)])
        zooms = np.linspace(1.0, rng.uniform(*_PAN_ZOOM), num)
    elif scene.jerk_s:
        start, end = scene.jerk_s
        course = np.clip((times - start) / (end - start), 0.0, 1.0)
        course = course if start > 0.0 else 1.0 - course
        course = course**2 * (3.0 - 2.0 * course)
        angle = rng.uniform(0.0, 2.0 * np.pi)
        goal = rng.uniform(*_JERK) * np.array([np.cos(angle), np.sin(angle)])
        trembling = draw_shifts(rng, _SHAKE, num, spec.fps) * (course[:, None] > 0.0)
        shifts = course[:, None] * goal + trembling
        turns = course * rng.choice([-1.0, 1.0]) * rng.uniform(*_JERK_TURN)
    return _Camera(shifts, turns, zooms)


def _draw_light(rng: np.random.Generator, spec: ClipSpec, kind: str) -> Array:
    """Brightness factor of each frame [T]: a lamp that is switched or flashes, for its kind."""
    times = spec.track.times_s
    if kind != "light":
        return draw_gains(rng, spec.level.lighting, times)
    gains = draw_gains(rng, _DRIFT, times)
    lamp = rng.uniform(*_LAMP)
    if rng.random() < 0.5:
        switched = rng.uniform(0.3, 0.7) * times[-1]
        lamp = lamp if rng.random() < 0.5 else 1.0 / lamp
        return np.where(times >= switched, gains * lamp, gains)
    for flash in rng.uniform(0.0, times[-1], 3):
        gains[(times >= flash) & (times < flash + _FLASH_S)] *= lamp
    return gains

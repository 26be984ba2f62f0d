"""The frames of a clip: background, scenery, figure, camera, light and noise, in this order."""

import cv2
import numpy as np

from data_prep.synthetic.clip import ClipSpec
from data_prep.synthetic.drawing import Pen, draw_look
from data_prep.synthetic.footage import draw_footage
from data_prep.synthetic.levels import Level
from data_prep.synthetic.motions import MOTIONS
from data_prep.synthetic.scenery import draw_gains, draw_scenery, draw_shifts
from data_prep.video_writer import Frames


def draw_clip(spec: ClipSpec) -> Frames:
    """All frames of a clip, uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(spec.look_seed)
    frames = draw_footage(rng, spec) if spec.scene else _draw_figure(rng, spec)
    _add_noise(rng, spec.level, frames)
    return frames


def _draw_figure(rng: np.random.Generator, spec: ClipSpec) -> Frames:
    size, num_frames = spec.clip.width, spec.clip.num_frames
    look = draw_look(rng)
    scenery = draw_scenery(rng, spec.level, look, spec.clip.duration_s)
    gains = draw_gains(rng, spec.level.lighting, spec.track.times_s)
    shifts = draw_shifts(rng, spec.level.jitter, num_frames, spec.fps) * size
    draw = MOTIONS[spec.timeline.action].draw
    frames = np.empty((num_frames, size, size, 3), dtype=np.uint8)
    frames[:] = look.background
    for i, time_s in enumerate(spec.track.times_s.tolist()):
        pen = Pen(frames[i], look.mirror)
        scenery.draw_behind(pen, time_s)
        draw(pen, look, float(spec.track.position[i]))
        scenery.draw_in_front(pen, time_s)
        if spec.level.jitter:
            move = np.array([[1.0, 0.0, shifts[i, 0]], [0.0, 1.0, shifts[i, 1]]])
            frames[i] = cv2.warpAffine(
                frames[i], move, (size, size), borderMode=cv2.BORDER_REPLICATE
            )
        if spec.level.lighting:
            frames[i] = cv2.convertScaleAbs(frames[i], alpha=float(gains[i]))
    return frames


def _add_noise(rng: np.random.Generator, level: Level, frames: Frames) -> None:
    """Add uniform brightness noise, anew for every pixel and frame, in place."""
    peak = int(rng.integers(level.noise[0], level.noise[1] + 1))
    for frame in frames:
        noise = rng.integers(-peak, peak + 1, size=frame.shape[:2], dtype=np.int8)
        cv2.add(frame, cv2.merge((noise, noise, noise)), dst=frame, dtype=cv2.CV_8U)

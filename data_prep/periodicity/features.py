"""Per-frame features: small registered frames, reduced to their principal components.

Owns everything between the video and a trajectory in a low-dimensional space: which frames are
read, compensation of brightness and of a shaking camera, and the estimate of the noise that is
left. No model and no label is involved.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, median_filter

from data_prep.periodicity.camera import follow_camera
from data_prep.schema import Clip
from data_prep.video import FramePlan, plan_frames
from data_prep.video.guard import luma_guarded

Array = NDArray[np.float32]

FPS = 15.0  # frames a second that are looked at: 7.5 repetitions a second at most
MAX_FRAMES = 1200  # of a shot: one over 80 s is looked at more coarsely instead
MOST_FRAMES = 9000  # of a file: likewise over 10 minutes
MAX_PIXELS = 64 * 64  # of one frame

_NUM_COMPONENTS = 12
_BLUR = 0.8  # spatial smoothing, pixels
_FAR = 0.9  # of the largest shift
_ROUNDS = 3  # of the registration
_MAX_SHIFT = 0.08  # of a frame's side, for the camera
_LEAST_MOTION = 1.0  # grey values over the whole frame; compression alone changes it by up to 0.7
_LEAST_CHANGE = (
    3.0  # of the pixel that changes most, standard deviation: light changes all a little
)
_LEAST_FOLLOWED = 2.5  # likewise: sampling between pixels changes a still room by up to 1.4
_OTHER = 25.0  # grey values: a pixel that shows something else than the background
_LIGHT_S = 1.0  # before and after: within it brightness changes by less than the jump
_LIGHT_JUMP = 1.5
_FOREGROUND = 12.0  # grey values by which what moves differs from the background
_HIDDEN_SHARE = 0.6  # of such pixels: something covers the picture


@dataclass(frozen=True)
class Features:
    """What a clip does over time.

    Attributes:
        values: A point for each frame; Euclidean distances between them are those of the
            frames (root mean square over pixels or signals). float32 [T, D]
        fps: Frames per second.
        noise: Standard deviation of one coordinate that noise alone gives.
        least_motion: Distance of frames below which nothing counts as moving.
        is_hidden: Frames in which something covers the picture; their points are filled in from
            the neighbours. [T]
        is_far: Whether the camera went further than could be undone.
    """

    values: Array
    fps: float
    noise: float
    least_motion: float
    is_hidden: NDArray[np.bool_]
    is_far: bool = False

    @property
    def duration_s(self) -> float:
        """Length of what was looked at, seconds."""
        return len(self.values) / self.fps


@dataclass(frozen=True)
class Still:
    """A shot as a camera that stands still and an even light would show it.

    Attributes:
        frames: Slightly blurred. [T, H, W]
        background: Their median over time. [H, W]
        is_hidden: Frames in which something covers the picture. [T]
        is_far: Whether the camera went further than could be undone.
    """

    frames: Array
    background: Array
    is_hidden: NDArray[np.bool_]
    is_far: bool

    @property
    def moving(self) -> Array:
        """What differs from the background. [T, H, W]"""
        return self.frames - self.background


def read_grey(clip: Clip) -> tuple[NDArray[np.uint8], float]:
    """Grey frames [T, H, W] of a clip and how many are shown a second. Of its labels none is used.

    Raises:
        VideoError: if the video cannot be read.
    """
    plan = grey_plan(clip)
    return luma_guarded(plan), plan.fps


def grey_plan(clip: Clip) -> FramePlan:
    """The frames that are looked at."""
    return plan_frames(
        clip,
        fps=min(FPS, clip.video_fps),
        min_frames=1,
        max_frames=MOST_FRAMES,
        min_pixels=1,
        max_pixels=MAX_PIXELS,
        factor=2,
    )


def grey_of(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey values [T, H, W] of RGB frames [T, H, W, 3]."""
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


def features_of_frames(frames: NDArray[np.uint8], fps: float, *, flow: bool = False) -> Features:
    """Features of frames [T, H, W, 3] (RGB) that are shown `fps` a second."""
    return features_of_grey(grey_of(frames).astype(np.float32), fps, flow=flow)


def features_of_grey(grey: Array, fps: float, *, flow: bool = False) -> Features:
    """Features of grey values 0 .. 255 [T, H, W], the camera standing nearly still."""
    return features_of_still(stabilise(grey, fps), fps, flow=flow)


def features_of_still(still: Still, fps: float, *, flow: bool = False) -> Features:
    """Features of frames whose brightness and shifts are undone."""
    flat = _flat(still.frames)
    if flow:
        flat = np.concatenate([flat, _flow(still.frames)], axis=1)
    least = _least_motion(flat, still.is_hidden, _LEAST_MOTION)
    found = features_of_signals(flat, fps, least_motion=least, is_hidden=still.is_hidden)
    return replace(found, is_far=still.is_far)


def features_of_followed(grey: Array, fps: float) -> Features:
    """Features of grey values [T, H, W] with the camera's motion taken out, however far it goes."""
    followed = follow_camera(_blur(grey))
    is_hidden = followed.is_lost | _jumps(followed.gains, fps)
    flat = _flat(followed.frames)
    least = _least_motion(flat, is_hidden, _LEAST_FOLLOWED)
    return features_of_signals(flat, fps, least_motion=least, is_hidden=is_hidden)


def features_of_subject(still: Still, fps: float, *, smooth_s: float) -> Features:
    """Features of what moves, as seen by someone who goes along with it.

    Args:
        still: The shot.
        fps: Its frames a second.
        smooth_s: Standard deviation by which the way that it goes is smoothed.
    """
    flat = _flat(_go_along(still.moving, smooth_s * fps))
    least = _least_motion(flat, still.is_hidden, _LEAST_MOTION)
    return features_of_signals(flat, fps, least_motion=least, is_hidden=still.is_hidden)


def _least_motion(flat: Array, is_hidden: NDArray[np.bool_], least: float) -> float:
    """The least motion, or infinity where no pixel of [T, P] changes as what moves does."""
    seen = flat if is_hidden.all() else flat[~is_hidden]
    return least if float(seen.std(axis=0).max()) >= _LEAST_CHANGE else float("inf")


def _flat(frames: Array) -> Array:
    """Pictures of half the size as rows. [T, P]"""
    return np.stack([_halve(frame).ravel() for frame in frames])


def _go_along(difference: Array, smooth: float) -> Array:
    """What differs from the background, moved so that its centre travels no more. [T, H, W]"""
    height, width = difference.shape[1:]
    weights = np.square(np.maximum(np.abs(difference) - _FOREGROUND, 0.0))
    mass = weights.sum(axis=(1, 2))
    sure = np.flatnonzero(mass > 0.1 * float(np.median(mass)) + 1e-6)
    if len(sure) < 2:
        return difference
    centres = np.stack(
        [
            (weights.sum(axis=1) @ np.arange(width))[sure] / mass[sure],
            (weights.sum(axis=2) @ np.arange(height))[sure] / mass[sure],
        ],
        axis=1,
    )
    times = np.arange(len(difference))
    path = np.stack([np.interp(times, sure, centres[:, k]) for k in (0, 1)], axis=1)
    path = _smooth_way(path, smooth)
    shifts = path - np.array([width / 2.0, height / 2.0])
    return np.stack([_move(f, s) for f, s in zip(difference, shifts, strict=True)])


def _smooth_way(path: Array, width: float) -> Array:
    """A way [T, 2] without what is faster than `width` frames, going on straight at both ends."""
    beyond = min(round(3.0 * width), len(path) - 1)
    longer = np.pad(path, ((beyond, beyond), (0, 0)), mode="reflect", reflect_type="odd")
    return np.asarray(gaussian_filter1d(longer, width, axis=0)[beyond : beyond + len(path)])


def features_of_signals(
    signals: NDArray[np.floating],
    fps: float,
    *,
    least_motion: float = 0.0,
    is_hidden: NDArray[np.bool_] | None = None,
) -> Features:
    """Keep the first principal components of signals [T, P], which may be pixels or anything else.

    The noise is read off the components that are left out: white noise has the same variance in
    every direction, motion has it in a few. With few signals none are left out and it reads 0.
    """
    signals = np.array(signals, np.float32)
    num_times, num_signals = signals.shape
    hidden = np.zeros(num_times, bool) if is_hidden is None else is_hidden
    if hidden.all():
        hidden = np.zeros(num_times, bool)
    if hidden.any():
        _fill_in(signals, hidden)
    centred = (signals - signals[~hidden].mean(axis=0)) / np.sqrt(num_signals)
    # The Gram matrix of the shorter side, instead of an SVD.
    variances, directions = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    variances = np.maximum(variances[::-1], 0.0)
    kept = min(_NUM_COMPONENTS, num_signals, num_times)
    values = directions[:, ::-1][:, :kept] * np.sqrt(variances[:kept])
    rest = variances[kept : min(num_signals, num_times - 1)]
    noise = float(np.sqrt(np.median(rest) / num_times)) if len(rest) else 0.0
    return Features(values.astype(np.float32), fps, noise, least_motion, hidden)


def _fill_in(signals: Array, hidden: NDArray[np.bool_]) -> None:
    """Replace hidden rows by a straight line between the rows around them, in place."""
    seen = np.flatnonzero(~hidden)
    for index in np.flatnonzero(hidden):
        after = int(np.searchsorted(seen, index))
        left, right = seen[max(after - 1, 0)], seen[min(after, len(seen) - 1)]
        weight = (index - left) / (right - left) if right > left else 0.0
        signals[index] = (1.0 - weight) * signals[left] + weight * signals[right]


def _blur(grey: Array) -> Array:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), _BLUR) for frame in grey])


def _halve(frame: Array) -> Array:
    height, width = max(1, frame.shape[0] // 2), max(1, frame.shape[1] // 2)
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA))


def stabilise(grey: Array, fps: float) -> Still:
    """Undo changes of brightness and shifts of the camera in grey values 0 .. 255 [T, H, W].

    Each frame is explained as gain * (background moved by dx, dy), linearised in the shift
    (Lucas and Kanade 1981), by least squares in which pixels that fit badly (the moving thing)
    lose their weight. The background is the median over time.
    """
    height, width = grey.shape[1:]
    blurred = _blur(grey)
    limit = _MAX_SHIFT * max(height, width)
    shifts = np.zeros((len(grey), 2), np.float32)
    gains = np.ones(len(grey), np.float32)
    fixed = background = blurred
    for _ in range(_ROUNDS):
        background = np.median(fixed[:: max(1, len(fixed) // 100)], axis=0)
        change, gain = _fit(fixed, background)
        shifts = np.clip(shifts + change, -limit, limit)
        gains = np.clip(gains * gain, 0.4, 2.5)
        fixed = np.stack(
            [_move(frame, s) / g for frame, s, g in zip(blurred, shifts, gains, strict=True)]
        )
    covered = (np.abs(fixed - background) > _OTHER).mean(axis=(1, 2)) > _HIDDEN_SHARE
    is_hidden = np.asarray(covered | _jumps(gains, fps))
    return Still(fixed, background, is_hidden, bool(np.abs(shifts).max() >= _FAR * limit))


def _jumps(gains: Array, fps: float) -> NDArray[np.bool_]:
    """Frames that are brighter or darker than those around them: no light changes so fast. [T]"""
    usual = median_filter(gains, size=2 * round(_LIGHT_S * fps) + 1, mode="nearest")
    return np.asarray(np.abs(np.log(gains / usual)) > np.log(_LIGHT_JUMP))


def _fit(frames: Array, background: Array) -> tuple[Array, Array]:
    """Shift [T, 2] (pixels, x and y) and gain [T] of each frame against the background [H, W]."""
    dy, dx = np.gradient(background)
    basis = np.stack([background, dx, dy]).reshape(3, -1)  # [3, P]
    flat = frames.reshape(len(frames), -1)
    weights = np.ones_like(flat)
    answers = np.zeros((len(frames), 3), np.float32)
    ridge = np.diag([1e-3, 0.25, 0.25]) * flat.shape[1]  # where nothing tells, nothing moves
    target = np.array([1e-3, 0.0, 0.0]) * flat.shape[1]
    products = (basis[:, None] * basis[None]).reshape(9, -1)
    for _ in range(3):
        normal = (weights @ products.T).reshape(-1, 3, 3) + ridge
        right = (weights * flat) @ basis.T + target
        answers = np.linalg.solve(normal, right[..., None])[..., 0].astype(np.float32)
        residual = np.abs(flat - answers @ basis)
        scale = 1.5 * np.median(residual, axis=1, keepdims=True) + 1.0
        weights = 1.0 / (1.0 + (residual / (2.0 * scale)) ** 2) ** 2
    gain = np.maximum(answers[:, 0], 1e-3)
    return -answers[:, 1:] / gain[:, None], gain


def _move(frame: Array, shift: Array) -> Array:
    move = np.array([[1.0, 0.0, -shift[0]], [0.0, 1.0, -shift[1]]], np.float32)
    size = (frame.shape[1], frame.shape[0])
    return np.asarray(cv2.warpAffine(frame, move, size, borderMode=cv2.BORDER_REPLICATE))


def _flow(grey: Array) -> Array:
    """Optical flow (Farneback 2003) on a coarse grid, scaled to the grey values. [T, F]"""
    bytes_ = np.clip(grey, 0, 255).astype(np.uint8)
    fields = []
    for a, b in pairwise(bytes_):
        field = cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 2, 9, 2, 5, 1.1, 0)
        fields.append(cv2.resize(field, (8, 8), interpolation=cv2.INTER_AREA).ravel())
    if not fields:
        return np.zeros((len(grey), 0), np.float32)
    flat = np.stack([fields[0], *fields])
    spread = float(flat.std()) or 1.0
    return np.asarray(flat * (float(grey.std(axis=0).mean()) / spread), np.float32)

"""A camera that pans, zooms or is carried: every frame is brought back to where the middle one was.

`features` undoes brightness and a small shake against one median picture. That fails where the
camera goes on moving, for then the median is a smear. Here the picture is followed from frame to
frame, and only then compared with one background.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Matrices = NDArray[np.float64]

_STEPS = 3  # of Gauss-Newton for each frame
_ROUNDS = 2  # of the fit against one background
_FORGET = 0.2  # weight of a new frame in the running reference
_OTHER = 25.0  # grey values: a pixel that shows something else than the reference
_LOST_SHARE = 0.5  # of such pixels: the camera is somewhere else
_LEAST_SEEN = 0.5  # share of the reference that a frame must still show
_RIDGE = (1e-4, 0.025, 0.025, 0.005, 0.005)  # for each pixel: where nothing tells, nothing moves


@dataclass(frozen=True)
class Followed:
    """Frames in the coordinates of the middle one.

    Attributes:
        frames: What is not seen is filled in from the background. [T, H, W]
        background: Median over time. [H, W]
        gains: Brightness of each frame against the background. [T]
        is_lost: Frames that show too little of the background to be placed. [T]
        moved: Largest displacement of a frame's centre, as a share of its longer side.
    """

    frames: Array
    background: Array
    gains: Array
    is_lost: NDArray[np.bool_]
    moved: float


def follow_camera(frames: Array) -> Followed:
    """Undo shift, turn, zoom and brightness of a camera that may go far.

    Each frame is explained as gain * (reference under a similarity transform), linearised (Lucas
    and Kanade 1981) and solved by least squares in which pixels that fit badly lose their weight.
    First against a running mean of the frames placed so far, from the middle outwards, then against
    the median of all.

    Args:
        frames: Grey values 0 .. 255, slightly blurred. [T, H, W]
    """
    num, middle = len(frames), len(frames) // 2
    warps = np.tile(np.eye(2, 3, dtype=np.float64), (num, 1, 1))
    gains = np.ones(num)
    lost = np.zeros(num, bool)
    for order in (range(middle + 1, num), range(middle - 1, -1, -1)):
        reference, warp, gain = frames[middle].copy(), warps[middle], 1.0
        for t in order:
            warp, gain, seen, is_bad = _follow(frames[t], reference, warp, gain, _STEPS)
            warps[t], gains[t], lost[t] = warp, gain, is_bad
            if is_bad:  # neither does it come back from where it is lost
                break
            picture = _sample(frames[t], warp) / gain
            reference[seen] += _FORGET * (picture - reference)[seen]
        else:
            continue
        rest = np.arange(t, num) if order.step > 0 else np.arange(0, t + 1)
        lost[rest] = True
    placed = np.flatnonzero(~lost)
    background = frames[middle]
    for _ in range(_ROUNDS):
        background = _background(frames, warps, gains, placed)
        for t in placed:
            warps[t], gains[t], _, lost[t] = _follow(frames[t], background, warps[t], gains[t], 1)
    return _result(frames, warps, gains, lost, background)


def _result(
    frames: Array, warps: Matrices, gains: Matrices, lost: NDArray[np.bool_], background: Array
) -> Followed:
    height, width = background.shape
    fixed = np.repeat(background[None], len(frames), axis=0)
    for t in np.flatnonzero(~lost):
        seen = _is_seen(warps[t], background.shape)
        fixed[t][seen] = (_sample(frames[t], warps[t]) / gains[t])[seen]
    centre = np.array([width / 2.0, height / 2.0, 1.0])
    moved = np.linalg.norm(warps[~lost] @ centre - centre[:2], axis=1)
    share = float(moved.max(initial=0.0)) / max(height, width)
    return Followed(fixed, background, gains.astype(np.float32), lost, share)


def _background(
    frames: Array, warps: Matrices, gains: Matrices, placed: NDArray[np.int64]
) -> Array:
    """Median of what is seen, over at most 60 frames. [H, W]"""
    chosen = placed[:: max(1, len(placed) // 60)] if len(placed) else np.array([len(frames) // 2])
    stack = np.stack(
        [
            np.where(_is_seen(warps[t], frames[t].shape), _sample(frames[t], warps[t]), np.nan)
            / gains[t]
            for t in chosen
        ]
    )
    known = ~np.isnan(stack).all(axis=0)
    result = frames[len(frames) // 2].copy()
    result[known] = np.nanmedian(stack[:, known], axis=0)
    return np.asarray(result, np.float32)


def _follow(
    frame: Array, reference: Array, warp: Matrices, gain: float, steps: int
) -> tuple[Matrices, float, NDArray[np.bool_], bool]:
    """The similarity transform from reference to frame, near a first guess; and whether it fits."""
    height, width = frame.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    x, y = (columns - width / 2.0) / width, (rows - height / 2.0) / width
    dy, dx = np.gradient(reference)
    basis = np.stack([reference, dx, dy, x * dx + y * dy, x * dy - y * dx])
    seen = _is_seen(warp, frame.shape)
    for _ in range(steps):
        picture = _sample(frame, warp)
        flat, wanted = basis[:, seen], picture[seen]
        if wanted.size < _LEAST_SEEN * frame.size:
            return warp, gain, seen, True
        answer = _robust(flat, wanted, gain)
        gain = float(np.clip(answer[0], 0.3, 3.0))
        shift_x, shift_y, zoom, turn = answer[1:] / gain
        step = np.array([[zoom, -turn], [turn, zoom]]) / width
        offset = np.array([shift_x, shift_y]) - step @ np.array([width / 2.0, height / 2.0])
        change = np.eye(3)
        change[:2, :2] -= step
        change[:2, 2] -= offset
        warp = np.asarray(warp @ change)
        seen = _is_seen(warp, frame.shape)
    residual = np.abs(_sample(frame, warp) / gain - reference)[seen]
    is_bad = seen.mean() < _LEAST_SEEN or bool((residual > _OTHER).mean() > _LOST_SHARE)
    return warp, gain, seen, is_bad


def _robust(basis: Array, wanted: Array, gain: float) -> Matrices:
    """Least squares in which what fits badly loses its weight. [5]"""
    num = wanted.size
    ridge = np.diag(_RIDGE) * num
    target = ridge[:, 0] * gain
    residual = np.abs(wanted - gain * basis[0])
    for _ in range(3):
        scale = 1.5 * float(np.median(residual)) + 1.0
        weights = 1.0 / (1.0 + (residual / (2.0 * scale)) ** 2) ** 2
        normal = (basis * weights) @ basis.T + ridge
        answer = np.linalg.solve(normal, (basis * weights) @ wanted + target)
        residual = np.abs(wanted - answer @ basis)
    return np.asarray(answer)


def _sample(frame: Array, warp: Matrices) -> Array:
    """The frame at the places to which the reference's pixels have moved. [H, W]"""
    size = (frame.shape[1], frame.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(frame, warp, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    )


def _is_seen(warp: Matrices, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels of the reference that lie inside of the frame. [H, W]"""
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    x = warp[0, 0] * columns + warp[0, 1] * rows + warp[0, 2]
    y = warp[1, 0] * columns + warp[1, 1] * rows + warp[1, 2]
    return np.asarray((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1))

"""A turn that looks nearly the same after half of it: told from a whole turn by where its mark is.

A bar with one marked end, a propeller, a wheel with one valve: turned by half a circle the picture
is the same but for the mark, which is small beside what sampling leaves of the bar. Its first
moment about the axis is not: whatever looks the same after half a turn adds nothing to it, and the
mark's share of it points to the other side. So it goes around once in a whole turn, smoothly.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.periodicity.features import Features, Still, features_of_signals
from rewards.grammar.layout import Cycle

Array = NDArray[np.float32]

MOST_UNLIKE = 0.3  # energy of what half a turn changes, of all; of people 0.4 to 0.5
LEAST_OPPOSED = 0.8  # how far the moment turns around from one half to the next, 0 to 1
_FEWEST = 3  # half turns: two changes from one to the next
_NUM_PHASES = 16
_MOVES = 0.05  # of the variance of the pixels that change most: a pixel that moves


def features_of_turn(still: Still, fps: float, cycles: tuple[Cycle, ...]) -> Features | None:
    """The moment of what moves about its axis, where the cycles are half turns; None if not.

    Args:
        still: The shot.
        fps: Its frames a second.
        cycles: What was found in it, seconds from its first frame.
    """
    if len(cycles) < _FEWEST:
        return None
    moving = still.moving
    energy = moving.var(axis=0)
    energy = np.maximum(energy - np.median(energy), 0.0)
    if not energy.any():
        return None
    height, width = energy.shape
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    axis = np.array([energy.sum(axis=0) @ x, energy.sum(axis=1) @ y]) / energy.sum()
    if _unlike_half_a_turn(moving, axis) > MOST_UNLIKE:
        return None
    moves = energy > _MOVES * np.percentile(energy, 99.0)
    seen = moving * moves
    moments = np.stack(
        [seen.sum(axis=1) @ (x - axis[0]), seen.sum(axis=2) @ (y - axis[1])], axis=1
    ).astype(np.float32)
    if not _turns_around(moments, fps, cycles):
        return None
    return features_of_signals(moments, fps, is_hidden=still.is_hidden)


def _unlike_half_a_turn(moving: Array, axis: NDArray[np.floating]) -> float:
    """Share of the energy of [T, H, W] that half a turn about an axis (x, y) changes."""
    size = (moving.shape[2], moving.shape[1])
    half_turn = np.array([[-1.0, 0.0, 2.0 * axis[0]], [0.0, -1.0, 2.0 * axis[1]]], np.float32)
    inside = cv2.warpAffine(np.ones(moving.shape[1:], np.float32), half_turn, size) > 0.99
    turned = np.stack([cv2.warpAffine(frame, half_turn, size) for frame in moving])
    unlike = float(np.square((moving - turned)[:, inside]).sum())
    alike = float(np.square((moving + turned)[:, inside]).sum())
    return unlike / max(unlike + alike, 1e-9)


def _turns_around(moments: Array, fps: float, cycles: tuple[Cycle, ...]) -> bool:
    """Whether moments [T, 2] point to the other side in each next cycle, and back in the one after.

    What changes from one cycle to the next is compared, so that what is the same in all, as a room
    that is not even, does not count. Chance alone gives -0.5 from one change to the next.
    """
    phases = (np.arange(_NUM_PHASES) + 0.5) / _NUM_PHASES
    indices = np.arange(len(moments)) / fps
    in_cycles = np.stack(
        [
            [np.interp(start + (end - start) * phases, indices, moments[:, k]) for k in (0, 1)]
            for start, end in cycles
        ]
    )  # [N, 2, phases]
    changes = np.diff(in_cycles, axis=0).reshape(len(cycles) - 1, -1)
    changes /= np.maximum(np.linalg.norm(changes, axis=1, keepdims=True), 1e-9)
    opposed = -float((changes[:-1] * changes[1:]).sum(axis=1).mean())
    return opposed >= LEAST_OPPOSED

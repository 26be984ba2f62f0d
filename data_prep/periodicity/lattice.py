"""The lattice behind every signal: from features to the best chain of repetitions and its score."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from data_prep.periodicity.cycles import (
    LEAST_GAIN,
    close_gaps,
    find_chain,
    trim_rest,
    whole_clip,
)
from data_prep.periodicity.features import Features
from data_prep.periodicity.similarity import Period, estimate_period, squared_distances
from rewards.grammar.layout import Cycle

Array = NDArray[np.float32]

MIN_PERIOD_S = 0.35
MAX_PERIOD_S = 10.0
NO_PERIOD = Period(None, None, None, 0.0, False)

_SMOOTH_S = 0.035  # of the trajectory, standard deviation
_FINER = 2  # points for each frame: a frame seldom falls on the moment of return
_AMPLITUDE_PERCENTILE = 95.0  # of the distances of all pairs of moments
_NUM_PHASES = 16  # at which two repetitions are compared
_PHASE_SLACK = 2  # phases by which one may run ahead of the other


@dataclass(frozen=True)
class Limits:
    """Shortest and longest repetition, seconds.

    Raises:
        ValueError: if they are not 0 < shortest < longest.
    """

    min_s: float = MIN_PERIOD_S
    max_s: float = MAX_PERIOD_S

    def __post_init__(self) -> None:
        if not 0.0 < self.min_s < self.max_s:
            raise ValueError(
                f"min_period_s={self.min_s}, max_period_s={self.max_s}, expected "
                "0 < min_period_s < max_period_s"
            )


@dataclass(frozen=True)
class Found:
    """The best chain in one signal, whether it is to be believed or not.

    Attributes:
        cycles: (start, end) of each repetition, seconds from the first frame.
        score: Periodicity, 0 to 1: share of the motion that they explain, times how alike they are.
        period: Typical length of a repetition.
        moves: Whether anything moves.
        times_s: Time of each moment. [T]
        distances: Distances of moments as shares of the amplitude. [T, T]
        signal: First principal component of the trajectory, scaled to 0 .. 1. [T]
    """

    cycles: tuple[Cycle, ...]
    score: float
    period: Period
    moves: bool
    times_s: Array
    distances: Array
    signal: Array


def search(features: Features, limits: Limits) -> Found:
    """The best chain of repetitions in a signal.

    Args:
        features: The signal.
        limits: Of the length of a repetition.
    """
    values, is_hidden, noise = _refine(features)
    fps = features.fps * _FINER
    times_s = (np.arange(len(values)) / fps).astype(np.float32)
    squares = squared_distances(values)
    squares = np.maximum(squares - 2.0 * values.shape[1] * noise**2, 0.0)
    amplitude = float(np.sqrt(np.percentile(squares, _AMPLITUDE_PERCENTILE)))
    signal = values[:, 0] - values[:, 0].min()
    signal /= max(float(signal.max()), 1e-9)
    if amplitude <= features.least_motion:
        nothing = np.zeros_like(squares)
        return Found((), 0.0, NO_PERIOD, False, times_s, nothing, signal)
    distances = np.sqrt(squares) / amplitude
    times = {"min_s": limits.min_s, "max_s": limits.max_s}
    period = estimate_period(values, distances, fps, **times)
    chain = find_chain(distances, is_hidden, fps, **times)
    borders = trim_rest(chain.borders, distances)
    score = _score(distances, borders, chain.gains)
    if (whole := whole_clip(distances, borders)) is not None:
        score_of_whole = _score(distances, whole, chain.gains)
        if score_of_whole > score:
            borders, score = whole, score_of_whole
    cycles = close_gaps([(round(int(i) / fps, 3), round(int(j) / fps, 3)) for i, j in borders])
    return Found(tuple(cycles), score, period, True, times_s, distances, signal)


def _refine(features: Features) -> tuple[Array, NDArray[np.bool_], float]:
    """The trajectory, smoothed and with points between the frames; what is hidden; its noise."""
    values, width = features.values, _SMOOTH_S * features.fps
    impulse = np.zeros(41)
    impulse[20] = 1.0
    noise = features.noise * float(np.sqrt(np.square(gaussian_filter1d(impulse, width)).sum()))
    smooth = gaussian_filter1d(values, width, axis=0, mode="nearest")
    positions = np.arange((len(values) - 1) * _FINER + 1) / _FINER
    before = np.minimum(positions.astype(int), max(len(values) - 2, 0))
    after = np.minimum(before + 1, len(values) - 1)
    weight = (positions - before)[:, None].astype(np.float32)
    fine = smooth[before] * (1.0 - weight) + smooth[after] * weight
    is_hidden = features.is_hidden[np.minimum(np.round(positions).astype(int), len(values) - 1)]
    return np.asarray(fine, np.float32), is_hidden, noise


def _score(distances: Array, borders: NDArray[np.int64], gains: Array) -> float:
    """Share of the squared motion inside the repetitions, times how alike they are."""
    if not len(borders):
        return 0.0
    motion = np.square(np.diagonal(distances, 1))
    explained = sum(float(motion[i:j].sum()) for i, j in borders)
    share = explained / max(float(motion.sum()), 1e-12)
    return float(np.clip(share * _likeness(distances, borders, gains), 0.0, 1.0))


def _likeness(distances: Array, borders: NDArray[np.int64], gains: Array) -> float:
    """How alike neighbouring repetitions are, phase by phase: 1 equal, 0 as at random phases.

    A single repetition has nothing to be compared with; its own gain stands in.
    """
    if len(borders) == 1:
        return float(gains[0]) / (1.0 - LEAST_GAIN)
    phases = np.linspace(0.0, 1.0, _NUM_PHASES)
    positions = [np.round(i + (j - i) * phases).astype(int) for i, j in borders]
    near = np.abs(np.subtract.outer(np.arange(_NUM_PHASES), np.arange(_NUM_PHASES)))
    far = np.where(near <= _PHASE_SLACK, 0.0, np.inf)
    aligned, other = [], []
    for a, b in pairwise(positions):
        block = distances[np.ix_(a, b)]
        aligned.append(float((block + far).min(axis=1).mean()))
        other.append(float(block.mean()))
    return max(0.0, 1.0 - float(np.mean(aligned)) / max(float(np.mean(other)), 1e-9))

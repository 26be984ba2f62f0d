"""From a clip's features to its repetitions, and what they are worth as evidence."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from data_prep.periodicity.cycles import LEAST_GAIN, close_gaps, find_chain, trim_rest
from data_prep.periodicity.features import Features, read_features
from data_prep.periodicity.similarity import (
    Period,
    estimate_period,
    self_similarity,
    squared_distances,
)
from data_prep.periodicity.verdict import NO_REPETITION, NOT_SURE, Judgement, Shot, Verdict, judge
from data_prep.schema import Clip
from rewards.cycles import close_pairs
from rewards.grammar.layout import Cycle

Array = NDArray[np.float32]

MIN_PERIOD_S = 0.35
MAX_PERIOD_S = 10.0
MIN_SCORE = 0.25  # below it nothing is counted
NO_PERIOD = Period(None, None, None, 0.0, False)
UNJUDGED = Judgement(NO_REPETITION)

_SMOOTH_S = 0.035  # of the trajectory, standard deviation
_FINER = 2  # points for each frame: a frame seldom falls on the moment of return
_AMPLITUDE_PERCENTILE = 95.0  # of the distances of all pairs of moments
_NUM_PHASES = 16  # at which two repetitions are compared
_PHASE_SLACK = 2  # phases by which one may run ahead of the other


@dataclass(frozen=True)
class Detection:
    """The repetitions that were found in a clip.

    Attributes:
        cycles: (start, end) of each repetition, seconds from the start of the clip.
        score: Periodicity, 0 to 1: share of the motion that the repetitions explain, times how
            alike they are. Without repetitions it belongs to those that were not worth counting.
        period: Typical length of a repetition.
        times_s: Time of each moment. [T]
        distances: Distances of moments as shares of the clip's amplitude. [T, T]
        signal: First principal component of the trajectory, scaled to 0 .. 1. [T]
        judgement: Whether the number is to be believed, and why not.
        rejected: Repetitions that were seen and not believed.
        shots: What was found between each two cuts, in order.
    """

    cycles: tuple[Cycle, ...]
    score: float
    period: Period
    times_s: Array
    distances: Array
    signal: Array
    judgement: Judgement = UNJUDGED
    rejected: tuple[Cycle, ...] = ()
    shots: tuple[Shot, ...] = ()

    @property
    def count(self) -> int:
        """Number of repetitions that were believed; whether it is an answer says `verdict`."""
        return len(self.cycles)

    @property
    def verdict(self) -> Verdict:
        """ "count", "not sure" or "no repetition"."""
        return self.judgement.verdict

    @property
    def reason(self) -> str:
        """Why it is not a count; empty for a count."""
        return self.judgement.reason

    @property
    def confidence(self) -> float:
        """Chance that the number of repetitions is right, 0 to 1."""
        return self.judgement.confidence

    @property
    def reading(self) -> int | None:
        """The number to be scored: None where the detector is not sure of more than one event."""
        return None if self.verdict == NOT_SURE and not self.cycles else self.count

    @property
    def similarity(self) -> Array:
        """RepNet's self-similarity matrix. [T, T], rows sum to 1"""
        return self_similarity(self.distances)


def detect_cycles(
    clip: Clip,
    *,
    flow: bool = False,
    min_period_s: float = MIN_PERIOD_S,
    max_period_s: float = MAX_PERIOD_S,
) -> Detection:
    """Find the repetitions in a clip from its pixels alone; no label is looked at.

    Args:
        clip: The clip.
        flow: Look at optical flow as well.
        min_period_s: Shortest repetition.
        max_period_s: Longest repetition.

    Raises:
        VideoError: if the video cannot be read.
        ValueError: if the limits of the period are not 0 < shortest < longest.
    """
    features = read_features(clip, flow=flow)
    return detect_in(features, min_period_s=min_period_s, max_period_s=max_period_s)


def detect_in(
    features: Features,
    *,
    min_period_s: float = MIN_PERIOD_S,
    max_period_s: float = MAX_PERIOD_S,
) -> Detection:
    """Find the repetitions in features; arguments as in `detect_cycles`."""
    if not 0.0 < min_period_s < max_period_s:
        raise ValueError(
            f"min_period_s={min_period_s}, max_period_s={max_period_s}, expected "
            "0 < min_period_s < max_period_s"
        )
    values, is_hidden, noise = _refine(features)
    fps = features.fps * _FINER
    times_s = (np.arange(len(values)) / fps).astype(np.float32)
    squares = squared_distances(values)
    squares = np.maximum(squares - 2.0 * values.shape[1] * noise**2, 0.0)
    amplitude = float(np.sqrt(np.percentile(squares, _AMPLITUDE_PERCENTILE)))
    signal = values[:, 0] - values[:, 0].min()
    signal /= max(float(signal.max()), 1e-9)
    if amplitude <= features.least_motion:
        still = judge(0, 0, 0.0, has_period=False, moves=False)
        shot = Shot(0.0, features.duration_s, (), still, 0.0)
        nothing = np.zeros_like(squares)
        return Detection((), 0.0, NO_PERIOD, times_s, nothing, signal, still, shots=(shot,))
    distances = np.sqrt(squares) / amplitude
    limits = {"min_s": min_period_s, "max_s": max_period_s}
    period = estimate_period(values, distances, fps, **limits)
    chain = find_chain(distances, is_hidden, fps, **limits)
    borders = trim_rest(chain.borders, distances)
    score = _score(distances, borders, chain.gains)
    seen = close_gaps([(round(int(i) / fps, 3), round(int(j) / fps, 3)) for i, j in borders])
    is_believed = score >= MIN_SCORE
    cycles, rejected = (tuple(seen), ()) if is_believed else ((), tuple(seen))
    has_period = period.period_s is not None
    told = judge(len(cycles), len(rejected), score, has_period=has_period, moves=True)
    shot = Shot(0.0, features.duration_s, cycles, told, score, rejected)
    return Detection(
        cycles, score, period, times_s, distances, signal, told, rejected, shots=(shot,)
    )


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


# --- what a detection is used for


@dataclass(frozen=True)
class Proposal:
    """Cycles for a clip that has a count and no marks.

    Attributes:
        cycles: What the detector found.
        score: Its periodicity, 0 to 1.
        agrees: Whether the cycles may be taken as marks.
        reason: Why not, in a word: "count_differs", "not_sure"; empty if they may.
    """

    cycles: tuple[Cycle, ...]
    score: float
    agrees: bool
    reason: str = ""


def propose_cycles(clip: Clip, *, flow: bool = False) -> Proposal:
    """Cycles for a clip, and whether they agree with its count, which the detector never sees.

    Args:
        clip: The clip; its count is what the cycles must agree with.
        flow: Look at optical flow as well.

    Raises:
        VideoError: if the video cannot be read.
    """
    found = detect_cycles(clip, flow=flow)
    reason = "not_sure" if found.verdict == NOT_SURE else ""
    reason = reason or ("count_differs" if found.count != clip.count else "")
    return Proposal(found.cycles, found.score, not reason, reason)


def agreement(first: tuple[Cycle, ...], second: tuple[Cycle, ...]) -> float:
    """How well two lists of cycles agree, 0 to 1: F1 of the cycles that match one to one.

    Cycles match if both ends are within 0.4 of the length (the rule of the reward `cycle_f1`),
    measured once against each list and averaged, so that the order of the two does not matter.
    Two empty lists agree.
    """
    if not first or not second:
        return float(not first and not second)
    pairs = [close_pairs(first, second), close_pairs(second, first).T]
    return float(np.mean([2.0 * _num_matches(p) / (len(first) + len(second)) for p in pairs]))


def _num_matches(close: NDArray[np.bool_]) -> int:
    """Most pairs that can be made one to one, in order (a longest common subsequence)."""
    best = np.zeros(close.shape[1] + 1, int)
    for row in close:
        taken = np.maximum(best[1:], best[:-1] + row)
        best[1:] = np.maximum.accumulate(taken)
    return int(best[-1])

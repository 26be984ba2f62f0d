"""From a clip to its repetitions: shots, the signals that are tried for each, and the answer."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_prep.periodicity.fades import take_apart
from data_prep.periodicity.features import (
    MAX_FRAMES,
    Features,
    Still,
    features_of_followed,
    features_of_still,
    features_of_subject,
    read_grey,
    stabilise,
)
from data_prep.periodicity.half_turns import features_of_turn
from data_prep.periodicity.lattice import (
    MAX_PERIOD_S,
    MIN_PERIOD_S,
    NO_PERIOD,
    Found,
    Limits,
    search,
)
from data_prep.periodicity.shots import find_shots
from data_prep.periodicity.similarity import Period, self_similarity
from data_prep.periodicity.verdict import (
    NO_REPETITION,
    NOT_SURE,
    Judgement,
    Shot,
    Verdict,
    judge,
    judge_all,
)
from data_prep.schema import Clip
from rewards.cycles import close_pairs
from rewards.grammar.layout import Cycle

Array = NDArray[np.float32]

MIN_SCORE = 0.25  # below it nothing is counted
SURE_SCORE = 0.5  # from it on no other signal is tried
LEAST_BETTER = 0.05  # of the score of a signal that is tried later
TRAVEL_S = (1.0, 2.5)  # smoothing of the way of a subject, tried in turn
LEAST_CONTRAST = 0.1  # of a period that is worth a doubt
FALLBACK_SCORE = 0.45  # of the signals that are tried last
LEAST_OF_TWO = 1.5  # times the length of a repetition in other shots: one event may be two

VERSION = 5
"""Of what is found: raise it when the same clip may give other cycles, so that none are re-used."""

UNJUDGED = Judgement(NO_REPETITION)
_MOST_MOMENTS = 2400  # of the matrix of a whole file


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
    limits = Limits(min_period_s, max_period_s)
    grey, fps = read_grey(clip)
    return detect_in_frames(grey, fps, limits, flow=flow)


def detect_in_frames(
    grey: NDArray[np.uint8], fps: float, limits: Limits | None = None, *, flow: bool = False
) -> Detection:
    """Find the repetitions in frames [T, H, W] of grey values; each shot is looked at by itself."""
    limits = limits or Limits()
    shots = take_apart(grey, find_shots(grey, fps), fps)
    thinned = []
    for first, last, frames in shots:
        step = -(-(last - first) // MAX_FRAMES)
        thinned.append((frames[::step].astype(np.float32), fps / step))
    found = [_look(*shot, limits, flow=flow) for shot in thinned]
    pace_s = _pace(found)
    for k, shot in enumerate(thinned):
        if pace_s is not None and (longest_s := _lasts_for_two(found[k], pace_s)):
            again = _look(*shot, Limits(limits.min_s, longest_s), flow=flow)
            if len(again[0].cycles) > 1 and again[0].score >= SURE_SCORE:
                found[k] = again
    return _join(found, [(first / fps, last / fps) for first, last, _ in shots])


def detect_in(
    features: Features,
    *,
    min_period_s: float = MIN_PERIOD_S,
    max_period_s: float = MAX_PERIOD_S,
) -> Detection:
    """Find the repetitions in features; arguments as in `detect_cycles`."""
    found = search(features, Limits(min_period_s, max_period_s))
    return _join([(found, MIN_SCORE)], [(0.0, features.duration_s)])


def _look(frames: Array, fps: float, limits: Limits, *, flow: bool) -> tuple[Found, float]:
    """The best chain of one shot, and the score from which it is believed.

    Later signals are tried where the ones before saw something and are not sure of it.
    """
    still = stabilise(frames, fps)
    best = search(features_of_still(still, fps, flow=flow), limits)
    best = _whole_turns(best, still, fps, limits)
    is_plain = not still.is_far and not still.is_hidden.any()
    is_sure = len(best.cycles) > 1 and best.score >= SURE_SCORE and is_plain
    if not best.moves or is_sure:
        return best, MIN_SCORE
    followed = search(features_of_followed(frames, fps), limits)
    best = _better(best, followed, is_far=still.is_far)
    if not best.moves or (len(best.cycles) > 1 and best.score >= MIN_SCORE):
        return best, MIN_SCORE
    ways = [features_of_subject(still, fps, smooth_s=smooth_s) for smooth_s in TRAVEL_S]
    subject = max((search(way, limits) for way in ways), key=_worth)
    if len(subject.cycles) > 1 and subject.score >= max(FALLBACK_SCORE, best.score):
        return subject, FALLBACK_SCORE
    return best, MIN_SCORE


def _pace(found: list[tuple[Found, float]]) -> float | None:
    """Typical length of a repetition over all shots that repeat something, seconds."""
    lengths = [b - a for one, least in found if _is_count(one, least) for a, b in one.cycles]
    return float(np.median(lengths)) if lengths else None


def _lasts_for_two(found: tuple[Found, float], pace_s: float) -> float | None:
    """Up to where to look again, seconds, if one event lasts as long as two of other shots."""
    one, least = found
    if len(one.cycles) != 1 or one.score < least:
        return None
    start, end = one.cycles[0]
    return LEAST_OF_TWO / 2.0 * (end - start) if end - start >= LEAST_OF_TWO * pace_s else None


def _is_count(found: Found, least: float) -> bool:
    return len(found.cycles) > 1 and found.score >= least


def _whole_turns(found: Found, still: Still, fps: float, limits: Limits) -> Found:
    """The whole turns where what was found are halves of them."""
    turning = features_of_turn(still, fps, found.cycles)
    if turning is None:
        return found
    half_s = float(np.median([end - start for start, end in found.cycles]))
    longest_s = max(limits.max_s, 3.0 * half_s)
    whole = search(turning, Limits(max(limits.min_s, 1.4 * half_s), longest_s))
    return whole if 1 <= len(whole.cycles) < len(found.cycles) else found


def _worth(found: Found) -> float:
    return found.score if len(found.cycles) > 1 else 0.0


def _better(first: Found, followed: Found, *, is_far: bool) -> Found:
    """The one to go by: what was tried later has to be clearly better, but for a far camera."""
    if not followed.moves:
        return followed if is_far else first
    return followed if followed.score > first.score + (0.0 if is_far else LEAST_BETTER) else first


def _join(found: list[tuple[Found, float]], spans: list[Cycle]) -> Detection:
    """One answer for all shots."""
    shots = []
    for (one, least), (start, end) in zip(found, spans, strict=True):
        seen = tuple((round(start + a, 3), round(start + b, 3)) for a, b in one.cycles)
        cycles, rejected = (seen, ()) if one.score >= least else ((), seen)
        has_period = one.period.agree or one.period.contrast >= LEAST_CONTRAST
        told = judge(len(cycles), len(rejected), one.score, has_period=has_period, moves=one.moves)
        shots.append(Shot(start, end, cycles, told, one.score, rejected))
    longest = max(found, key=lambda pair: (len(pair[0].cycles), len(pair[0].times_s)))[0]
    times_s, distances, signal = _pictures([one for one, _ in found], spans)
    return Detection(
        cycles=tuple(cycle for shot in shots for cycle in shot.cycles),
        score=_mean_score(shots),
        period=longest.period if longest.moves else NO_PERIOD,
        times_s=times_s,
        distances=distances,
        signal=signal,
        judgement=judge_all(shots),
        rejected=tuple(cycle for shot in shots for cycle in shot.rejected),
        shots=tuple(shots),
    )


def join_windows(shots: list[Shot]) -> Detection:
    """One answer for the shots of a file that was looked at window by window, without pictures."""
    cycles = tuple(cycle for shot in shots for cycle in shot.cycles)
    lengths = [end - start for start, end in cycles]
    none = np.zeros(0, np.float32)
    return Detection(
        cycles=cycles,
        score=_mean_score(shots),
        period=replace(NO_PERIOD, period_s=float(np.median(lengths))) if cycles else NO_PERIOD,
        times_s=none,
        distances=np.zeros((0, 0), np.float32),
        signal=none,
        judgement=judge_all(shots),
        rejected=tuple(cycle for shot in shots for cycle in shot.rejected),
        shots=tuple(shots),
    )


def _mean_score(shots: list[Shot]) -> float:
    """By the repetitions of each shot."""
    weights = [len(shot.cycles) for shot in shots]
    if not sum(weights):
        return max(shot.score for shot in shots)
    return float(np.average([shot.score for shot in shots], weights=weights))


def _pictures(found: list[Found], spans: list[Cycle]) -> tuple[Array, Array, Array]:
    """Times [T], distances [T, T] and signal [T] of all shots; shots are unlike one another."""
    step = -(-sum(len(one.times_s) for one in found) // _MOST_MOMENTS)
    parts = [one.times_s[::step] + start for one, (start, _) in zip(found, spans, strict=True)]
    num = sum(map(len, parts))
    distances = np.ones((num, num), np.float32)
    place = 0
    for one, part in zip(found, parts, strict=True):
        end = place + len(part)
        distances[place:end, place:end] = one.distances[::step, ::step]
        place = end
    signal = np.concatenate([one.signal[::step] for one in found])
    return np.concatenate(parts).astype(np.float32), distances, signal


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
    return proposal_of(clip, found.cycles, found.score, is_sure=found.verdict != NOT_SURE)


def proposal_of(clip: Clip, cycles: tuple[Cycle, ...], score: float, *, is_sure: bool) -> Proposal:
    """What the cycles that the detector found are worth for a clip of a known count.

    Args:
        clip: The clip; its count is what the cycles must agree with.
        cycles: What was found.
        score: Its periodicity.
        is_sure: Whether the detector does not doubt it.
    """
    reason = "" if is_sure else "not_sure"
    reason = reason or ("count_differs" if len(cycles) != clip.count else "")
    return Proposal(cycles, score, not reason, reason)


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

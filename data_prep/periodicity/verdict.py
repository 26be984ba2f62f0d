"""What the detector answers: a count, "not sure" with the reason, or "no repetition".

A detector that sees a period and rejects its repetitions must not say 0: 0 is a claim. One event
has no second to be compared with, so it is counted as one and never sure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rewards.grammar.layout import Cycle

Verdict = Literal["count", "not sure", "no repetition"]

COUNT: Verdict = "count"
NOT_SURE: Verdict = "not sure"
NO_REPETITION: Verdict = "no repetition"

EVENTS = "one event in each shot, no repetition"
LEAST_DOUBT = 0.1  # score of a chain that is worth a doubt: less has anything that moves about
# Scores, and the share of counts of such a score that were right.
_RIGHT_BY_SCORE = ((0.25, 0.45, 0.55, 0.65, 0.75, 1.0), (0.4, 0.45, 0.55, 0.75, 0.93, 0.97))

ONE_EVENT = "one event, no repetition"
REJECTED = "repetitions seen, but too little alike or too little of the motion"
PERIOD_ONLY = "period seen, but no chain of repetitions"
STILL = "nothing moves"
NEVER_RETURNS = "motion that does not return"


@dataclass(frozen=True)
class Judgement:
    """An answer.

    Attributes:
        verdict: "count", "not sure" or "no repetition".
        reason: Why it is not a count; empty for a count.
        confidence: Chance that the number of repetitions is right, 0 to 1.
    """

    verdict: Verdict
    reason: str = ""
    confidence: float = 0.0


@dataclass(frozen=True)
class Shot:
    """What was found between two cuts.

    Attributes:
        start_s: Its first moment, seconds from the start of the clip.
        end_s: Its end.
        cycles: Its repetitions, seconds from the start of the clip.
        judgement: The answer for it alone.
        score: Its periodicity, 0 to 1.
        rejected: A chain that was seen and not believed.
    """

    start_s: float
    end_s: float
    cycles: tuple[Cycle, ...]
    judgement: Judgement
    score: float
    rejected: tuple[Cycle, ...] = ()


def judge(
    num_cycles: int, num_rejected: int, score: float, *, has_period: bool, moves: bool
) -> Judgement:
    """The answer of a chain.

    Args:
        num_cycles: Repetitions that were believed.
        num_rejected: Repetitions that were seen and not believed.
        score: Periodicity of either, 0 to 1.
        has_period: Whether a period stands out.
        moves: Whether anything moves.
    """
    if num_cycles > 1:
        return Judgement(COUNT, "", confidence_of(score))
    if num_cycles == 1:
        return Judgement(NOT_SURE, ONE_EVENT, 0.5 * confidence_of(score))
    if not moves:
        return Judgement(NO_REPETITION, STILL, 0.9)
    if num_rejected > 1 and score >= LEAST_DOUBT:
        return Judgement(NOT_SURE, REJECTED, 0.3)
    if has_period:
        return Judgement(NOT_SURE, PERIOD_ONLY, 0.3)
    return Judgement(NO_REPETITION, NEVER_RETURNS, 0.7)


def judge_all(shots: Sequence[Shot]) -> Judgement:
    """The answer for a file of shots: their counts add up, and one doubt makes them less sure."""
    if len(shots) == 1:
        return shots[0].judgement
    told = [shot.judgement for shot in shots]
    num_cycles = sum(len(shot.cycles) for shot in shots)
    if counts := [one for one in told if one.verdict == COUNT]:
        weights = [len(shot.cycles) for shot in shots if shot.judgement.verdict == COUNT]
        confidence = sum(w * one.confidence for w, one in zip(weights, counts, strict=True))
        doubts = sum(one.verdict == NOT_SURE for one in told) / len(told)
        return Judgement(COUNT, "", confidence / sum(weights) * (1.0 - 0.5 * doubts))
    if doubtful := [one for one in told if one.verdict == NOT_SURE]:
        # No shot repeats anything; several events are not one.
        reason = doubtful[0].reason if num_cycles <= 1 else EVENTS
        return Judgement(NOT_SURE, reason, min(one.confidence for one in doubtful))
    return min(told, key=lambda one: one.confidence)


def confidence_of(score: float) -> float:
    """Chance that a chain of this score has the right number of repetitions.

    Straight lines between shares that were right, pooled over rendered clips, edits of them and
    real clips (docs/periodicity.md); rounded, as sums over a clip differ in their last digits by
    the number of threads.
    """
    return round(float(np.interp(score, *_RIGHT_BY_SCORE)), 6)

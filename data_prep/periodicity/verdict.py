"""What the detector answers: a count, "not sure" with the reason, or "no repetition".

A detector that sees a period and rejects its repetitions must not say 0: 0 is a claim. One event
has no second to be compared with, so it is counted as one and never sure.
"""

from dataclasses import dataclass
from typing import Literal

from rewards.grammar.layout import Cycle

Verdict = Literal["count", "not sure", "no repetition"]

COUNT: Verdict = "count"
NOT_SURE: Verdict = "not sure"
NO_REPETITION: Verdict = "no repetition"

ONE_EVENT = "one event, no repetition"
WEAK = "motion too weak"
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
    if num_rejected > 1:
        return Judgement(NOT_SURE, REJECTED, 0.3)
    if has_period:
        return Judgement(NOT_SURE, PERIOD_ONLY, 0.3)
    return Judgement(NO_REPETITION, NEVER_RETURNS, 0.7)


def confidence_of(score: float) -> float:
    """Chance that a chain of this score has the right number of repetitions."""
    return min(1.0, 0.5 + 0.5 * score)

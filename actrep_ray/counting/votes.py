"""One count out of n answers to the same question, and how far to trust it.

`actrep_ray.evaluation.confidence` says what they come to and how sure they are; here is what is
told of it, and whether it is a count or a doubt.

In each answer the count is what `rewards.claims.model_count` says, so answers without a list are
counted by the same rule.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from actrep_ray.evaluation.confidence import agreed
from actrep_ray.evaluation.predictions import Prediction, claims_of
from actrep_ray.records import Claims, Reading
from actrep_ray.tasks.base import Task
from actrep_ray.tasks.counting import CLAIMS, contradicts_itself, is_consistent
from data_prep.periodicity.verdict import COUNT, NOT_SURE, Verdict


@dataclass(frozen=True)
class Vote:
    """What n answers come to.

    Attributes:
        count: The reading that they come to; None where none can be read.
        verdict: "count", or "not sure".
        reason: Why it is not sure; empty for a count.
        agreement: Share of the answers that say `count`, 0 to 1.
        confidence: 0 to 1; see `evaluation.confidence`.
        shown: The answer that stands for them: it says `count`, and does not contradict itself if
            one of those that say it does not.
        claims: Of `shown`.
        readings: Of each answer, in order.
        consistent: Share of the answers whose list, total and answer are one number.
    """

    count: Reading | None
    verdict: Verdict
    reason: str
    agreement: float
    confidence: float
    shown: Prediction
    claims: Claims
    readings: tuple[Reading | None, ...]
    consistent: float


def vote(predictions: Sequence[Prediction], task: Task) -> Vote:
    """What the answers to one question come to.

    Args:
        predictions: One for each answer, at least one.
        task: Which was asked.
    """
    readings = tuple(one.reading for one in predictions)
    claims = [claims_of(one, task) for one in predictions]
    found = agreed(predictions, task)
    reason = _doubt(found.shown, found.claims, found.num_same, readings)
    return Vote(
        count=found.reading,
        verdict=NOT_SURE if reason else COUNT,
        reason=reason,
        agreement=found.num_same / len(readings),
        confidence=found.confidence,
        shown=found.shown,
        claims=found.claims,
        readings=readings,
        consistent=sum(map(is_consistent, claims)) / len(claims),
    )


def _doubt(
    shown: Prediction, claims: Claims, num_same: int, readings: Sequence[Reading | None]
) -> str:
    """Why the count is not to be trusted; empty if nothing speaks against it."""
    if not num_same:
        cut = "cut off at rollout.max_response_tokens, " if shown.is_truncated else ""
        return f"{cut}no readable count ({shown.problem})"
    if 2 * num_same <= len(readings):
        return f"{num_same} of {len(readings)} answers say {readings_of(readings)}"
    if contradicts_itself(claims):
        told = (f"{name} {claims.get(name)}" for name in CLAIMS if claims.get(name) is not None)
        return f"the answer contradicts itself: {', '.join(told)}"
    return ""


def readings_of(readings: Sequence[Reading | None]) -> str:
    """What n answers say, in words: "10 (3 times), 11"."""
    number = Counter("nothing readable" if one is None else str(one) for one in readings)
    return ", ".join(
        name if times == 1 else f"{name} ({times} times)" for name, times in number.most_common()
    )

"""A count in words, for a terminal."""

from collections.abc import Iterator
from typing import Any

from actrep_ray.counting.record import VideoCount, cross_check, segments_of
from actrep_ray.counting.segments import totals_of
from actrep_ray.counting.votes import Vote, readings_of
from actrep_ray.records import Reading
from actrep_ray.tasks.counting import describe_claims
from data_prep.periodicity.detector import Detection
from data_prep.periodicity.verdict import COUNT

FOREIGN = "the model was trained on clips that look otherwise: do not trust it alone"
"""Of a count that is `VideoCount.is_foreign`."""


def describe(counted: VideoCount) -> str:
    """All that is known of one video's count: the number first, then what it rests on."""
    return "\n".join(_lines(counted))


def headline(counted: VideoCount) -> str:
    """One line of it."""
    of = "" if counted.action == "unknown" else f" ({counted.action})"
    return f"{counted.video}{of}: {_answer_of(counted)}"


def _lines(counted: VideoCount) -> Iterator[str]:
    yield headline(counted)
    for i, (start, end) in enumerate(counted.cycles, start=1):
        yield f"  {i:3d}  {start:6.1f} s  to {end:6.1f} s"
    are_named = any(window.name for window in counted.windows)
    segments = segments_of(counted.cycles)
    for segment in segments if len(segments) > 1 and not are_named else ():
        span = f"{segment.start_s:6.1f} s  to {segment.end_s:6.1f} s"
        yield f"  segment {span}: {repetitions(segment.count or 0)}"
    yield from basis(counted)
    yield f"confidence {counted.confidence:.2f} of 1"
    if counted.is_foreign:
        yield FOREIGN
    if counted.vote is not None:
        yield f"\n{counted.vote.shown.text}"
    if second := second_opinion(counted):
        yield f"\n{second}"


def basis(counted: VideoCount) -> Iterator[str]:
    """What a count rests on, beside its repetitions and its reasoning, in lines."""
    if not counted.votes:
        assert counted.detection is not None, "somebody counted"
        yield from _lines_of_detection(counted.detection)
    for window in counted.windows:
        told = window.reason or describe_claims(window.vote.claims)
        number = "no count" if window.count is None else repetitions(window.count)
        kind = "segment" if window.name else "window"
        number = f"{window.name}, {number}" if window.name else number
        yield f"  {kind} {window.start_s:6.1f} s  to {window.end_s:6.1f} s: {number} ({told})"
    if any(window.name for window in counted.windows):
        yield f"in all: {totals_of(counted.windows)}"
    if counted.vote is not None:
        yield describe_claims(counted.vote.claims)
        if len(counted.vote.readings) > 1:
            yield _describe_answers(counted.vote)


def _describe_answers(vote: Vote) -> str:
    return (
        f"{len(vote.readings)} answers say {readings_of(vote.readings)}: the count is their "
        f"median, agreement {vote.agreement:.2f}, consistent {vote.consistent:.2f} of 1"
    )


def _lines_of_detection(found: Detection) -> Iterator[str]:
    if len(found.shots) > 1:
        for shot in found.shots:
            told = shot.judgement.reason or repetitions(len(shot.cycles))
            yield f"  shot {shot.start_s:6.1f} s  to {shot.end_s:6.1f} s: {told}"
    period = found.period.period_s
    length = "none that repeats" if period is None else f"{period:.2f} s"
    yield f"periodicity {found.score:.2f} of 1, typical period: {length}"


def _answer_of(counted: VideoCount) -> str:
    """A count, or the doubt with what was counted all the same."""
    if not counted.votes and counted.verdict != COUNT:
        assert counted.detection is not None, "somebody counted"
        rejected = counted.detection.rejected
        seen = f", {repetitions(len(rejected))} seen" if rejected else ""
        return f"{counted.verdict}: {counted.reason}{seen}"
    told = [] if counted.count is None else [repetitions(counted.count)]
    return ", ".join(told if counted.is_sure else [*told, f"not sure: {counted.reason}"])


def second_opinion(counted: VideoCount) -> str:
    """What the detector says beside a model; empty where it was not asked."""
    if not counted.votes or counted.detection is None:
        return ""
    return describe_cross_check(cross_check(counted.cycles, counted.detection))


def describe_cross_check(check: dict[str, Any]) -> str:
    """The second opinion of the detector in words."""
    told = (
        f"nothing that it is sure of: {check['reason']}"
        if check["count"] is None
        else repetitions(check["count"])
    )
    return (
        f"cross-check: agreement {check['agreement']:.2f} of 1 with the periodicity detector, "
        f"which finds {told} (periodicity {check['score']:.2f})"
    )


def repetitions(count: Reading) -> str:
    """For example "1 repetition"."""
    return f"{count} repetition{'' if str(count) == '1' else 's'}"

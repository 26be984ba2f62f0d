"""What was counted in one video: the one record that every output is written from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actrep_ray.counting.votes import Vote
from actrep_ray.records import Reading
from actrep_ray.tasks.counting import is_consistent
from data_prep.looks import SLACK
from data_prep.periodicity.detector import Detection, agreement
from data_prep.periodicity.verdict import COUNT, NOT_SURE, Verdict
from rewards.grammar.layout import Cycle

SEGMENT_GAP_S = 3.0
"""Between two repetitions; a longer one lies between two segments."""

_DIGITS = 3  # of a second, and of a share


@dataclass(frozen=True)
class Segment:
    """A stretch of repetitions, with a pause before and after.

    Attributes:
        start_s: Start of its first repetition, seconds from the start of the video.
        end_s: End of its last.
        count: How many there are; None where no answer can be read.
        name: What is repeated; empty where nobody said.
    """

    start_s: float
    end_s: float
    count: int | None
    name: str = ""


def segments_of(cycles: Sequence[Cycle]) -> list[Segment]:
    """Stretches of repetitions, in order: a gap of `SEGMENT_GAP_S` ends one.

    Args:
        cycles: Repetitions, in order of their starts.
    """
    found: list[Segment] = []
    for start, end in cycles:
        if found and start - found[-1].end_s < SEGMENT_GAP_S:
            found[-1] = Segment(found[-1].start_s, end, (found[-1].count or 0) + 1)
        else:
            found.append(Segment(start, end, 1))
    return found


@dataclass(frozen=True)
class WindowCount:
    """What a model counted in one window of a long video.

    Attributes:
        start_s: Of what belongs to it, seconds from the start of the video.
        end_s: Its end.
        count: Repetitions that belong to it; None where no answer can be read.
        reason: Why it is not sure; empty for a count.
        cycles: Those that belong to it, seconds from the start of the video.
        vote: What the answers come to.
        name: What is repeated, where windows are named (`segments`); empty where nobody said.
    """

    start_s: float
    end_s: float
    count: int | None
    reason: str
    cycles: tuple[Cycle, ...]
    vote: Vote
    name: str = ""


@dataclass(frozen=True)
class VideoCount:
    """The count of one video.

    Attributes:
        video: As it was given.
        duration_s: Its length.
        count: The count; None where there is none.
        verdict: "count", "not sure" or "no repetition".
        reason: Why it is not a count; empty for a count.
        confidence: 0 to 1; of a model, see `votes`, of the detector, `Detection.confidence`.
        cycles: (start, end) of each repetition, seconds from the start of the video.
        action: What was asked about, as it was given; "unknown" where nobody said.
        model: Folder of the model that counted; None for the detector.
        vote: What its answers come to; None for the detector, and for a long video.
        windows: Of a long video that a model counted in, or the stretches that it was asked to
            name, in order.
        detection: What the detector saw: by itself, or as a second opinion.
        unlike: How far it looks from the clips of the model's training, where 1 is the most unusual
            of those (`data_prep.looks`); None where the checkpoint does not say how they look.
    """

    video: Path
    duration_s: float
    count: Reading | None
    verdict: Verdict
    reason: str
    confidence: float
    cycles: tuple[Cycle, ...]
    action: str = "unknown"
    model: Path | None = None
    vote: Vote | None = None
    windows: tuple[WindowCount, ...] = ()
    detection: Detection | None = field(default=None, repr=False)
    unlike: float | None = None

    @property
    def is_foreign(self) -> bool:
        """Whether the model was trained on clips that look otherwise."""
        return self.unlike is not None and self.unlike > SLACK

    @property
    def is_confirmed(self) -> bool:
        """Whether the detector is sure of the same number."""
        found = self.detection
        return found is not None and found.verdict == COUNT and found.count == self.count

    @property
    def is_sure(self) -> bool:
        """Whether it is an answer."""
        return self.verdict != NOT_SURE

    @property
    def segments(self) -> list[Segment]:
        """Stretches of repetitions: those that were named, else what pauses tell apart."""
        if any(window.name for window in self.windows):
            return [
                Segment(window.start_s, window.end_s, window.count, window.name)
                for window in self.windows
            ]
        return segments_of(self.cycles)

    @property
    def votes(self) -> tuple[Vote, ...]:
        """What the answers of a model come to, of each window; none of the detector."""
        return (self.vote,) if self.vote else tuple(window.vote for window in self.windows)

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        record: dict[str, Any] = {
            "video": str(self.video),
            "method": "model" if self.votes else "periodicity",
            "action": self.action,
            "duration_s": round(self.duration_s, _DIGITS),
            "segments": [_segment_json(segment) for segment in self.segments],
        }
        if not self.votes:
            assert self.detection is not None, "somebody counted"
            return {**record, **detection_json(self.detection)}
        record |= {
            "checkpoint": str(self.model),
            "count": self.count,
            "verdict": self.verdict,
            "reason": self.reason,
            "confidence": round(self.confidence, _DIGITS),
            "cycles": _rounded(self.cycles),
            "consistent": all(is_consistent(one.claims) for one in self.votes),
            "consistent_share": _mean([one.consistent for one in self.votes]),
            "agreement": _mean([one.agreement for one in self.votes]),
        }
        if self.vote is not None:
            record |= _answers_json(self.vote)
        else:
            record["windows"] = [_window_json(window) for window in self.windows]
        if self.unlike is not None:
            record["unlike_training"] = round(self.unlike, _DIGITS)
        if self.detection is not None:
            record["cross_check"] = cross_check(self.cycles, self.detection)
        return record


def _segment_json(segment: Segment) -> dict[str, Any]:
    return {
        "start_s": round(segment.start_s, _DIGITS),
        "end_s": round(segment.end_s, _DIGITS),
        "count": segment.count,
        **({"name": segment.name} if segment.name else {}),
    }


def _answers_json(vote: Vote) -> dict[str, Any]:
    return {
        "claims": dict(vote.claims),
        "answers": list(vote.readings),
        "text": vote.shown.text,
    }


def _window_json(window: WindowCount) -> dict[str, Any]:
    return {
        "start_s": round(window.start_s, _DIGITS),
        "end_s": round(window.end_s, _DIGITS),
        "count": window.count,
        "reason": window.reason,
        **({"name": window.name} if window.name else {}),
        **_answers_json(window.vote),
    }


def _mean(shares: list[float]) -> float:
    return round(sum(shares) / len(shares), _DIGITS)


def cross_check(cycles: tuple[Cycle, ...], found: Detection) -> dict[str, Any]:
    """How well a model's cycles agree with the detector's, and what that found; JSON values."""
    share = agreement(cycles, found.cycles)
    return {"agreement": round(share, _DIGITS), **detection_json(found)}


def detection_json(found: Detection) -> dict[str, Any]:
    """What the detector found, as JSON values."""
    return {
        "count": found.reading,
        "verdict": found.verdict,
        "reason": found.reason,
        "confidence": round(found.confidence, _DIGITS),
        "cycles": _rounded(found.cycles),
        "score": round(found.score, _DIGITS),
        "period_s": None
        if found.period.period_s is None
        else round(found.period.period_s, _DIGITS),
        "rejected": _rounded(found.rejected),
        "shots": [
            {
                "start_s": round(shot.start_s, _DIGITS),
                "end_s": round(shot.end_s, _DIGITS),
                "count": len(shot.cycles),
                "verdict": shot.judgement.verdict,
                "reason": shot.judgement.reason,
                "confidence": round(shot.judgement.confidence, _DIGITS),
            }
            for shot in found.shots
        ],
    }


def _rounded(cycles: tuple[Cycle, ...]) -> list[list[float]]:
    return [[round(start, _DIGITS), round(end, _DIGITS)] for start, end in cycles]

"""What a teacher hands over: for each clip an accepted text, or the reason why there is none.

Owns the output of `actrep cot`: OUT, one JSON object `{"id", "text", "teacher", "cycles_source"}` a
line, and OUT.report.json beside it, in which every clip of the input is counted.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.files import write_lines
from data_prep.schema import Clip


@dataclass(frozen=True)
class Outcome:
    """What came of one clip.

    Attributes:
        clip: The clip, with the marks that its text was written from.
        text: The accepted answer, or None.
        reason: Why there is none, in a word; None where there is one.
        detail: The same in a sentence.
    """

    clip: Clip
    text: str | None = None
    reason: str | None = None
    detail: str = ""


@dataclass
class CotReport:
    """How much was accepted, and why the rest was not.

    Attributes:
        teacher: Name of the teacher.
        num_clips: Clips that were looked at.
        num_accepted: Clips with a text.
        rejected: Clips without one, (id, reason, detail) each.
        figures: What else the teacher has to say, JSON-able.
    """

    teacher: str
    num_clips: int = 0
    num_accepted: int = 0
    rejected: list[tuple[str, str, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def reasons(self) -> Counter[str]:
        """Clips without a text, by reason."""
        return Counter(reason for _, reason, _ in self.rejected)

    def add(self, outcome: Outcome) -> None:
        """Count one clip."""
        self.num_clips += 1
        if outcome.text is not None:
            self.num_accepted += 1
        else:
            self.rejected.append((outcome.clip.id, outcome.reason or "unknown", outcome.detail))

    def as_json(self) -> dict[str, Any]:
        """The report as the content of OUT.report.json."""
        return {
            "teacher": self.teacher,
            "clips": self.num_clips,
            "accepted": self.num_accepted,
            "rejected": dict(self.reasons.most_common()),
            **self.figures,
            "rejected_clips": [
                {"id": name, "reason": reason, "detail": detail}
                for name, reason, detail in self.rejected
            ],
        }


def report_path(out: Path) -> Path:
    """Path of the report on an output."""
    return out.with_name(f"{out.name}.report.json")


def write_answers(out: Path, outcomes: Iterable[Outcome], teacher: str) -> CotReport:
    """Write the accepted texts and the report, each all or nothing; returns the report."""
    report = CotReport(teacher)

    def lines() -> Iterator[str]:
        for outcome in outcomes:
            report.add(outcome)
            if outcome.text is not None:
                yield json.dumps(
                    {
                        "id": outcome.clip.id,
                        "text": outcome.text,
                        "teacher": teacher,
                        "cycles_source": outcome.clip.cycles_source,
                    },
                    ensure_ascii=False,
                )

    write_lines(out, lines())
    write_report(out, report)
    return report


def write_report(out: Path, report: CotReport) -> None:
    """Write OUT.report.json."""
    write_lines(report_path(out), [json.dumps(report.as_json(), indent=1, ensure_ascii=False)])

"""What was found in a file of clips, and the files that say so."""

import json
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.files import write_lines
from data_prep.validation.findings import KINDS, Finding
from data_prep.validation.view import Estimate, View


@dataclass
class Report:
    """The findings of a file of clips, and what a model would see of them.

    Attributes:
        path: The file.
        split: The split that was asked for; None is all of them.
        view: How clips are shown.
        allow_outside: Folders, other than the file's own, that videos may lie in.
        num_rows: Lines that are not blank.
        num_other_rows: Rows of other splits, looked at for leaks only.
        num_blank: Blank lines, which are allowed.
        findings: All of them, by row.
        estimates: What a model sees of each clip; none for rows that cannot be shown.
        cycle_lengths_s: Length of every mark, seconds.
        num_videos: Files that the clips lie in.
        num_videos_checked: Files that were opened and decoded; the rest has findings, or decoding
            was not asked for.
        num_frames_decoded: Frames that were decoded in them.
    """

    path: Path
    split: str | None
    view: View
    allow_outside: tuple[str, ...] = ()
    num_rows: int = 0
    num_other_rows: int = 0
    num_blank: int = 0
    findings: list[Finding] = field(default_factory=list)
    estimates: list[Estimate] = field(default_factory=list)
    cycle_lengths_s: "array[float]" = field(default_factory=lambda: array("f"))
    num_videos: int = 0
    num_videos_checked: int = 0
    num_frames_decoded: int = 0

    def rows_of(self, level: str) -> set[int]:
        """Rows with at least one finding of a level."""
        return {finding.row for finding in self.findings if finding.level == level}

    @property
    def num_errors(self) -> int:
        """Rows with errors."""
        return len(self.rows_of("error"))

    @property
    def num_warnings(self) -> int:
        """Rows with warnings and without errors."""
        return len(self.rows_of("warning") - self.rows_of("error"))

    @property
    def num_ok(self) -> int:
        """Rows without findings."""
        return self.num_rows - self.num_other_rows - self.num_errors - self.num_warnings

    def by_kind(self) -> dict[tuple[str, str], list[Finding]]:
        """Findings by (level, kind), errors first, in the order of `KINDS`."""
        found: dict[tuple[str, str], list[Finding]] = {
            (level, kind): [] for level in ("error", "warning") for kind in KINDS
        }
        for finding in self.findings:
            found[finding.level, finding.kind].append(finding)
        return {key: findings for key, findings in found.items() if findings}

    def to_json(self) -> dict[str, Any]:
        """The report as an object of JSON; the estimates of single clips are not in it."""
        kinds = [
            {
                "level": level,
                "kind": kind,
                "meaning": KINDS[kind],
                "num_findings": len(findings),
                "num_rows": len({finding.row for finding in findings}),
            }
            for (level, kind), findings in self.by_kind().items()
        ]
        return {
            "file": str(self.path),
            "split": self.split,
            "view": asdict(self.view),
            "rows": {
                "read": self.num_rows,
                "ok": self.num_ok,
                "with_warnings": self.num_warnings,
                "with_errors": self.num_errors,
                "of_other_splits": self.num_other_rows,
                "blank_lines": self.num_blank,
            },
            "videos": {
                "files": self.num_videos,
                "decoded": self.num_videos_checked,
                "frames_decoded": self.num_frames_decoded,
            },
            "kinds": kinds,
            "distributions": self.distributions(),
            "nyquist": self.nyquist(),
            "findings": [
                {"file": str(self.path), **asdict(finding), "message": finding.message}
                for finding in self.findings
            ],
        }

    def distributions(self) -> dict[str, dict[str, float]]:
        """Least, median, 95th percentile, most and total of what clips have and are shown with."""
        columns: dict[str, Sequence[float]] = {
            "count": [e.count for e in self.estimates],
            "duration_s": [e.duration_s for e in self.estimates],
            "cycle_s": self.cycle_lengths_s,
            "frames_shown": [e.num_frames for e in self.estimates],
            "visual_tokens": [e.visual_tokens for e in self.estimates],
        }
        return {name: _spread(values) for name, values in columns.items() if len(values)}

    def nyquist(self) -> dict[str, float]:
        """How many clips repeat too fast for the rate at which they are shown."""
        samples = [e.samples_per_cycle for e in self.estimates if e.samples_per_cycle is not None]
        patches = [e.patches_per_cycle for e in self.estimates if e.patches_per_cycle is not None]
        fps = self.view.fps
        return {
            "clips_that_repeat": len(samples),
            "below_2_samples": sum(n < 2 for n in samples),
            "below_2_temporal_patches": sum(n < 2 for n in patches),
            "shown_below_wanted_fps": sum(e.fps < fps - 1e-6 for e in self.estimates),
            "fps": fps,
            "patches_per_s": fps / self.view.frames_per_patch,
        }


def write_report(report: Report, folder: str | Path) -> Path:
    """Write `report.json`, and `estimates.jsonl` with what a model sees of each clip; atomically.

    Returns:
        The path of the first.
    """
    folder = Path(folder)
    write_lines(folder / "estimates.jsonl", (json.dumps(e.to_json()) for e in report.estimates))
    path = folder / "report.json"
    write_lines(path, [json.dumps(report.to_json(), indent=1, allow_nan=False)])
    return path


def is_failure(report: Report, *, strict: bool) -> bool:
    """Whether the file should not be used: errors, or with `strict` also warnings."""
    return bool(report.num_errors or (strict and report.num_warnings))


def _spread(values: Sequence[float]) -> dict[str, float]:
    numbers = np.asarray(values, np.float64)
    low, middle, high, top = np.quantile(numbers, [0.0, 0.5, 0.95, 1.0])
    spread = {"min": low, "median": middle, "p95": high, "max": top, "total": numbers.sum()}
    return {name: round(float(value), 4) for name, value in spread.items()}

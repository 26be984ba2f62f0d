"""Validating a file of clips: every row is read, and whatever is wrong with it is told.

Owns the flow and the report: rows one by one (a bad one is a finding, not the end), then what rows
have to do with one another (ids, windows, splits), then their videos, in processes that may die.

    rows = rows without findings + with warnings only + with errors + of other splits
"""

import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.clip_checks import (
    KINDS,
    Estimate,
    Finding,
    RowFindings,
    View,
    check_cycles,
    check_facts,
    check_path,
    check_values,
    check_view,
    check_window,
    estimate_view,
)
from data_prep.decode_check import Check, VideoFacts, VideoTask, check_in_processes, check_video
from data_prep.schema import Clip, DataError, RowError, parse_clip, write_lines
from data_prep.video import plan_indices

_BOM = b"\xef\xbb\xbf"
_SHOWN = 200  # characters of a line that cannot be read

Progress = Callable[[int, int, int, int], None]


@dataclass(frozen=True)
class Decoding:
    """How videos are checked.

    Attributes:
        num_workers: Processes that decode.
        deadline_s: Seconds that one video may take.
        is_on: Whether videos are opened and the frames that a model sees are decoded. Without,
            files are only looked at and hashed.
        check: What the processes run for one video.
    """

    num_workers: int
    deadline_s: float
    is_on: bool = True
    check: Check = check_video


@dataclass
class Report:
    """What was found.

    Attributes:
        path: The file.
        split: The split that was asked for; None is all of them.
        view: How clips are shown.
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
    num_rows: int = 0
    num_other_rows: int = 0
    num_blank: int = 0
    findings: list[Finding] = field(default_factory=list)
    estimates: list[Estimate] = field(default_factory=list)
    cycle_lengths_s: array = field(default_factory=lambda: array("f"))
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


def _spread(values: Sequence[float]) -> dict[str, float]:
    numbers = np.asarray(values, np.float64)
    low, middle, high, top = np.quantile(numbers, [0.0, 0.5, 0.95, 1.0])
    spread = {"min": low, "median": middle, "p95": high, "max": top, "total": numbers.sum()}
    return {name: round(float(value), 4) for name, value in spread.items()}


def validate_file(
    path: str | Path,
    view: View,
    decoding: Decoding,
    *,
    split: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check every row of a file of clips, and their videos.

    Args:
        path: JSONL file of clips.
        view: How they are shown to a model.
        decoding: How their videos are checked.
        split: Findings for rows of this split only; the rest is looked at for leaks. A row whose
            split cannot be read belongs to every split.
        progress: Called with (videos done, videos in all, frames decoded, videos with problems).

    Raises:
        DataError: if there is no such file, or it holds no row.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file, expected a JSONL file of clips")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: permission denied")
    report = Report(path, split, view)
    rows = [row for row in _read_rows(report) if row is not None]
    if report.num_rows == report.num_other_rows:
        raise DataError(f"{path}: holds no clip" + (f" of {split}" if split else ""))
    _compare_rows(report, rows)
    facts = _check_videos(report, rows, decoding, progress)
    _compare_with_videos(report, rows, facts, decoding)
    report.findings.sort(key=lambda finding: finding.row)
    return report


@dataclass(frozen=True)
class _Row:
    """A row that is a clip. Its marks have been looked at and are not kept."""

    number: int
    clip: Clip  # `video` as written, `cycles` None
    path: str  # of the video, absolute, without `.` and `..`
    is_other: bool  # of a split that was not asked for
    estimate: Estimate | None

    @property
    def make(self) -> RowFindings:
        return RowFindings(self.number, self.clip.id, self.clip.video, self.clip.flags)

    def indices(self, view: View) -> tuple[int, ...]:
        """Frames that the clip is shown with."""
        if self.estimate is None or self.is_other:
            return ()
        limits = {"min_frames": view.min_frames, "max_frames": view.max_frames}
        return plan_indices(self.clip, fps=view.fps, **limits)[0]


# --- rows one by one


def _read_rows(report: Report) -> Iterator[_Row | None]:
    folder = os.path.abspath(report.path.parent)  # noqa: PTH100 - `..` is taken out as text
    with report.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if not line.strip():
                report.num_blank += 1
                continue
            report.num_rows += 1
            yield _read_row(report, folder, number, line)


def _read_row(report: Report, folder: str, number: int, line: bytes) -> _Row | None:
    """A clip and its findings, or the finding why it is none."""
    make = RowFindings(number, "", "")
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        value = f"byte 0x{line[error.start]:02x} at {error.start}"
        report.findings.append(make.make("not_utf8", "", value, "text in UTF-8"))
        return None
    try:
        values = json.loads(text, object_pairs_hook=_without_repeated_keys)
    except (ValueError, RecursionError) as error:
        value = f"{text[:_SHOWN]!r} ({error})"
        report.findings.append(make.make("not_json", "", value, "one JSON object"))
        return None
    try:
        clip = parse_clip(values, str(number))
    except RowError as error:
        make = RowFindings(number, _text(values, "id"), _text(values, "video"))
        finding = make.make("schema", error.key, error.value or "missing", error.expected)
        report.findings.append(finding)
        return None
    is_other = report.split is not None and clip.split != report.split
    make = RowFindings(number, clip.id, clip.video, clip.flags)
    estimate = None
    if is_other:
        report.num_other_rows += 1
    else:
        estimate = _check_row(report, clip, make)
    video = os.path.normpath(Path(folder, clip.video))
    return _Row(number, replace(clip, cycles=None), video, is_other, estimate)


def _check_row(report: Report, clip: Clip, make: RowFindings) -> Estimate | None:
    """Add the findings of one clip; returns its estimate if it can be shown."""
    report.findings += check_path(clip.video, make)
    if implausible := list(check_values(clip, make)):
        report.findings += implausible
        return None
    report.findings += check_cycles(clip, make)
    if outside := list(check_window(clip, make)):
        report.findings += outside
        return None
    estimate = estimate_view(clip, make.row, report.view)
    report.findings += check_view(clip, estimate, report.view, make)
    report.estimates.append(estimate)
    report.cycle_lengths_s.extend(end - start for start, end in clip.cycles or () if end > start)
    return estimate


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated = next(key for key, number in Counter(k for k, _ in pairs).items() if number > 1)
        raise ValueError(f"key {repeated!r} is given twice")
    return values


def _text(values: Any, key: str) -> str:
    value = values.get(key) if isinstance(values, dict) else None
    return value[:_SHOWN] if isinstance(value, str) else ""


# --- rows and other rows


def _compare_rows(report: Report, rows: Iterable[_Row]) -> None:
    """Ids and windows that were used before; videos that are in several splits."""
    ids: dict[str, int] = {}
    windows: dict[tuple[str, float, float], _Row] = {}
    for row in rows:
        clip = row.clip
        first = ids.setdefault(clip.id, row.number)
        if first != row.number:
            _add(report, row, "duplicate_id", "id", f"{clip.id!r} (row {first})", "one of its own")
        earlier = windows.setdefault((row.path, clip.start_s, clip.end_s), row)
        if earlier is not row:
            _compare_with_earlier(report, row, earlier)
    by_video: dict[str, list[_Row]] = {}
    for row in rows:
        by_video.setdefault(row.path, []).append(row)
    for users in by_video.values():
        _find_leak(report, users, "leak_of_video", of_copies=False)


def _compare_with_earlier(report: Report, row: _Row, earlier: _Row) -> None:
    clip, other = row.clip, earlier.clip
    if clip.action == other.action and clip.count != other.count:
        value = f"{clip.count} ({other.count} in row {earlier.number})"
        _add(report, row, "conflicting_counts", "count", value, "one count for one window")
    else:
        value = f"{clip.video!r} {clip.start_s:g} to {clip.end_s:g} s (row {earlier.number})"
        _add(report, row, "duplicate_clip", "video", value, "a window of its own")


def _find_leak(report: Report, users: list[_Row], kind: str, *, of_copies: bool) -> None:
    """Name each row that shares its video with another split, and one row there.

    Args:
        report: Takes the findings.
        users: Rows of one file, or of files with the same bytes.
        kind: Of the findings.
        of_copies: Whether the row there must have another file.
    """
    firsts: dict[str, list[_Row]] = {}  # of each split, two with different files
    for row in users:
        kept = firsts.setdefault(row.clip.split, [])
        if len(kept) < 2 and all(row.path != other.path for other in kept):
            kept.append(row)
    others = sorted(chain.from_iterable(firsts.values()), key=lambda row: row.number)
    for row in users:
        for other in others:
            if other.clip.split == row.clip.split or (of_copies and other.path == row.path):
                continue
            value = (
                f"{row.clip.video!r} ({row.clip.split}; {other.clip.split} in row {other.number}"
            )
            value += f": {other.clip.video!r})" if of_copies else ")"
            _add(report, row, kind, "video", value, "a video of one split")
            break


def _add(report: Report, row: _Row, kind: str, key: str, value: str, expected: str) -> None:
    if not row.is_other:
        report.findings.append(row.make.make(kind, key, value, expected))


# --- rows and their videos


def _check_videos(
    report: Report, rows: Iterable[_Row], decoding: Decoding, progress: Progress | None
) -> dict[str, VideoFacts]:
    """Facts of every video, each file once."""
    indices: dict[str, set[int]] = {}
    opened: set[str] = set()
    for row in rows:
        shown = row.indices(report.view) if decoding.is_on else ()
        indices.setdefault(row.path, set()).update(shown)
        if decoding.is_on and not row.is_other:
            opened.add(row.path)
    tasks = [VideoTask(p, tuple(sorted(found)), p in opened) for p, found in indices.items()]
    facts: dict[str, VideoFacts] = {}
    num_bad = 0
    checking = check_in_processes(
        tasks,
        num_workers=decoding.num_workers,
        deadline_s=decoding.deadline_s,
        check=decoding.check,
    )
    with closing(checking):
        for found in checking:
            facts[found.path] = found
            num_bad += found.problem is not None
            report.num_frames_decoded += found.num_decoded
            report.num_videos_checked += found.num_decoded > 0
            if progress:
                progress(len(facts), len(tasks), report.num_frames_decoded, num_bad)
    report.num_videos = len(facts)
    return facts


def _compare_with_videos(
    report: Report, rows: Iterable[_Row], facts: dict[str, VideoFacts], decoding: Decoding
) -> None:
    by_content: dict[str, list[_Row]] = {}
    for row in rows:
        found = facts[row.path]
        if found.sha256 is not None:
            by_content.setdefault(found.sha256, []).append(row)
        if row.is_other:
            continue
        if found.problem:
            value = f"{row.clip.video!r} ({found.message})"
            _add(report, row, found.problem, "video", value, "a video that decodes")
        elif decoding.is_on and row.estimate is not None:
            last = row.indices(report.view)[-1]
            report.findings += check_facts(row.clip, row.estimate, found, last, row.make)
    for users in by_content.values():
        _compare_content(report, users)


def _compare_content(report: Report, users: list[_Row]) -> None:
    """Different files with the same bytes: a leak between splits, else a duplicate."""
    first = users[0]
    copies = [row for row in users if row.path != first.path]
    if copies and len({row.clip.split for row in users}) > 1:
        _find_leak(report, users, "leak_of_content", of_copies=True)
        return
    for row in copies:
        value = f"{row.clip.video!r} (row {first.number}: {first.clip.video!r})"
        _add(report, row, "duplicate_content", "video", value, "a file of its own")


# --- files


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

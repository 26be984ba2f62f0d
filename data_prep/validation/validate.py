"""The flow of a validation: rows, rows and other rows, rows and their videos.

rows = rows without findings + with warnings only + with errors + of other splits
"""

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import DataError
from data_prep.validation.clip_checks import check_facts
from data_prep.validation.comparisons import compare_content, compare_rows
from data_prep.validation.decoder_processes import check_in_processes
from data_prep.validation.report import Report
from data_prep.validation.rows import Row, add_finding, read_rows
from data_prep.validation.video_facts import Check, VideoFacts, VideoTask, check_video
from data_prep.validation.view import View

Progress = Callable[[int, int, int, int], None]


@dataclass(frozen=True)
class Decoding:
    """How videos are checked.

    Attributes:
        num_workers: Processes that decode.
        deadline_s: Seconds that one video may take.
        is_on: Whether videos are opened and the frames that a model sees are decoded. Without,
            files are only looked at and hashed.
        is_deep: Whether the frames that a model sees are compared with a pass through the whole
            video, whatever its kind; without, only where the reader leaps in a risky kind.
        check: What the processes run for one video.
    """

    num_workers: int
    deadline_s: float
    is_on: bool = True
    is_deep: bool = False
    check: Check = check_video


def validate_file(
    path: str | Path,
    view: View,
    decoding: Decoding,
    *,
    split: str | None = None,
    allow_outside: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Report:
    """Check every row of a file of clips, and their videos.

    Args:
        path: JSONL file of clips.
        view: How they are shown to a model.
        decoding: How their videos are checked.
        split: Findings for rows of this split only; the rest is looked at for leaks. A row whose
            split cannot be read belongs to every split.
        allow_outside: Folders, other than the file's own, that videos may lie in.
        progress: Called with (videos done, videos in all, frames decoded, videos with problems).

    Raises:
        DataError: if there is no such file, or it holds no row.
    """
    path = Path(path)
    report = Report(path, split, view, allow_outside)
    rows = [row for row in read_rows(report) if row is not None]
    if report.num_rows == report.num_other_rows:
        raise DataError(f"{path}: holds no clip" + (f" of {split}" if split else ""))
    compare_rows(report, rows)
    facts = _check_videos(report, rows, decoding, progress)
    _compare_with_videos(report, rows, facts, decoding)
    report.findings.sort(key=lambda finding: finding.row)
    return report


def _check_videos(
    report: Report, rows: Iterable[Row], decoding: Decoding, progress: Progress | None
) -> dict[str, VideoFacts]:
    """Facts of every video, each file once."""
    times: dict[str, set[float]] = {}
    opened: set[str] = set()
    rates: dict[str, float] = {}
    for row in rows:
        if row.is_outside:
            continue
        shown = row.times_s(report.view) if decoding.is_on else ()
        times.setdefault(row.path, set()).update(shown)
        rates.setdefault(row.path, row.clip.video_fps)
        if decoding.is_on and not row.is_other:
            opened.add(row.path)
    tasks = [
        VideoTask(path, tuple(sorted(found)), path in opened, decoding.is_deep, rates[path])
        for path, found in times.items()
    ]
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
    report: Report, rows: Iterable[Row], facts: dict[str, VideoFacts], decoding: Decoding
) -> None:
    by_content: dict[str, list[Row]] = {}
    for row in rows:
        if row.is_outside:
            continue
        found = facts[row.path]
        if found.sha256 is not None:
            by_content.setdefault(found.sha256, []).append(row)
        if row.is_other:
            continue
        if found.problem:
            value = f"{row.clip.video!r} ({found.message})"
            add_finding(report, row, found.problem, "video", value, "a video that decodes")
        elif decoding.is_on and row.estimate is not None:
            last = row.times_s(report.view)[-1]
            report.findings += check_facts(row.clip, row.estimate, found, last, row.make)
    for users in by_content.values():
        compare_content(report, users)

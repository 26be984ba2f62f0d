"""Rows and other rows: ids, windows and files that were used before, and leaks between splits."""

from collections.abc import Iterable
from itertools import chain

from data_prep.validation.report import Report
from data_prep.validation.rows import Row, add_finding


def compare_rows(report: Report, rows: Iterable[Row]) -> None:
    """Ids and windows that were used before; videos that are in several splits."""
    ids: dict[str, int] = {}
    windows: dict[tuple[str, float, float, str], Row] = {}  # two actions are two clips
    for row in rows:
        clip = row.clip
        first = ids.setdefault(clip.id, row.number)
        if first != row.number:
            add_finding(
                report, row, "duplicate_id", "id", f"{clip.id!r} (row {first})", "one of its own"
            )
        window = (row.path, clip.start_s, clip.end_s, clip.action)
        earlier = windows.setdefault(window, row)
        if earlier is not row:
            _compare_with_earlier(report, row, earlier)
    by_video: dict[str, list[Row]] = {}
    for row in rows:
        by_video.setdefault(row.path, []).append(row)
    for users in by_video.values():
        _find_leak(report, users, "leak_of_video", of_copies=False)


def compare_content(report: Report, users: list[Row]) -> None:
    """Different files with the same bytes: a leak between splits, else a duplicate."""
    first = users[0]
    copies = [row for row in users if row.path != first.path]
    if copies and len({row.clip.split for row in users}) > 1:
        _find_leak(report, users, "leak_of_content", of_copies=True)
        return
    for row in copies:
        value = f"{row.clip.video!r} (row {first.number}: {first.clip.video!r})"
        add_finding(report, row, "duplicate_content", "video", value, "a file of its own")


def _compare_with_earlier(report: Report, row: Row, earlier: Row) -> None:
    clip, other = row.clip, earlier.clip
    if clip.count != other.count:
        value = f"{clip.count} ({other.count} in row {earlier.number})"
        add_finding(report, row, "conflicting_counts", "count", value, "one count for one window")
    else:
        value = f"{clip.video!r} {clip.start_s:g} to {clip.end_s:g} s (row {earlier.number})"
        add_finding(report, row, "duplicate_clip", "video", value, "a window of its own")


def _find_leak(report: Report, users: list[Row], kind: str, *, of_copies: bool) -> None:
    """Name each row that shares its video with another split, and one row there.

    Args:
        report: Takes the findings.
        users: Rows of one file, or of files with the same bytes.
        kind: Of the findings.
        of_copies: Whether the row there must have another file.
    """
    firsts: dict[str, list[Row]] = {}  # of each split, two with different files
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
            add_finding(report, row, kind, "video", value, "a video of one split")
            break

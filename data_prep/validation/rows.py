"""Rows one by one: each line is a clip with its findings, or the finding why it is none."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.files import read_lines
from data_prep.roots import VideoRoots
from data_prep.schema import Clip, RowError, parse_clip
from data_prep.strict_json import JsonError, parse_json
from data_prep.validation.clip_checks import (
    check_cycles,
    check_values,
    check_view,
    check_window,
)
from data_prep.validation.findings import Finding, RowFindings
from data_prep.validation.report import Report
from data_prep.validation.view import Estimate, View, estimate_view
from data_prep.video import VideoError, image_size, plan_times

_SHOWN = 200  # characters of a line that cannot be read


@dataclass(frozen=True)
class Row:
    """A row that is a clip. Its marks have been looked at and are not kept."""

    number: int
    clip: Clip  # `video` as written, `cycles` None
    path: str  # of the video, absolute, without `.` and `..`
    is_other: bool  # of a split that was not asked for
    is_outside: bool  # of the folders that videos may lie in: the video is not opened
    estimate: Estimate | None

    @property
    def make(self) -> RowFindings:
        """Makes findings of this row."""
        return RowFindings(self.number, self.clip.id, self.clip.video, self.clip.flags)

    def times_s(self, view: View) -> tuple[float, ...]:
        """Seconds of the video at which the clip is shown."""
        if self.estimate is None or self.is_other:
            return ()
        limits = {"min_frames": view.min_frames, "max_frames": view.max_frames}
        return plan_times(self.clip, fps=view.fps, **limits)[0]


def add_finding(report: Report, row: Row, kind: str, key: str, value: str, expected: str) -> None:
    """Add a finding of a row, unless it is of a split that was not asked for."""
    if not row.is_other:
        report.findings.append(row.make.make(kind, key, value, expected))


def read_rows(report: Report) -> Iterator[Row | None]:
    """Read and count every line and add its findings to the report; None where it is no clip."""
    roots = VideoRoots(report.path.parent, report.allow_outside)
    for line in read_lines(report.path, "a JSONL file of clips"):
        if line.is_blank:
            report.num_blank += 1
            continue
        report.num_rows += 1
        yield _read_row(report, roots, line.number, line.content)


def _read_row(report: Report, roots: VideoRoots, number: int, line: bytes) -> Row | None:
    """A clip and its findings, or the finding why it is none."""
    make = RowFindings(number, "", "")
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        value = f"byte 0x{line[error.start]:02x} at {error.start}"
        report.findings.append(make.make("not_utf8", "", value, "text in UTF-8"))
        return None
    try:
        values = parse_json(text, allows_any_number=True, allows_surrogates=True)
    except JsonError as error:
        value = f"{text[: _SHOWN - 80]!r} ({error})"
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
    outside = roots.problem(clip.video)
    if is_other:
        report.num_other_rows += 1
    else:
        estimate = _check_row(report, clip, make)
    video = os.path.normpath(Path(roots.folder, clip.video))
    row = Row(number, replace(clip, cycles=None), video, is_other, bool(outside), estimate)
    if outside:
        add_finding(report, row, "path_outside_folder", "video", outside, roots.expected)
    if not is_other:
        report.findings += _check_images(clip, roots, make)
    return row


def _check_images(clip: Clip, roots: VideoRoots, make: RowFindings) -> Iterator[Finding]:
    """The images before a clip: whether they may be read, and can, and are as large as told."""
    for i, image in enumerate(clip.images):
        key = f"images[{i}].image"
        if outside := roots.problem(image.image):
            yield make.make("path_outside_folder", key, outside, roots.expected)
            continue
        try:
            height, width = image_size(Path(roots.folder, image.image))
        except VideoError as error:
            told = str(error).partition(": ")[2]
            yield make.make("unreadable_video", key, f"{image.image!r} ({told})", "an image")
            continue
        if (width, height) != (image.width, image.height):
            found = f"{width}x{height} as in the file"
            size = f"{image.width}x{image.height}"
            yield make.make("size_differs", f"images[{i}].width", size, found)


def _check_row(report: Report, clip: Clip, make: RowFindings) -> Estimate | None:
    """Add the findings of one clip; returns its estimate if it can be shown."""
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


def _text(values: Any, key: str) -> str:
    value = values.get(key) if isinstance(values, dict) else None
    return value[:_SHOWN] if isinstance(value, str) else ""

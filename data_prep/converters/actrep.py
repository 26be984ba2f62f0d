"""ActRep-R1's files: CSV `video_id, split, action, count`, or JSON Lines with reasoning.

JSON Lines: `{"video_id", "split", "action", "gt_count", "cot"}`; an older form keeps the labels in
`"ground_truth": {"action", "count"}`. The clip is the whole video; there are no marks. `cot` is the
reasoning that its model was taught, in another grammar than ours, and is not read.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_prep.converters.annotation import Annotation, Source
from data_prep.converters.csv_rows import Columns, read_table
from data_prep.converters.rows import Record, read_json_lines, size_of
from data_prep.converters.values import (
    action_name,
    count_of,
    name_of,
    split_named,
    text_of,
    without_suffix,
)

_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm")
_COUNTS = ("gt_count", "count")


def actrep(paths: Sequence[Path], *, split: str | None = None) -> Source:
    """The rows of some of its files.

    Args:
        paths: .csv, .jsonl or .json (one object a line) files.
        split: Of all rows; None goes by each row's own field.
    """
    starts = [0, *accumulate(size_of([path]) for path in paths)]

    def records() -> Iterator[Record]:
        for path, start in zip(paths, starts, strict=False):
            if path.suffix.lower() == ".csv":
                required = ("video_id", "count|gt_count", *(() if split else ("split",)))
                columns = Columns(required, ("action", "split"))
                yield from read_table(path, columns, split=split or "", before=start)
            else:
                yield from read_json_lines(path, split=split or "", before=start)

    return Source("actrep", records(), _parse, starts[-1])


def _parse(record: Record) -> Annotation:
    values = record.values
    video_id = name_of(values, "video_id")
    split = record.split or split_named(text_of(values, "split"))
    labels = _labels(values)
    has_suffix = video_id.lower().endswith(_SUFFIXES)
    names = [video_id] if has_suffix else [video_id + suffix for suffix in _SUFFIXES]
    folders = ("", f"{split}/", *(("valid/", "val/") if split == "validation" else ()))
    return Annotation(
        name=without_suffix(video_id) if has_suffix else video_id,
        split=split,
        videos=tuple(f"{folder}{name}" for name in names for folder in folders),
        action=action_name(text_of(labels, "action") or text_of(values, "action")),
        count=count_of(labels, next((key for key in _COUNTS if key in labels), "count")),
    )


def _labels(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where the labels are: in the row itself, or in its older `ground_truth`."""
    older = values.get("ground_truth")
    if isinstance(older, dict) and not any(key in values for key in _COUNTS):
        return older
    return values

"""Any other table: a CSV file and a word on what its columns mean."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from data_prep.converters.annotation import Annotation, Source
from data_prep.converters.csv_rows import Columns, read_header, read_table
from data_prep.converters.rows import BadRowError, Record, size_of
from data_prep.converters.values import (
    Pairs,
    action_name,
    count_of,
    cycles_or_none,
    fps_of,
    mark_of,
    marked_cycles,
    name_of,
    split_named,
    split_of_path,
    text_of,
    time_of,
    without_suffix,
)
from data_prep.files import DataError
from data_prep.strict_json import JsonError, parse_json

FIELDS = ("video", "count", "id", "split", "action", "start", "end", "fps", "cycles")
_RANGE = re.compile(r"\s*([^\s-]+)\s*-\s*([^\s-]+)\s*", re.ASCII)


@dataclass(frozen=True)
class TableFormat:
    """What a table's columns mean.

    Attributes:
        columns: Column of each of `FIELDS`; a field that is not named has the column of its own
            name, if there is one. `cycles` is one cell with all marks, "0.5-1.2; 1.2-2.0" or
            "[[0.5, 1.2], [1.2, 2.0]]".
        marks: Prefix of mark columns (L: L1, L2, ... as in RepCount), in place of `cycles`.
        unit: Of start, end and the marks.
        first_frame: The number of a video's first frame, where the unit is frames.
        delimiter: Between fields; None finds it.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    marks: str | None = None
    unit: Literal["frames", "seconds"] = "seconds"
    first_frame: Literal[0, 1] = 0
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.columns) - set(FIELDS)):
            raise DataError(f"column {unknown[0]!r}: expected one of {', '.join(FIELDS)}")
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise DataError(f"delimiter={self.delimiter!r}, expected one character")
        if self.marks is not None and "cycles" in self.columns:
            raise DataError("give the marks as columns or as one cell, not both")
        if self.first_frame and self.unit == "seconds":
            raise DataError("first_frame=1 is for the unit frames, the unit is seconds")

    def column(self, name: str) -> str:
        """The column of a field."""
        return self.columns.get(name, name)


def table(
    paths: Sequence[Path],
    *,
    dataset: str = "csv",
    split: str | None = None,
    layout: TableFormat | None = None,
) -> Source:
    """The rows of some tables of one's own.

    Args:
        paths: The tables.
        dataset: Name of the set.
        split: Of all rows; None goes by the column, else by the files' names.
        layout: What the columns mean; by default each is named as its field.

    Raises:
        DataError: if nothing says which split the rows are of.
    """
    layout = layout or TableFormat()
    starts = [0, *accumulate(size_of([path]) for path in paths)]
    columns = Columns(
        (layout.column("video"), layout.column("count"), *layout.columns.values()),
        tuple(name for name in FIELDS if name not in layout.columns),
        layout.marks,
        "say which it is with --column FIELD=COLUMN",
    )

    def records() -> Iterator[Record]:
        for path, start in zip(paths, starts, strict=False):
            header = read_header(path, columns, delimiter=layout.delimiter)
            has_column = layout.column("split") in header.names
            of_file = split or ("" if has_column else split_of_path(path, None))
            yield from read_table(
                path, columns, split=of_file, before=start, delimiter=layout.delimiter
            )

    def parse(record: Record) -> Annotation:
        return _parse(record, layout)

    return Source(dataset, records(), parse, starts[-1])


def _parse(record: Record, layout: TableFormat) -> Annotation:
    values = record.values
    video = name_of(values, layout.column("video"))
    count = count_of(values, layout.column("count"))
    least = float(layout.first_frame)
    in_frames = layout.unit == "frames"
    start = time_of(values, layout.column("start"), least=least, in_frames=in_frames)
    end = time_of(values, layout.column("end"), least=least, in_frames=in_frames)
    cycles, flags = _cycles(values, layout, count)
    part = "" if start is None else f"-{start:g}"
    return Annotation(
        name=text_of(values, layout.column("id")) or without_suffix(video) + part,
        split=record.split or split_named(text_of(values, layout.column("split"))),
        videos=(video,),
        action=action_name(text_of(values, layout.column("action"))),
        count=count,
        cycles=cycles,
        start=start,
        end=end,
        unit=layout.unit,
        first_frame=layout.first_frame,
        fps=fps_of(values, layout.column("fps")),
        flags=flags,
    )


def _cycles(
    values: Mapping[str, Any], layout: TableFormat, count: int
) -> tuple[Pairs | None, tuple[str, ...]]:
    in_frames = layout.unit == "frames"
    if layout.marks is not None:
        marked = marked_cycles(
            values, layout.marks, first_frame=layout.first_frame, in_frames=in_frames
        )
        return cycles_or_none(marked, count)
    column = layout.column("cycles")
    text = text_of(values, column)
    if text:
        return cycles_or_none(_cell(text, column, layout.first_frame, in_frames=in_frames), count)
    return (None, ("no_cycles",) if "cycles" in layout.columns and count else ())


def _cell(text: str, column: str, first_frame: int, *, in_frames: bool) -> Pairs:
    """Marks in one cell."""
    pairs: list[Any]
    if text.startswith("["):
        try:
            pairs = parse_json(text, allows_any_number=True)
        except JsonError as error:
            raise BadRowError("bad_mark", f"{column}: {error}") from error
    else:
        # Semicolons separate the pairs, so that a comma can only be a decimal one.
        parts = [part for part in text.replace(",", ".").split(";") if part.strip()]
        pairs = [match.groups() if (match := _RANGE.fullmatch(part)) else part for part in parts]
    cycles = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRowError(
                "bad_mark", f"{column}[{i}]={str(pair)[:80]!r}, expected start and end"
            )
        start, end = (
            mark_of(x, f"{column}[{i}]", first_frame=first_frame, in_frames=in_frames) for x in pair
        )
        if start is None or end is None:
            raise BadRowError(
                "half_a_cycle", f"{column}[{i}] has no {'end' if end is None else 'start'}"
            )
        cycles.append((start, end))
    return tuple(cycles)

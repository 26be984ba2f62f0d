"""RepCount-A (TransRAC, Hu et al., CVPR 2022): train.csv, valid.csv and test.csv.

Columns: type, name, count, L1, L2, ...; L(2i-1) and L(2i) are start and end of repetition i, in
frames of the original video. Integers and floats are mixed. Frame rates differ from video to video;
copies with a column `fps` are read by it. A file's name says its split; a video's does not.
"""

from collections.abc import Sequence
from pathlib import Path

from data_prep.converters.annotation import Annotation, Source
from data_prep.converters.csv_rows import Columns
from data_prep.converters.rows import Record
from data_prep.converters.split_tables import read_tables
from data_prep.converters.values import (
    action_name,
    count_of,
    cycles_or_none,
    fps_of,
    marked_cycles,
    name_of,
    text_of,
    without_suffix,
)

# The YouTube part of the set names its classes otherwise than the part recorded in a school.
ALIASES = {
    "squant": "squat",
    "pullups": "pull_up",
    "pushups": "push_up",
    "benchpressing": "bench_pressing",
    "frontraise": "front_raise",
    "jumpjacks": "jump_jack",
}
_COLUMNS = Columns(("name", "count"), ("type", "fps"), marks="L")
_FOLDERS = {"train": ("train",), "validation": ("valid", "val", "validation"), "test": ("test",)}


def repcount(paths: Sequence[Path], *, split: str | None = None) -> Source:
    """The rows of some of its tables.

    Args:
        paths: The tables.
        split: Of all rows; None goes by the files' names.
    """
    records, size = read_tables(paths, _COLUMNS, split=split)
    return Source("repcount", records, _parse, size)


def _parse(record: Record) -> Annotation:
    values = record.values
    name = name_of(values, "name")
    action = action_name(text_of(values, "type"))
    count = count_of(values, "count")
    cycles, flags = cycles_or_none(marked_cycles(values), count)
    return Annotation(
        name=without_suffix(name),
        split=record.split,
        videos=(*(f"{folder}/{name}" for folder in _FOLDERS[record.split]), name),
        action=ALIASES.get(action, action),
        count=count,
        cycles=cycles,
        fps=fps_of(values, "fps"),
        flags=flags,
    )

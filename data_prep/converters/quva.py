"""QUVA Repetition (Runia et al., CVPR 2018): 100 videos, one .npy of frame numbers beside each.

`annotations/000_rope_beach.npy` belongs to `videos/000_rope_beach.mp4`. Its README: the numbers are
the frames at which each cycle ENDS, and their number is the count; the first cycle then starts at
frame 0. Some evaluations take the first number as the start of the first cycle instead and count
one less: `first_mark="start"`. All videos are test videos.
"""

from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Literal

import numpy as np

from data_prep.converters.annotation import Annotation, Source
from data_prep.converters.rows import BadRowError, Record, size_of
from data_prep.converters.values import action_name, chained_cycles, mark_of
from data_prep.files import DataError

FirstMark = Literal["end", "start"]
_MAX_BYTES = 1 << 20


def quva(
    paths: Sequence[Path], *, split: str | None = None, first_mark: FirstMark = "end"
) -> Source:
    """Its annotation files.

    Args:
        paths: The set's folder, its folder of annotations, or .npy files.
        split: Of all videos; test by default.
        first_mark: Whether the first number ends the first cycle or starts it.

    Raises:
        DataError: if there is nothing to read.
    """
    files = [file for path in paths for file in _npy_files(path)]
    records = (_record(file, split or "test", number) for number, file in enumerate(files, start=1))

    def parse(record: Record) -> Annotation:
        return _parse(record, first_mark)

    return Source("quva", records, parse, len(files))


def _parse(record: Record, first_mark: FirstMark) -> Annotation:
    name = record.values["name"]
    marks = []
    for value in record.values["marks"]:
        mark = mark_of(value, "mark")
        if mark is None:
            raise BadRowError("bad_mark", "mark=nan, expected a frame")
        marks.append(mark)
    # The implicit start of the first cycle; a cycle cannot end there.
    cycles, flags = chained_cycles([0.0, *marks] if first_mark == "end" else marks)
    number, _, action = name.partition("_")
    return Annotation(
        name=name,
        split=record.split,
        videos=(f"{name}.mp4", f"videos/{name}.mp4"),
        action=action_name(action if number.isdigit() else name),
        count=len(cycles),
        cycles=cycles,
        flags=flags,
    )


def _npy_files(path: Path) -> list[Path]:
    if not path.is_dir():
        size_of([path])
        return [path]
    folder = path / "annotations" if (path / "annotations").is_dir() else path
    # The archive was packed on a Mac and holds a "._NAME" of other content beside each file.
    files = sorted(file for file in folder.glob("*.npy") if not file.name.startswith("._"))
    if not files:
        raise DataError(f"{folder}: holds no .npy files")
    return files


def _record(path: Path, split: str, number: int) -> Record:
    try:
        marks = _read_marks(path)
    except BadRowError as error:
        return Record(path.name, number, {"name": path.stem}, split, number, error)
    values = {"name": path.stem, "marks": marks}
    return Record(path.name, number, values, split, number)


def _read_marks(path: Path) -> list[float]:
    size = path.stat().st_size
    if not 0 < size <= _MAX_BYTES:
        raise BadRowError(
            "bad_annotation", f"{path.name}: {size} bytes, expected up to {_MAX_BYTES}"
        )
    try:
        marks = np.load(path, allow_pickle=False)
        if not isinstance(marks, np.ndarray) or marks.ndim != 1 or marks.dtype.kind not in "iuf":
            kind = f"{marks.dtype}, shape {marks.shape}" if hasattr(marks, "dtype") else "archive"
            raise ValueError(f"{kind}; expected one dimension of numbers")
        return [float(mark) for mark in marks]
    except (
        EOFError,
        MemoryError,
        OSError,
        SyntaxError,
        TokenError,  # numpy's reader of headers is a tokenizer of Python
        TypeError,
        ValueError,
    ) as error:
        raise BadRowError("bad_annotation", f"{path.name}: {error}"[:300]) from error

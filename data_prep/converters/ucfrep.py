"""UCFRep (Zhang et al., CVPR 2020): 526 videos of UCF-101, as tables or as the original .mat files.

Frames count from 1. The clip is the marked part of the video, start_frame to end_frame, as in the
paper's own loader; `num_frames` of the tables is the length of that part, not of the video.

- Tables (new_train.csv, new_val.csv): name, counts, start_frame, end_frame, L1, L2, ... as in
  RepCount. Copies hold absolute paths of the machine they were made on: `strip_prefix`.
- .mat files (train/, val/): a struct `label` whose `temporal_bound` has the bounds of the cycles,
  one more than there are cycles.

The set has no test part; papers report on `val`.
"""

import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from data_prep.converters.annotation import Annotation, Source
from data_prep.converters.csv_rows import Columns
from data_prep.converters.rows import BadRowError, Record, size_of
from data_prep.converters.split_tables import read_tables
from data_prep.converters.values import (
    action_name,
    chained_cycles,
    count_of,
    cycles_or_none,
    fps_of,
    mark_of,
    marked_cycles,
    name_of,
    split_of_path,
    time_of,
)
from data_prep.files import DataError

_COLUMNS = Columns(("name", "counts|count"), ("start_frame", "end_frame", "fps"), marks="L")
_CLASS = re.compile(r"v_([A-Za-z]+)_g\d+_c\d+", re.ASCII)
# UCF-101 itself spells this class in two ways: the folder so, the files v_HandStandPushups_*.
_FOLDERS = {"HandStandPushups": "HandstandPushups"}
_MAX_MAT_BYTES = 1 << 24
_MAT_HEADER = 128  # bytes; its last two say in which order bytes are
_MAT_COMPRESSED = 15  # the kind of an element that holds another one, packed by zlib
_FIELDS = ("start_frame", "end_frame", "temporal_bound")


def ucfrep(
    paths: Sequence[Path], *, split: str | None = None, strip_prefix: str | None = None
) -> Source:
    """The rows of its tables, or of .mat files and folders of them.

    Args:
        paths: Tables, .mat files, or folders with .mat files below them; not mixed.
        split: Of all rows; None goes by the names of files and folders.
        strip_prefix: Is taken off the front of the tables' names.

    Raises:
        DataError: if there is nothing to read.
    """
    if all(path.suffix.lower() == ".csv" for path in paths):
        records, size = read_tables(paths, _COLUMNS, split=split)

        def parse(record: Record) -> Annotation:
            return _parse_table(record, strip_prefix or "")

        return Source("ucfrep", records, parse, size)
    if any(path.suffix.lower() == ".csv" for path in paths):
        raise DataError("tables and .mat files are two forms of one set, give one of them")
    files = [file for path in paths for file in _mat_files(path)]
    mat_splits = [split_of_path(file, split) for file in files]
    mat_records = (
        _mat_record(file, of_file, number)
        for number, (file, of_file) in enumerate(zip(files, mat_splits, strict=True), start=1)
    )
    return Source("ucfrep", mat_records, _parse_mat, len(files))


def _parse_table(record: Record, prefix: str) -> Annotation:
    values = record.values
    name = name_of(values, "name").removeprefix(prefix)
    if name.startswith("/"):
        raise BadRowError(
            "absolute_path", f"{name[:200]!r} is absolute; --strip-prefix takes off its front"
        )
    count = count_of(values, "counts" if "counts" in values else "count")
    cycles, flags = cycles_or_none(marked_cycles(values, first_frame=1), count)
    return _annotation(record, name, count, cycles, flags, fps_of(values, "fps"))


def _parse_mat(record: Record) -> Annotation:
    bounds = [_bound(value) for value in record.values["temporal_bound"]]
    if len(bounds) < 2:
        raise BadRowError(
            "bad_annotation", f"temporal_bound has {len(bounds)} entries, expected at least 2"
        )
    cycles, flags = chained_cycles(bounds)
    return _annotation(record, record.values["name"], len(cycles), cycles, flags, None)


def _annotation(
    record: Record,
    name: str,
    count: int,
    cycles: Any,
    flags: tuple[str, ...],
    fps: float | None,
) -> Annotation:
    path = PurePosixPath(name)
    match = _CLASS.fullmatch(path.stem)
    label = match[1] if match else path.parent.name
    folder = _FOLDERS.get(label, label)
    of_class = (f"UCF-101/{folder}/{path.name}", f"{folder}/{path.name}") if folder else ()
    candidates = (name, *of_class, path.name)
    return Annotation(
        name=path.stem,
        split=record.split,
        videos=tuple(dict.fromkeys(candidates)),
        action=action_name(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", folder)),
        count=count,
        cycles=cycles,
        start=time_of(record.values, "start_frame", least=1, in_frames=True),
        end=time_of(record.values, "end_frame", least=1, in_frames=True),
        first_frame=1,
        fps=fps,
        flags=flags,
    )


def _bound(value: float) -> float:
    mark = mark_of(value, "temporal_bound", first_frame=1)
    if mark is None:
        raise BadRowError("bad_mark", "temporal_bound=nan, expected a frame")
    return mark


def _mat_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.mat") if not file.name.startswith("._"))
        if not files:
            raise DataError(f"{path}: holds no .mat files")
        return files
    size_of([path])
    return [path]


def _mat_record(path: Path, split: str, number: int) -> Record:
    try:
        values = _read_mat(path)
    except BadRowError as error:
        return Record(path.name, number, {"name": path.stem}, split, number, error)
    return Record(path.name, number, values, split, number)


def _check_unpacked(path: Path) -> None:
    """Refuse a file of version 5 whose compressed parts are larger than any annotation.

    Raises:
        BadRowError: if they unpack to more than `_MAX_MAT_BYTES`; no more than that is unpacked.
    """
    content = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[_MAT_HEADER - 2 : _MAT_HEADER])
    if order is None:  # version 4 packs nothing
        return
    at, left = _MAT_HEADER, _MAX_MAT_BYTES
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        at += 8
        if kind == _MAT_COMPRESSED:
            left -= len(zlib.decompressobj().decompress(content[at : at + size], left + 1))
        if left < 0:
            detail = f"{path.name}: unpacks to more than {_MAX_MAT_BYTES:,} bytes"
            raise BadRowError("bad_annotation", detail)
        at += size


def _read_mat(path: Path) -> dict[str, Any]:
    """The fields of one annotation, as plain numbers."""
    if not 0 < path.stat().st_size <= _MAX_MAT_BYTES:
        raise BadRowError("bad_annotation", f"{path.name}: {path.stat().st_size} bytes")
    try:
        _check_unpacked(path)
        label = loadmat(path)["label"]
        fields = {name: np.asarray(label[name][0, 0], np.float64).ravel() for name in _FIELDS}
        first = {name: float(fields[name][0]) for name in _FIELDS[:2]}
    except BadRowError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MatReadError,
        MemoryError,
        NotImplementedError,  # version 7.3, an HDF5 file
        OSError,
        TypeError,
        ValueError,
        struct.error,
        zlib.error,
    ) as error:
        detail = f"{path.name}: not a .mat file of UCFRep ({type(error).__name__}: {error})"
        raise BadRowError("bad_annotation", detail[:300]) from error
    return {
        "name": f"{path.stem}.avi",
        **first,
        "temporal_bound": [float(value) for value in fields["temporal_bound"]],
    }

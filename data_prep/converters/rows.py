"""Rows of annotation files, read one at a time: CSV tables, JSON Lines and JSON arrays.

Owns what can be wrong with a file as a file. A file that is no such file at all (missing, empty,
without its columns) raises `DataError`; a row that is wrong comes as a `Record` with its problem,
so that one bad line never costs the others.

A line of a table is a row: line breaks inside quotes are not supported, and a quote that is never
closed therefore spoils its own line alone.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from data_prep.schema import DataError

_MAX_OBJECT = 1 << 24  # characters of one object in a JSON array
_CHUNK = 1 << 16
_MAX_VALUE = 200  # characters of a value that a rejected row keeps
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class BadRowError(ValueError):
    """A row that cannot be used.

    Attributes:
        reason: One of `data_prep.converters.remarks.REASONS`.
        detail: The field, its value and what was expected.
        video: The missing video, if that is the reason.
    """

    def __init__(self, reason: str, detail: str, *, video: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.video = video


@dataclass(frozen=True)
class Record:
    """One row as it was read.

    Attributes:
        source: Name of its file.
        row: Its line in the file (from 1), or its number where the file has no lines.
        values: Its fields that are not empty.
        split: The split that its file stands for; empty where its own field says it.
        position: How far the reading has come, in the unit of `Source.size`.
        problem: Why it could not be read, if it could not.
    """

    source: str
    row: int
    values: Mapping[str, Any] = field(default_factory=dict)
    split: str = ""
    position: int = 0
    problem: BadRowError | None = None


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of some files together.

    Raises:
        DataError: if one is not a file, or empty.
    """
    total = 0
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        size = path.stat().st_size
        if not size:
            raise DataError(f"{path}: the file is empty")
        total += size
    return total


def read_table(
    path: Path, *, required: Sequence[str], split: str = "", before: int = 0, delimiter: str = ","
) -> Iterator[Record]:
    """Rows of a CSV file with a header, by the names of its columns.

    Args:
        path: The file; UTF-8, with or without a byte order mark.
        required: Columns that must be there; "a|b" is either.
        split: For the records.
        before: Position at which this file starts.
        delimiter: Between fields.

    Raises:
        DataError: if the header is missing or lacks a column.
    """
    with _open_text(path) as file:
        header: list[str] = []
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            position = before + file.buffer.tell()
            if header:
                yield _table_record(path, number, line, header, delimiter, split, position)
            else:
                header = _header(path, line, delimiter, required)
        if not header:
            raise DataError(f"{path}: the file is empty, expected a header")


def read_json_lines(path: Path, *, split: str = "", before: int = 0) -> Iterator[Record]:
    """Rows of a JSON Lines file: one object a line."""
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            position = before + file.buffer.tell()
            try:
                values = _json_object(line)
            except BadRowError as error:
                raw = {"line": _short(line)}
                yield Record(path.name, number, raw, split, position, error)
            else:
                yield Record(path.name, number, values, split, position)


def read_json_array(path: Path, *, before: int = 0) -> Iterator[tuple[int, Any, int]]:
    """Elements of a JSON file (an array, or one object): (number, element, position).

    Raises:
        DataError: where the file stops being JSON; what follows could not be told apart.
    """
    decoder = json.JSONDecoder()
    with _open_text(path) as file:
        buffer = file.read(_CHUNK).lstrip()
        is_array = buffer.startswith("[")
        buffer = buffer[is_array:]
        number = 0
        while True:
            buffer = _skip_separator(buffer, file, is_first=number == 0)
            if not buffer or (is_array and buffer[0] == "]"):
                return
            value, buffer = _next_value(path, decoder, buffer, file)
            number += 1
            yield number, value, before + file.buffer.tell()


def _open_text(path: Path) -> TextIO:
    """Bytes that are not UTF-8 come as surrogates, so that only their own row is lost."""
    with path.open("rb") as file:
        if file.read(2) in _UTF16:
            raise DataError(f"{path}: is UTF-16, expected UTF-8")
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _header(path: Path, line: str, delimiter: str, required: Sequence[str]) -> list[str]:
    if not _is_utf8(line) or "\0" in line:
        raise DataError(f"{path}:1: the header is not text in UTF-8")
    try:
        names = [name.strip() for name in _fields(line, delimiter)]
    except csv.Error as error:
        raise DataError(f"{path}:1: the header is not CSV ({error})") from error
    known = [name for name in names if name]
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise DataError(f"{path}:1: column {twice[0]!r} is there twice")
    for choice in required:
        if not set(choice.split("|")) & set(known):
            shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
            wanted = " or ".join(repr(name) for name in choice.split("|"))
            raise DataError(f"{path}:1: no column {wanted}; the columns are {shown}")
    return names


def _table_record(
    path: Path, number: int, line: str, header: list[str], delimiter: str, split: str, position: int
) -> Record:
    problem = None if _is_utf8(line) else BadRowError("not_utf8", "expected UTF-8")
    cells: list[str] = []
    try:
        cells = _fields(line, delimiter)
    except csv.Error as error:
        problem = problem or BadRowError("bad_line", f"not CSV ({error})")
    values = {name: cell for name, cell in zip(header, cells, strict=False) if cell and name}
    if problem is None and any(cell.strip() for cell in cells[len(header) :]):
        detail = f"{len(cells)} fields, expected at most the header's {len(header)}"
        problem = BadRowError("too_many_fields", detail)
    if problem is not None:
        values = {name: _short(cell) for name, cell in values.items()} or {"line": _short(line)}
    return Record(path.name, number, values, split, position, problem)


def _fields(line: str, delimiter: str) -> list[str]:
    return next(csv.reader((line,), delimiter=delimiter, strict=True, skipinitialspace=True))


def _json_object(line: str) -> dict[str, Any]:
    if not _is_utf8(line):
        raise BadRowError("not_utf8", "expected UTF-8")
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRowError("bad_line", f"not JSON ({error})") from error
    if not isinstance(values, dict):
        raise BadRowError("bad_line", f"expected a JSON object, got {type(values).__name__}")
    return values


def _skip_separator(buffer: str, file: TextIO, *, is_first: bool) -> str:
    buffer = buffer.lstrip() or file.read(_CHUNK).lstrip()
    if not is_first and buffer.startswith(","):
        buffer = buffer[1:].lstrip() or file.read(_CHUNK).lstrip()
    return buffer


def _next_value(
    path: Path, decoder: json.JSONDecoder, buffer: str, file: TextIO
) -> tuple[Any, str]:
    """The value that the buffer starts with, and the rest; more is read until it is complete."""
    while True:
        try:
            value, end = decoder.raw_decode(buffer)
            return value, buffer[end:]
        except (ValueError, RecursionError) as error:
            # Twice as much each time, so that a large object is not scanned over and over.
            more = file.read(max(_CHUNK, len(buffer)))
            if not more or len(buffer) > _MAX_OBJECT:
                raise DataError(f"{path}: not JSON ({error})") from error
            buffer += more


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(text: str) -> str:
    text = text.rstrip("\r\n")
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."

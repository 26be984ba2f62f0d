"""Rows of annotation files, read one at a time: JSON Lines and JSON arrays; tables: `csv_rows`.

Owns what can be wrong with a file as a file. A file that is no such file at all (missing, empty,
without its columns) raises `DataError`; a row that is wrong comes as a `Record` with its problem,
so that one bad line never costs the others.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.files import DataError, open_file, read_lines
from data_prep.strict_json import JsonError, is_text, parse_json, unique_keys

_MAX_OBJECT = 1 << 24  # characters of one object in a JSON array
_CHUNK = 1 << 16
_MAX_VALUE = 200  # characters of a value that a rejected row keeps
NOT_UTF8 = "surrogateescape"  # bytes that are not UTF-8 are kept, as half characters


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
        with open_file(path, "annotations", allows_utf16=True):
            size = path.stat().st_size
        if not size:
            raise DataError(f"{path}: the file is empty")
        total += size
    return total


def read_json_lines(path: Path, *, split: str = "", before: int = 0) -> Iterator[Record]:
    """Rows of a JSON Lines file: one object a line."""
    for line in read_lines(path, "a file of JSON lines"):
        if line.is_blank:
            continue
        position = before + line.end
        text = line.content.decode(errors=NOT_UTF8)
        try:
            values = _json_object(text)
        except BadRowError as error:
            yield Record(path.name, line.number, {"line": shortened(text)}, split, position, error)
        else:
            yield Record(path.name, line.number, values, split, position)


def read_json_array(path: Path, *, before: int = 0) -> Iterator[tuple[int, Any, int]]:
    """Elements of a JSON file (an array, or one object): (number, element, position).

    Raises:
        DataError: where the file stops being JSON; what follows could not be told apart.
    """
    text = _Elements(path)
    with closing(text):
        while text.skip_separator():
            number, value = text.next_value()
            yield number, value, before + text.position


class _Elements:
    """The elements of a JSON file, of which no more is read than they need.

    Bytes that are not UTF-8 come as surrogates, so that only their own element is lost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        file = open_file(path, "a JSON file")
        self._file = io.TextIOWrapper(file, "utf-8-sig", errors=NOT_UTF8, newline="")
        self._decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
        self._number = 0
        self._line = 1  # where the buffer begins
        self._buffer = self._file.read(_CHUNK)
        self._skip(len(self._buffer) - len(self._buffer.lstrip()))
        self._is_array = self._buffer.startswith("[")
        self._skip(self._is_array)

    @property
    def position(self) -> int:
        """Bytes that were read."""
        return self._file.buffer.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def skip_separator(self) -> bool:
        """Go on to the next element; False if there is none."""
        self._skip_space()
        if self._number and self._buffer.startswith(","):
            self._skip(1)
            self._skip_space()
        return bool(self._buffer) and not (self._is_array and self._buffer[0] == "]")

    def next_value(self) -> tuple[int, Any]:
        """The element that the buffer starts with, and its number; read on until it is whole."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer)
            except JsonError as error:
                raise DataError(f"{self._path}:{self._line}: {error}") from error
            except (ValueError, RecursionError) as error:
                # Twice as much each time, so that a large object is not scanned over and over.
                more = self._file.read(max(_CHUNK, len(self._buffer)))
                if not more or len(self._buffer) > _MAX_OBJECT:
                    told = getattr(error, "msg", error)
                    raise DataError(f"{self._path}:{self._line}: not JSON ({told})") from error
                self._buffer += more
            else:
                self._skip(end)
                self._number += 1
                return self._number, value

    def _skip_space(self) -> None:
        while True:
            self._skip(len(self._buffer) - len(self._buffer.lstrip()))
            if self._buffer or not (more := self._file.read(_CHUNK)):
                return
            self._buffer = more

    def _skip(self, num: int) -> None:
        self._line += self._buffer.count("\n", 0, num)
        self._buffer = self._buffer[num:]


def _json_object(line: str) -> dict[str, Any]:
    if not is_text(line):
        raise BadRowError("not_utf8", "expected UTF-8")
    try:
        values = parse_json(line, allows_any_number=True, allows_surrogates=True)
    except JsonError as error:
        raise BadRowError("bad_line", str(error)) from error
    if not isinstance(values, dict):
        raise BadRowError("bad_line", f"expected a JSON object, got {type(values).__name__}")
    return values


def shortened(text: str) -> str:
    """What a rejected row shows of a text."""
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."

"""Tables: rows of CSV files, read one at a time, by the names of their columns.

Owns the forms in which people have tables: UTF-8 or UTF-16, line ends of any kind, commas,
semicolons, tabs or bars between fields, a line `sep=;` in front, headers in other capitals, and a
decimal comma where commas separate no fields.

A line of a table is a row: line breaks inside quotes are not supported, and a quote that is never
closed therefore spoils its own line alone.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_prep.converters.rows import NOT_UTF8, BadRowError, Record, shortened
from data_prep.files import UTF16_MARKS, DataError, open_file, read_lines
from data_prep.strict_json import is_text

_DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'\s*"?sep=(.)"?\s*', re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+\s*", re.ASCII)
_NUM_SHOWN = 12  # columns that an error names


@dataclass(frozen=True)
class Columns:
    """What is looked for in a header. Capitals, and spaces for underscores, make no difference.

    Attributes:
        required: Columns that must be there; "a|b" is either.
        optional: Columns that are read if they are there.
        marks: Prefix of columns with a number behind it: L for L1, L2, ...
        remedy: What can be done where one is not there.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    marks: str | None = None
    remedy: str = "rename it, or say which it is with `actrep prepare csv --column`"


@dataclass(frozen=True)
class Header:
    """The header of a table.

    Attributes:
        names: Of its columns, those that are looked for by the names that they are looked for by.
        delimiter: Between fields.
        line: Where it is, from 1.
    """

    names: tuple[str, ...]
    delimiter: str
    line: int


class _Line(NamedTuple):
    number: int
    text: str
    end: int


def read_header(path: Path, columns: Columns, *, delimiter: str | None = None) -> Header:
    """The header of a table.

    Args:
        path: The file.
        columns: What is looked for.
        delimiter: Between fields; None finds it.

    Raises:
        DataError: if the header is missing, or lacks a column.
    """
    is_first = True
    for line in _lines(path):
        if not line.text.strip():
            continue
        separator = _SEPARATOR_LINE.fullmatch(line.text) if is_first else None
        is_first = False
        if separator is None:
            where = f"{path}:{line.number}"
            names, found = _find_names(where, line.text, columns, delimiter)
            return Header(names, found, line.number)
        delimiter = delimiter or separator[1]
    raise DataError(f"{path}: the file is empty, expected a header")


def read_table(
    path: Path, columns: Columns, *, split: str = "", before: int = 0, delimiter: str | None = None
) -> Iterator[Record]:
    """Rows of a CSV file with a header, by the names of its columns.

    Args:
        path: The file; UTF-8, or UTF-16 with a byte order mark.
        columns: What is looked for.
        split: For the records.
        before: Position at which this file starts.
        delimiter: Between fields; None finds it.

    Raises:
        DataError: if the header is missing or lacks a column.
    """
    header = read_header(path, columns, delimiter=delimiter)
    for line in _lines(path):
        if line.number > header.line and line.text.strip():
            yield _record(path.name, line, header, split, before)


def _lines(path: Path) -> Iterator[_Line]:
    """Lines of a table; bytes that are no text come as halves of surrogate pairs."""
    with open_file(path, "a table", allows_utf16=True) as file:
        if file.peek(2)[:2] in UTF16_MARKS:
            text = io.TextIOWrapper(file, "utf-16", errors="replace", newline="")
            for number, content in enumerate(text, start=1):
                line = content.rstrip("\r\n").replace("\ufffd", "\udcff")
                yield _Line(number, line, text.buffer.tell())
            return
    for raw in read_lines(path, "a table", ends_at_return=True):
        yield _Line(raw.number, raw.content.decode(errors=NOT_UTF8), raw.end)


def _find_names(
    where: str, line: str, columns: Columns, delimiter: str | None
) -> tuple[tuple[str, ...], str]:
    """Names of the columns and the delimiter: the first with which all columns are there."""
    if not is_text(line) or "\0" in line:
        raise DataError(f"{where}: the header is not text in UTF-8; save the table as CSV UTF-8")
    cells: dict[str, list[str]] = {}
    for candidate in _DELIMITERS if delimiter is None else (delimiter, *_DELIMITERS):
        with suppress(csv.Error):
            cells[candidate] = [cell.strip() for cell in _fields(line, candidate)]
    found = {candidate: _as_wanted(where, cells[candidate], columns) for candidate in cells}
    whole = [candidate for candidate, names in found.items() if not _lacking(names, columns)]
    chosen = delimiter
    if chosen is None and (whole or len(found) == len(_DELIMITERS)):
        chosen = whole[0] if whole else max(found, key=lambda key: len(found[key]))
    if chosen not in found:
        raise DataError(f"{where}: the header is not CSV; is a quote never closed?")
    names = found[chosen]
    if chosen not in whole:
        lacking = " or ".join(repr(name) for name in _lacking(names, columns)[0].split("|"))
        named = [cell for cell in cells[chosen] if cell]
        shown = ", ".join(named[:_NUM_SHOWN]) + (", ..." if len(named) > _NUM_SHOWN else "")
        remedy = f"give --delimiter {whole[0]!r}" if whole else columns.remedy
        raise DataError(f"{where}: no column {lacking}; the columns are {shown}; {remedy}")
    known = [name for name in names if name]
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise DataError(f"{where}: column {twice[0]!r} is there twice; rename one of them")
    return names, chosen


def _as_wanted(where: str, names: Sequence[str], columns: Columns) -> tuple[str, ...]:
    """The names, those in other capitals as they are looked for."""
    wanted = [name for choice in columns.required for name in choice.split("|")]
    renamed: dict[str, str] = {}
    for name in (*wanted, *columns.optional):
        alike = [found for found in names if _folded(found) == _folded(name)]
        if name in alike or not alike:
            continue
        if len(alike) > 1:
            raise DataError(
                f"{where}: columns {alike[0]!r} and {alike[1]!r} could both be {name!r}; rename one"
            )
        renamed[alike[0]] = name
    if columns.marks is not None:
        mark = re.compile(re.escape(columns.marks) + r"(\d+)", re.IGNORECASE | re.ASCII)
        for found in names:
            if (match := mark.fullmatch(found)) and columns.marks + match[1] not in names:
                renamed[found] = columns.marks + match[1]
    return tuple(renamed.get(name, name) for name in names)


def _lacking(names: Sequence[str], columns: Columns) -> list[str]:
    return [choice for choice in columns.required if not set(choice.split("|")) & set(names)]


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.casefold())


def _record(source: str, line: _Line, header: Header, split: str, before: int) -> Record:
    problem = None if is_text(line.text) else BadRowError("not_utf8", "expected UTF-8")
    cells: list[str] = []
    try:
        # Tables of marks have hundreds of columns, most of them empty at the end of a row.
        cells = _fields(line.text.rstrip(header.delimiter), header.delimiter)
    except csv.Error as error:
        problem = problem or BadRowError("bad_line", f"not CSV ({error})")
    if header.delimiter != "," and "," in line.text:
        cells = [
            cell.replace(",", ".") if "," in cell and _DECIMAL_COMMA.fullmatch(cell) else cell
            for cell in cells
        ]
    names = header.names
    values = {name: cell for name, cell in zip(names, cells, strict=False) if cell and name}
    if problem is None and any(cell.strip() for cell in cells[len(names) :]):
        detail = f"{len(cells)} fields, expected at most the header's {len(names)}"
        if header.delimiter == ",":
            detail += "; a field with a comma (1,5) stands in quotes or is written 1.5"
        problem = BadRowError("too_many_fields", detail)
    if problem is not None:
        values = {name: shortened(cell) for name, cell in values.items()}
        values = values or {"line": shortened(line.text)}
    return Record(source, line.number, values, split, before + line.end, problem)


def _fields(line: str, delimiter: str) -> list[str]:
    return next(csv.reader((line,), delimiter=delimiter, strict=True, skipinitialspace=True))

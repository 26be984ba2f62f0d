"""Text files, read strictly and written whole.

Owns what can be wrong with a file as a file, so that every reader tells it alike, in one line that
names the file and the line:

    read_lines      lines end with \\n or \\r\\n alone, never with U+2028, U+0085 or U+000B
    read_jsonl      one JSON object a line, BOM and blank lines allowed
    read_json       one JSON value a file
    replacing       a file that appears under its name when it is complete and on the disk
    complete_folder the same for a folder
    AppendedLines   a file that grows by whole lines

What is written aside has a name of `data_prep.partial_files`, which removes what the dead left.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from data_prep.full_disk import met_by_worker, reason_not_written
from data_prep.partial_files import partial_of
from data_prep.strict_json import JsonError, parse_json

_LONE_RETURN = re.compile(rb"(?<=\r)(?!\n)(?=.)", re.DOTALL)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+[^/]")
_BOM = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)  # of file systems that cannot sync a folder


class DataError(ValueError):
    """A file, row or value that cannot be used; the message names all three."""


class LineError(DataError):
    """A line of a file that cannot be read.

    Attributes:
        where: "FILE:LINE".
        problem: What is wrong with it.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where, self.problem = where, problem


# --- reading


class Line(NamedTuple):
    """One line as it lies in its file.

    Attributes:
        number: From 1.
        content: Its bytes without its end, and without the BOM of the file.
        end: Bytes of the file up to its end.
        is_ended: Whether it has an end; only the last line of a file may have none.
    """

    number: int
    content: bytes
    end: int
    is_ended: bool

    @property
    def is_blank(self) -> bool:
        """Whether it holds nothing but white space."""
        return not self.content.strip()

    def json(self, *, allows_any_number: bool = False, allows_surrogates: bool = False) -> Any:
        """The line as JSON; as `parse_json`.

        Raises:
            JsonError: also for the first byte that is not UTF-8.
        """
        try:
            text = self.content.decode()
        except UnicodeDecodeError as error:
            is_cut = error.reason == "unexpected end of data"
            raise JsonError(_not_utf8(self.content, error.start), is_cut=is_cut) from error
        return parse_json(
            text, allows_any_number=allows_any_number, allows_surrogates=allows_surrogates
        )


@dataclass(frozen=True, slots=True)
class JsonRow:
    """One object of a JSON Lines file.

    Attributes:
        where: "FILE:LINE", to begin a message with.
        number: The line, from 1.
        values: The object.
    """

    where: str
    number: int
    values: dict[str, Any]


def open_file(path: str | Path, expected: str, *, allows_utf16: bool = False) -> BufferedReader:
    """Open a file of UTF-8 text for reading bytes.

    Args:
        path: The file.
        expected: What it should be, for the message where it is not there.
        allows_utf16: Whether it may begin with one of `UTF16_MARKS`.

    Raises:
        DataError: if there is no such file, it is no file, it may not be read, or it is UTF-16.
    """
    path = Path(path)
    if looks_like_url(path):
        raise DataError(f"{path}: is a URL, expected {expected} on this machine: download it first")
    try:
        mode = path.stat().st_mode
        file = None if not stat.S_ISREG(mode) else path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: no such file, expected {expected}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}, expected {expected}") from error
    except ValueError as error:  # a NUL in the name
        raise DataError(f"{str(path)!r}: not the name of a file, expected {expected}") from error
    if file is None:
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise DataError(f"{path}: is {kind}, expected {expected}")
    if not allows_utf16 and file.peek(2)[:2] in UTF16_MARKS:
        file.close()
        raise DataError(f"{path}: is UTF-16, expected UTF-8")
    return file


def looks_like_url(path: str | Path) -> bool:
    """Whether a name is a URL, of which `Path` keeps one slash, and no file of that name exists."""
    return _URL.match(str(path)) is not None and not os.path.lexists(path)


def read_lines(path: str | Path, expected: str, *, ends_at_return: bool = False) -> Iterator[Line]:
    """The lines of a file, blank ones among them.

    Args:
        path: The file.
        expected: What it should be, for the message where it is not there.
        ends_at_return: Whether a lone \\r ends a line too, as in tables of old spreadsheets.

    Raises:
        DataError: if there is no such file, it is no file, it may not be read, or it is UTF-16.
    """
    with open_file(path, expected) as file:
        number = end = 0
        for line in file:
            is_several = ends_at_return and b"\r" in line
            for part in _LONE_RETURN.split(line) if is_several else (line,):
                number += 1
                end += len(part)
                content = part.removeprefix(_BOM) if number == 1 else part
                is_ended = content.endswith((b"\n", b"\r") if ends_at_return else b"\n")
                content = content.removesuffix(b"\n").removesuffix(b"\r")
                yield Line(number, content, end, is_ended)


def read_jsonl(
    path: str | Path,
    expected: str,
    *,
    on_cut: Callable[[str], None] | None = None,
    allows_surrogates: bool = False,
) -> Iterator[JsonRow]:
    """The objects of a JSON Lines file, in order; blank lines are left out.

    Args:
        path: The file.
        expected: What it should be, for the message where it is not there.
        on_cut: Called with a message if the last line is cut short, as a killed writer leaves it;
            the line is left out then. None makes it an error like any other.
        allows_surrogates: Whether strings may hold halves of surrogate pairs.

    Raises:
        LineError: for a line that is not a JSON object.
        DataError: if the file is none that can be read.
    """
    for line in read_lines(path, expected):
        if line.is_blank:
            continue
        where = f"{path}:{line.number}"
        try:
            values = line.json(allows_surrogates=allows_surrogates)
        except JsonError as error:
            is_cut = error.is_cut and not line.is_ended and line.content.lstrip()[:1] == b"{"
            problem = f"{error}; the last line, cut short" if is_cut else str(error)
            if is_cut and on_cut is not None:
                on_cut(f"{where}: {problem}")
                return
            raise LineError(where, problem) from error
        if not isinstance(values, dict):
            raise LineError(where, f"expected a JSON object, got {type(values).__name__}")
        yield JsonRow(where, line.number, values)


def read_text(path: str | Path, expected: str) -> str:
    """The text of a file, as it lies there but for its BOM.

    Raises:
        DataError: naming the file, and the line that is not UTF-8.
    """
    with open_file(path, expected) as file:
        content = file.read().removeprefix(_BOM)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        start = content.rfind(b"\n", 0, error.start) + 1
        line = content[start:].split(b"\n", 1)[0]
        raise DataError(f"{path}:{number}: {_not_utf8(line, error.start - start)}") from error


def read_json(path: str | Path, expected: str, *, is_strict: bool = True) -> Any:
    """The one value of a JSON file.

    Args:
        path: The file.
        expected: What it should be, for the message where it is not there.
        is_strict: Without, any number and half of a surrogate pair may be in it.

    Raises:
        DataError: naming the file, and the line where it is not JSON.
    """
    text = read_text(path, expected)
    try:
        return parse_json(text, allows_any_number=not is_strict, allows_surrogates=not is_strict)
    except JsonError as error:
        line = "" if error.line is None else f":{error.line}"
        raise DataError(f"{path}{line}: {error}") from error


def read_object(path: str | Path, expected: str, *, is_strict: bool = True) -> dict[str, Any]:
    """The one object of a JSON file; as `read_json`.

    Raises:
        DataError: naming the file, and the line where it is not JSON, or that it is no object.
    """
    values = read_json(path, expected, is_strict=is_strict)
    if not isinstance(values, dict):
        raise DataError(f"{path}:1: expected a JSON object, got {type(values).__name__}")
    return values


def _not_utf8(line: bytes, at: int) -> str:
    return f"byte 0x{line[at]:02x} at {at + 1}, expected text in UTF-8"


# --- writing


@contextmanager
def replacing(path: str | Path, *, is_durable: bool = True) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends, or nothing if it fails.

    Args:
        path: The file to appear; the folder is made if missing.
        is_durable: Whether file and folder are synced first, so that the file survives the loss of
            power. False is for caches.

    Raises:
        DataError: if `path` is a folder or a device, or the disk has no room for it.
        OSError: naming `path`, if it cannot be written for another reason.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise DataError(f"{path}: is {kind}, expected a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_of(path) as partial, _telling(path, partial):
        yield partial
        if is_durable:
            sync_path(partial)
        partial.replace(path)
        if is_durable:
            sync_path(path.parent)


def write_lines(path: str | Path, lines: Iterable[str]) -> int:
    """Write lines of UTF-8, atomically: all or nothing; returns how many were written."""
    num_lines = 0
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as out:
        for line in lines:
            out.write(line + "\n")
            num_lines += 1
    return num_lines


def write_json(path: str | Path, value: Any, *, indent: int | None = 2) -> None:
    """Write one JSON value, atomically, in ASCII."""
    write_lines(path, [json.dumps(value, indent=indent, allow_nan=False)])


@contextmanager
def complete_folder(folder: str | Path, *, replaces: bool = False) -> Iterator[Path]:
    """A folder to write into, which becomes `folder`, synced, when the block ends.

    Args:
        folder: The folder to appear; an empty one of that name gives way.
        replaces: Whether any other folder of that name does. Without, it is an error.

    Raises:
        DataError: if there is something of that name that does not give way, or the disk has no
            room for it.
        OSError: naming the file, if one cannot be written for another reason.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and (replaces or not any(folder.iterdir()))):
        raise DataError(f"{folder}: exists already, expected a folder to make")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with partial_of(folder) as partial, _telling(folder, partial):
        partial.mkdir()
        yield partial
        sync_folder(partial)
        if folder.exists() and any(folder.iterdir()):
            with partial_of(folder) as old:  # removed with the block
                folder.rename(old)
                partial.rename(folder)
        else:
            partial.rename(folder)
        sync_path(folder.parent)


def sync_folder(folder: str | Path) -> None:
    """Wait until a folder, and whatever is in it, is on the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for path in (Path(parent, name) for name in names):
            if path.is_file() and not path.is_symlink():
                sync_path(path)
        sync_path(Path(parent))


class AppendedLines:
    """A file that grows by whole lines, each handed to the system at once.

    Args:
        path: The file of JSON lines; made if missing. A last line that a killed process cut off is
            removed.
        is_durable: Whether each line is on the disk when `add` returns.
    """

    def __init__(self, path: str | Path, *, is_durable: bool = False) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.is_durable = is_durable
        _mend_end(self.path)
        self._file = self.path.open("ab")
        if is_durable:
            sync_path(self.path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, line: str) -> None:
        """Write a line; its end is added.

        Raises:
            DataError: if the disk has no room for it.
        """
        with _telling(self.path, self.path):
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            if self.is_durable:
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        with _telling(self.path, self.path):  # what `add` had no room for is tried once more
            self._file.close()


@contextmanager
def _telling(path: Path, written: Path) -> Iterator[None]:
    """Let errors of a write name what was asked for: writes name nothing, opens the partial file.

    Args:
        path: The file or folder that was asked for.
        written: What is written in its place.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        met = met_by_worker(error)
        name = met.filename if isinstance(met, OSError) else None
        told = path
        if isinstance(name, str | bytes | os.PathLike):
            named = Path(os.fsdecode(name))
            if not named.is_relative_to(written):
                raise
            told = path / named.relative_to(written)
        if reason := reason_not_written(met):
            raise DataError(f"{told}: {reason}") from error
        if not isinstance(met, OSError) or name is None or met.errno is None:
            raise
        raise OSError(met.errno, met.strerror, str(told)) from error


def sync_path(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC or not path.is_dir():
            raise
    finally:
        os.close(handle)


def _mend_end(path: Path) -> None:
    """End the last line, if it is whole JSON; cut it off, if it is the beginning of such a line."""
    if not path.exists():
        return
    last = None
    for last in read_lines(path, "a file of lines"):  # noqa: B007 - the last one is wanted
        pass
    if last is None or last.is_ended:
        return
    try:
        last.json(allows_any_number=True, allows_surrogates=True)
    except JsonError as error:
        if not error.is_cut:
            raise LineError(f"{path}:{last.number}", str(error)) from error
        os.truncate(path, last.end - len(last.content))
    else:
        with path.open("ab") as file:
            file.write(b"\n")

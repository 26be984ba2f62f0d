"""A line of a data file: a clip of a video (`schema`) or a still image (`images`).

A line is a clip unless its `kind` says "image". What shows, asks and judges goes by what both have:
`id`, `dataset`, `split`, `file`, `width` and `height`. Who can only use clips reads `read_clips`,
or takes them out of rows by `clips_among`, which refuses images by name.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from data_prep.files import DataError, write_lines
from data_prep.images import LabelledImage, parse_image
from data_prep.schema import Clip, RowError, parse_plausible, read_lines_of

Row = Clip | LabelledImage
"""One line of a data file."""

KINDS = ("video", "image")

RowT = TypeVar("RowT", Clip, LabelledImage)
AnyRow = TypeVar("AnyRow", Clip, LabelledImage, Row)


def parse_row(row: dict[str, Any], where: str) -> Row:
    """Build a clip or an image from a decoded JSON object, by its `kind`.

    Raises:
        RowError: naming `where`, the key, its value and what was expected.
    """
    if not isinstance(row, dict) or "kind" not in row:
        return parse_plausible(row, where)
    if row["kind"] != "image":
        raise RowError(where, "kind", repr(row["kind"]), "'image', or no such key for a clip")
    return parse_image(row, where)


def read_rows(
    path: str | Path, *, split: str | None = None, allow_outside: Sequence[str] = ()
) -> Iterator[Row]:
    """Yield the rows of a JSONL file, in order, with absolute paths of their files.

    Args:
        path: The JSONL file; blank lines are allowed, anything else must be a clip or an image.
        split: Only rows of this split; None yields all of them.
        allow_outside: Folders, other than the file's own, that videos and images may lie in.

    Raises:
        DataError: naming the file and line of the first bad row.
    """
    yield from read_lines_of(path, parse_row, split=split, allow_outside=allow_outside)


def join_rows(paths: Sequence[str | Path], *, allow_outside: Sequence[str] = ()) -> list[Row]:
    """The rows of several files, file by file, with absolute paths of their files.

    Args:
        paths: JSONL files.
        allow_outside: As of `read_rows`.

    Raises:
        DataError: for a bad row, or two of one id.
    """
    rows: list[Row] = []
    file_of: dict[str, str | Path] = {}
    for path in paths:
        for row in read_rows(path, allow_outside=allow_outside):
            if row.id in file_of:
                raise DataError(
                    f"{path}: id={row.id!r}, expected none that {file_of[row.id]} has as well"
                )
            file_of[row.id] = path
            rows.append(row)
    return rows


def clips_among(rows: Iterable[Row]) -> list[Clip]:
    """The same rows, all of which have to be clips.

    Raises:
        DataError: naming the first that is not.
    """
    return _all_of(rows, Clip, "a clip of a video")


def images_among(rows: Iterable[Row]) -> list[LabelledImage]:
    """The same rows, all of which have to be images.

    Raises:
        DataError: naming the first that is not.
    """
    return _all_of(rows, LabelledImage, "an image")


def _all_of(rows: Iterable[Row], kind: type[RowT], expected: str) -> list[RowT]:
    found = []
    for row in rows:
        if not isinstance(row, kind):
            raise DataError(f"row {row.id!r}: kind={row.kind!r}, expected {expected}")
        found.append(row)
    return found


def files_of(rows: Iterable[Row]) -> list[str]:
    """Paths of all that rows show: of each its file, and the images before it."""
    return [path for row in rows for path in (row.file, *(one.image for one in row.images))]


def portable_path(path: str | Path, folder: Path) -> str:
    """A path relative to a folder if it lies below it, else absolute; links are not followed."""
    absolute = Path(path).absolute()
    relative = os.path.relpath(absolute, folder.absolute())
    return str(absolute) if relative.split(os.sep, 1)[0] == os.pardir else relative


def portable_row(row: AnyRow, folder: Path) -> AnyRow:
    """A row for a JSONL file in a folder: each of its paths as `portable_path` gives it.

    Args:
        row: As `read_rows` gives it, its paths absolute.
        folder: Where the file will lie.
    """
    images = tuple(replace(one, image=portable_path(one.image, folder)) for one in row.images)
    file = portable_path(row.file, folder)
    if isinstance(row, LabelledImage):
        return replace(row, image=file, images=images)
    return replace(row, video=file, images=images)


def write_rows(path: str | Path, rows: Iterable[Row]) -> int:
    """Write rows as JSONL, atomically; returns how many were written."""
    return write_lines(path, (row.to_json() for row in rows))

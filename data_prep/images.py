"""The line of a still image: which file, of which class, and what it shows.

One line of a JSONL file (`rows`), beside the lines of clips or alone::

    {"kind": "image", "id": "sticks-train-00007", "dataset": "sticks", "split": "train",
     "image": "images/00007.png", "width": 96, "height": 96, "label": "arms_up",
     "aliases": ["hands_up"], "description": "Both arms point up.", "flags": []}

`image` is relative to the folder of the JSONL file and stays in it (`roots`); `images` are further
ones in its prompt (`shown`).
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from data_prep.schema import SPLITS, RowError
from data_prep.shown import MOST_SIDE, ShownImage, as_values, is_side, mistakes_in, shown_images
from data_prep.strict_json import is_text


@dataclass(frozen=True)
class LabelledImage:
    """One still image with its class.

    Attributes:
        id: Unique within a file.
        dataset: Name of the set that it comes from.
        split: One of `SPLITS`.
        image: Path of the file.
        width: Of the image as it is shown (turned by its EXIF tag), pixels.
        height: Likewise.
        label: Its class.
        aliases: Other names of the class that are as right.
        description: What can be seen that tells the class, in words; None where nobody wrote it.
        flags: Remarks of whoever wrote the line.
        images: Further ones that are shown before it.
        kind: "image": which kind of row it is, and the key of its file.
    """

    id: str
    dataset: str
    split: str
    image: str
    width: int
    height: int
    label: str
    aliases: tuple[str, ...] = ()
    description: str | None = None
    flags: tuple[str, ...] = ()
    images: tuple[ShownImage, ...] = ()
    kind: str = "image"

    @property
    def file(self) -> str:
        """Path of what is shown."""
        return self.image

    def with_root(self, root: Path) -> "LabelledImage":
        """The same with `image` made absolute against `root`, `..` taken out as text."""
        return replace(
            self,
            image=os.path.normpath(root.absolute() / self.image),
            images=tuple(image.with_root(root) for image in self.images),
        )

    def to_json(self) -> str:
        """One line of JSON without the line break."""
        values = {**vars(self), "images": as_values(self.images)}
        return _encode({key: value for key, value in values.items() if key != "images" or value})


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_FIELDS = tuple(f.name for f in fields(LabelledImage))
_NEEDED = ("id", "dataset", "split", "image", "label")


def parse_image(row: dict[str, Any], where: str) -> LabelledImage:
    """Build a `LabelledImage` from a decoded JSON object.

    Raises:
        RowError: naming `where`, the key, its value and what was expected.
    """
    if unknown := sorted(set(row) - set(_FIELDS)):
        key, known = unknown[0], ", ".join(_FIELDS)
        told = f"unknown key {key!r} of an image; known keys: {known}"
        raise RowError(where, key, repr(row[key]), f"one of the keys {known}", told)
    if missing := [key for key in (*_NEEDED, "width", "height") if key not in row]:
        raise RowError(where, missing[0], "", "a value", f"key {missing[0]!r} is missing")
    for key, value, expected in _mistakes(row):
        raise RowError(where, key, repr(value), expected)
    lists = {key: tuple(row.get(key, ())) for key in ("aliases", "flags")}
    return LabelledImage(**{**row, **lists, "images": shown_images(row.get("images", ()))})


def _mistakes(row: dict[str, Any]) -> Iterator[tuple[str, object, str]]:
    """(key, what it holds, what was expected) of wrong values."""
    for key in _NEEDED:
        if not _is_name(row[key]):
            yield key, row[key], "a string of more than blanks, without NUL"
    if row["split"] not in SPLITS:
        yield "split", row["split"], f"one of {', '.join(SPLITS)}"
    for key in ("width", "height"):
        if not is_side(row[key]):
            yield key, row[key], f"an integer from 1 to {MOST_SIDE}"
    for key in ("aliases", "flags"):
        values = row.get(key, ())
        if not isinstance(values, list | tuple) or not all(map(_is_name, values)):
            yield key, values, "a list of strings of more than blanks"
    if row.get("description") is not None and not _is_name(row["description"]):
        yield "description", row["description"], "a string of more than blanks, or null"
    yield from mistakes_in(row.get("images", ()))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_text(value) and "\0" not in value

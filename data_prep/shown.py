"""Still images that a row shows before its own file, in one prompt.

Both kinds of row may name some::

    {"id": "wave-7", ..., "images": [{"image": "images/ready.png", "width": 96, "height": 96}]}

Each is `image`, relative to the folder of the JSONL file as the row's own file is, with its size.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from data_prep.strict_json import is_text

MOST_IMAGES = 64  # of one row
MOST_SIDE = 2**16  # pixels

_KEYS = ("image", "width", "height")


@dataclass(frozen=True)
class ShownImage:
    """One still image that is shown and has no class of its own.

    Attributes:
        image: Path of the file.
        width: Of the image as it is shown (turned by its EXIF tag), pixels.
        height: Likewise.
    """

    image: str
    width: int
    height: int

    def with_root(self, root: Path) -> Self:
        """The same with `image` made absolute against `root`, `..` taken out as text."""
        return replace(self, image=os.path.normpath(root.absolute() / self.image))


def mistakes_in(value: object) -> Iterator[tuple[str, object, str]]:
    """(key, what it holds, what was expected) of wrong values of a row's `images`."""
    if not isinstance(value, list | tuple) or len(value) > MOST_IMAGES:
        yield "images", value, f"a list of at most {MOST_IMAGES} images"
        return
    for i, one in enumerate(value):
        if isinstance(one, ShownImage):  # of a row that was read before
            continue
        if not isinstance(one, dict) or set(one) != set(_KEYS):
            yield f"images[{i}]", one, f"an object with the keys {', '.join(_KEYS)}"
            continue
        path = one["image"]
        if not isinstance(path, str) or not path.strip() or not is_text(path) or "\0" in path:
            yield f"images[{i}].image", path, "a string of more than blanks, without NUL"
        for key in ("width", "height"):
            if not is_side(one[key]):
                yield f"images[{i}].{key}", one[key], f"an integer from 1 to {MOST_SIDE}"


def is_side(value: object) -> bool:
    """Whether it is the number of pixels of a side."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_SIDE


def shown_images(value: Sequence[Any]) -> tuple[ShownImage, ...]:
    """The images of a row whose `images` has no mistakes."""
    return tuple(one if isinstance(one, ShownImage) else ShownImage(**one) for one in value)


def as_values(images: Sequence[ShownImage]) -> list[dict[str, Any]]:
    """As a row is written."""
    return [asdict(image) for image in images]

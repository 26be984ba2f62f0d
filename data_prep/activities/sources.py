"""Images of a user's own: a folder for each class, or a table of files and classes.

    ROOT/wave/1.png                 ROOT/train/wave/1.png           mine.csv
    ROOT/sit/2.jpg                  ROOT/test/sit/2.jpg             image,label,split
                                                                    a/1.png,wave,train

Where nothing says the split of an image it is "", and `shots` decides it. Files of the same content
are one image: the first is kept, so that none is trained on and scored as well.
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.files import DataError, read_text
from data_prep.images import LabelledImage
from data_prep.rows import images_among, portable_path, portable_row, read_rows
from data_prep.schema import SPLITS
from data_prep.video import VideoError, image_size

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp"))
SPLIT_FOLDERS = {"val": "validation", "valid": "validation"} | {split: split for split in SPLITS}
"""Names of the folders above those of classes, and the splits that they are."""

_COLUMNS = {
    "image": ("image", "file", "path", "filename"),
    "label": ("label", "class", "activity", "action"),
    "split": ("split",),
    "aliases": ("aliases",),
    "description": ("description",),
}


@dataclass(frozen=True)
class Found:
    """What a table or a folder says of one image; `split` is "" if it does not."""

    path: Path
    label: str
    split: str = ""
    aliases: tuple[str, ...] = ()
    description: str | None = None


@dataclass
class Images:
    """Images that can be used, and why others cannot.

    Attributes:
        rows: The images, their split "train" where nothing said it.
        has_splits: Whether their source said the splits.
        left_out: Reason to number of files.
        first: The first that was left out for each reason.
    """

    rows: list[LabelledImage] = field(default_factory=list)
    has_splits: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def leave_out(self, reason: str, told: str) -> None:
        """Count a file that cannot be used."""
        self.left_out[reason] += 1
        self.first.setdefault(reason, told)


def images_of_folder(root: Path) -> list[Found]:
    """The images of a folder with a folder for each class, or for each split and class.

    Raises:
        DataError: for a folder that is not there, or has no image in the folder of a class.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder, expected one with a folder for each class")
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    splits = [path for path in folders if path.name in SPLIT_FOLDERS]
    if splits and len(splits) < len(folders):
        others = [path.name for path in folders if path not in splits]
        raise DataError(
            f"{root}: has folders of splits ({splits[0].name}) and others ({others[0]}), expected "
            "one kind"
        )
    found = [
        Found(path, folder.name, SPLIT_FOLDERS.get(parent.name, "") if splits else "")
        for parent in (splits or [root])
        for folder in sorted(path for path in parent.iterdir() if path.is_dir())
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]
    if not found:
        expected = f"CLASS/NAME with one of {', '.join(sorted(_SUFFIXES))}"
        raise DataError(f"{root}: holds no image of a class, expected {expected}")
    return found


def images_of_table(path: Path) -> list[Found]:
    """The images of a CSV table; paths are relative to its folder.

    Raises:
        DataError: naming the table and line of what is missing or wrong.
    """
    reader = csv.reader(io.StringIO(read_text(path, "a table of images").removeprefix("\ufeff")))
    header = [name.strip().casefold() for name in next(reader, [])]
    at = {
        key: next((header.index(name) for name in names if name in header), None)
        for key, names in _COLUMNS.items()
    }
    for key in ("image", "label"):
        if at[key] is None:
            expected = " or ".join(_COLUMNS[key])
            raise DataError(f"{path}: no column {expected} in {', '.join(header) or 'its header'}")
    found = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{path}:{reader.line_num}"
        values = {
            key: cells[i].strip() if i is not None and i < len(cells) else ""
            for key, i in at.items()
        }
        found.append(_found_in(values, where, path.parent))
    if not found:
        raise DataError(f"{path}: has no row below its header")
    return found


def images_of_rows(path: Path, *, out: Path) -> Images:
    """The images of a file of rows, with the splits that it says.

    Raises:
        DataError: naming the first bad row, or the first that is no image.
    """
    rows = [portable_row(row, out.parent) for row in images_among(read_rows(path))]
    if not rows:
        raise DataError(f"{path}: holds no row")
    return Images(rows, has_splits=True)


def _found_in(values: dict[str, str], where: str, folder: Path) -> Found:
    for key in ("image", "label"):
        if not values[key]:
            raise DataError(f"{where}: {key} is empty")
    split = SPLIT_FOLDERS.get(values["split"].casefold(), "")
    if values["split"] and not split:
        raise DataError(f"{where}: split={values['split']!r}, expected one of {', '.join(SPLITS)}")
    aliases = tuple(alias for part in values["aliases"].split(";") if (alias := part.strip()))
    path = folder / values["image"]
    return Found(path, values["label"], split, aliases, values["description"] or None)


def read_images(found: Iterable[Found], *, dataset: str, out: Path) -> Images:
    """Look at each file and make a row of it; files that cannot be used are counted.

    Args:
        found: What there is.
        dataset: Name of the set.
        out: The file that the rows are for: paths below its folder are made relative to it.

    Raises:
        DataError: if a split is known of some and not of others, or if no file can be used.
    """
    images, seen, ids = Images(), dict[str, Path](), Counter[str]()
    known = Counter[bool]()
    for one in found:
        try:
            height, width = image_size(one.path)
            digest = hashlib.sha256(one.path.read_bytes()).hexdigest()
        except VideoError as error:
            images.leave_out("unreadable", str(error))
            continue
        if digest in seen:
            images.leave_out("duplicate", f"{one.path}: is {seen[digest]}")
            continue
        seen[digest] = one.path
        known[bool(one.split)] += 1
        name = f"{one.split or 'all'}-{one.label}-{one.path.stem}".replace(" ", "_")
        ids[name] += 1
        images.rows.append(
            LabelledImage(
                id=name if ids[name] == 1 else f"{name}#{ids[name]}",
                dataset=dataset,
                split=one.split or "train",
                image=portable_path(one.path, out.parent),
                width=width,
                height=height,
                label=one.label,
                aliases=one.aliases,
                description=one.description,
            )
        )
    if not images.rows:
        raise DataError(f"no image can be used: {next(iter(images.first.values()), 'none found')}")
    if len(known) > 1:
        raise DataError(
            f"{known[True]} images say their split and {known[False]} do not, expected all or none"
        )
    images.has_splits = bool(known[True])
    return images


def describe(images: Images) -> Iterator[str]:
    """A line for each reason why files were left out."""
    for reason, number in images.left_out.items():
        yield f"left out {number} ({reason}), the first: {images.first[reason]}"

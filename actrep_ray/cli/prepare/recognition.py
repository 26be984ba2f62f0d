"""`actrep prepare recognition` and `activities`: rows of images with their classes."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.commands import (
    UsageError,
    add_command,
    add_overwrite,
    complain,
    outside_note,
    show,
)
from data_prep.schema import SPLITS

if TYPE_CHECKING:
    from data_prep.activities.sources import Images
    from data_prep.images import LabelledImage


def add_recognition(kinds: Any) -> None:
    """Add `actrep prepare recognition` and `actrep prepare activities`.

    Args:
        kinds: The sub-parsers of `prepare`.
    """
    own = add_command(
        kinds,
        "recognition",
        _recognition,
        "write rows of images, of all there are or of few shots of each class",
        "actrep prepare recognition --folder photos --shots 4 --out photos/shots-4.jsonl",
    )
    source = own.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--folder", type=Path, metavar="ROOT", help="a folder for each class, or split and class"
    )
    source.add_argument("--csv", type=Path, metavar="FILE", help="columns image, label[, split]")
    source.add_argument("--rows", type=Path, metavar="FILE", help="rows written before")
    own.add_argument("--shots", type=int, metavar="K", help="images of each class to train on")
    own.add_argument("--seed", type=int, default=0, help="which images are the shots")
    own.add_argument(
        "--classes",
        choices=("all", "base", "new"),
        default="all",
        help="of the sorted names",
    )
    own.add_argument("--dataset", metavar="NAME", help="default: the folder's or the table's name")
    own.add_argument("--out", type=Path, required=True, metavar="FILE", help="rows to write")
    add_overwrite(own, "FILE")
    drawn = add_command(
        kinds,
        "activities",
        _activities,
        "draw stick figures of activities, in one of two styles",
        "actrep prepare activities --style line --train 40 --test 20 --out data/sticks-line",
    )
    drawn.add_argument("--style", choices=("line", "block"), default="line")
    for split, number in zip(SPLITS, (40, 4, 20), strict=True):
        drawn.add_argument(
            f"--{split}", type=int, default=number, metavar="N", help="images of each class"
        )
    drawn.add_argument("--seed", type=int, default=0)
    drawn.add_argument("--size", type=int, default=64, help="pixels of a side")
    drawn.add_argument("--out", type=Path, help="folder (default: data/sticks-STYLE)")
    add_overwrite(drawn, "what is in the folder")


def _recognition(args: argparse.Namespace) -> None:
    from data_prep.activities.shots import choose_classes, take_shots
    from data_prep.activities.sources import describe
    from data_prep.overwriting import refuse_existing
    from data_prep.rows import write_rows

    refuse_existing(args.out, overwrite=args.overwrite)
    images = _images_of(args)
    rows = choose_classes(images.rows, args.classes)
    if args.shots is not None:
        rows = take_shots(rows, args.shots, seed=args.seed, has_splits=images.has_splits)
    elif not images.has_splits:
        raise UsageError("nothing says which images to train on: give --shots K")
    write_rows(args.out, rows)
    for line in describe(images):
        complain(line)
    show(f"{args.out}: {_summary_of(rows)}{outside_note(args.out, [row.image for row in rows])}")


def _images_of(args: argparse.Namespace) -> "Images":
    from data_prep.activities import sources

    if args.rows is not None:
        return sources.images_of_rows(args.rows, out=args.out)
    if args.folder is not None:
        found, name = sources.images_of_folder(args.folder), args.folder.resolve().name
    else:
        found, name = sources.images_of_table(args.csv), args.csv.stem
    return sources.read_images(found, dataset=args.dataset or name, out=args.out)


def _activities(args: argparse.Namespace) -> None:
    from data_prep.activities.dataset import write_activities
    from data_prep.rows import images_among, read_rows

    path = write_activities(
        args.out or Path("data") / f"sticks-{args.style}",
        style=args.style,
        num_images={split: getattr(args, split) for split in SPLITS if getattr(args, split)},
        seed=args.seed,
        size=args.size,
        overwrite=args.overwrite,
    )
    show(f"{path}: {_summary_of(images_among(read_rows(path)))}")


def _summary_of(rows: "list[LabelledImage]") -> str:
    splits = Counter(row.split for row in rows)
    of_split = ", ".join(f"{splits[split]} {split}" for split in SPLITS if splits[split])
    return f"{len(rows)} images of {len({row.label for row in rows})} classes ({of_split})"

"""`actrep prepare recognition`: rows of a user's images with their classes, few shots of each."""

import argparse
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
from actrep_ray.cli.prepare.activities import describe_images

if TYPE_CHECKING:
    from data_prep.activities.sources import Images


def add_recognition(kinds: Any) -> None:
    """Add `actrep prepare recognition`.

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
    source.add_argument(
        "--videos",
        type=Path,
        metavar="ROOT",
        help="videos, to take frames of",
    )
    source.add_argument("--csv", type=Path, metavar="FILE", help="columns image, label[, split]")
    source.add_argument("--rows", type=Path, metavar="FILE", help="rows written before")
    own.add_argument("--frames", type=int, metavar="N", help="of each of --videos (default: 1)")
    own.add_argument("--shots", type=int, metavar="K", help="images of each class to train on")
    own.add_argument("--seed", type=int, default=0, help="which images are the shots")
    own.add_argument(
        "--classes",
        choices=("all", "base", "new"),
        default="all",
        help="base: the first half of the sorted names; new: the others",
    )
    own.add_argument("--dataset", metavar="NAME", help="default: the folder's or the table's name")
    own.add_argument("--out", type=Path, required=True, metavar="FILE", help="rows to write")
    add_overwrite(own, "FILE")


def _recognition(args: argparse.Namespace) -> None:
    from data_prep.activities.shots import choose_classes, take_shots
    from data_prep.activities.sources import describe
    from data_prep.overwriting import refuse_existing
    from data_prep.rows import files_of, write_rows

    if args.frames is not None and args.videos is None:
        raise UsageError("--frames belongs to --videos")
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
    show(f"{args.out}: {describe_images(rows)}{outside_note(args.out, files_of(rows))}")


def _images_of(args: argparse.Namespace) -> "Images":
    from data_prep.activities import sources

    if args.rows is not None:
        return sources.images_of_rows(args.rows, out=args.out)
    if args.videos is not None:
        return _images_of_videos(args)
    if args.folder is not None:
        found, name = sources.images_of_folder(args.folder), args.folder.resolve().name
    else:
        found, name = sources.images_of_table(args.csv), args.csv.stem
    return sources.read_images(found, dataset=args.dataset or name, out=args.out)


def _images_of_videos(args: argparse.Namespace) -> "Images":
    from data_prep.activities import sources
    from data_prep.activities.video_frames import images_of_videos

    num_frames = 1 if args.frames is None else args.frames
    taken = images_of_videos(args.videos, num_frames=num_frames, out=args.out)
    name = args.dataset or args.videos.resolve().name
    images = sources.read_images(taken.found, dataset=name, out=args.out)
    for told in taken.unreadable:
        images.leave_out("unreadable", told)
    return images

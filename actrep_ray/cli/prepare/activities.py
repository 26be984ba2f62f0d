"""`actrep prepare activities`: drawn stick figures of activities."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.commands import add_command, add_overwrite, show
from data_prep.schema import SPLITS

if TYPE_CHECKING:
    from data_prep.images import LabelledImage


def add_activities(kinds: Any) -> None:
    """Add `actrep prepare activities`.

    Args:
        kinds: The sub-parsers of `prepare`.
    """
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
    show(f"{path}: {describe_images(images_among(read_rows(path)))}")


def describe_images(rows: "list[LabelledImage]") -> str:
    """How many there are, of how many classes, in which splits."""
    splits = Counter(row.split for row in rows)
    of_split = ", ".join(f"{splits[split]} {split}" for split in SPLITS if splits[split])
    return f"{len(rows)} images of {len({row.label for row in rows})} classes ({of_split})"

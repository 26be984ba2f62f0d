"""`actrep prepare synthetic`: arguments, progress, summary."""

import argparse
from pathlib import Path
from typing import Any

from actrep_ray.cli.commands import add_command, add_overwrite, show
from data_prep.schema import SPLITS


def add_synthetic(kinds: Any) -> None:
    """Add `actrep prepare synthetic`.

    Args:
        kinds: The sub-parsers of `prepare`.
    """
    synthetic = add_command(
        kinds,
        "synthetic",
        _synthetic,
        "render mp4 videos of repeated motions with exact cycle marks",
        "actrep prepare synthetic --level hard --train 600 --test 200",
    )
    levels = ("easy", "medium", "hard", "long", "real-like")
    synthetic.add_argument("--level", choices=levels, default="easy")
    for split, number in zip(SPLITS, (600, 64, 200), strict=True):
        synthetic.add_argument(f"--{split}", type=int, default=number, metavar="N")
    synthetic.add_argument("--seed", type=int, default=0)
    synthetic.add_argument("--processes", type=int, default=2, metavar="N")
    add_overwrite(synthetic, "a data set of other settings")
    synthetic.add_argument("--out", type=Path, help="folder (default: data/synthetic-LEVEL)")


def _synthetic(args: argparse.Namespace) -> None:
    from actrep_ray.run.console import error_console, progress_bar
    from data_prep.synthetic.dataset import write_dataset

    out = args.out or Path("data") / f"synthetic-{args.level}"
    num_clips = {split: getattr(args, split) for split in SPLITS}
    with progress_bar(on=error_console()) as bar:
        task = bar.add_task("rendering", total=None)
        path = write_dataset(
            out,
            level=args.level,
            num_clips={split: number for split, number in num_clips.items() if number},
            seed=args.seed,
            num_processes=args.processes,
            overwrite=args.overwrite,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    show(f"{path}: {_summary_of(path)}")


def _summary_of(path: Path) -> str:
    from collections import Counter

    from data_prep.schema import read_clips

    clips = list(read_clips(path))
    splits = Counter(clip.split for clip in clips)
    counts = [clip.count for clip in clips]
    marked = sum(clip.cycles is not None for clip in clips)
    of_split = ", ".join(f"{splits[split]} {split}" for split in SPLITS if splits[split])
    return (
        f"{len(clips)} clips ({of_split}), counts {min(counts)} to {max(counts)}, "
        f"{marked} with cycle marks"
    )

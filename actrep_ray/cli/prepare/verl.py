"""`actrep prepare verl`: clips as the rows of a verl data set."""

import argparse
from pathlib import Path
from typing import Any

from actrep_ray.cli.commands import add_command, add_set, read_recipe, show
from actrep_ray.cli.prepare.rcs import read_split
from data_prep.schema import SPLITS


def add_verl(kinds: Any) -> None:
    """Add `actrep prepare verl`.

    Args:
        kinds: The sub-parsers of `prepare`.
    """
    parser = add_command(
        kinds,
        "verl",
        _verl,
        "write clips as a Parquet file that verl trains on, with our questions and rewards",
        "actrep prepare verl data/repcount/clips.jsonl --split train --out train.parquet",
    )
    parser.add_argument("data", type=Path, metavar="FILE", help="JSONL of clips")
    parser.add_argument("--split", choices=SPLITS, default="train", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="RECIPE",
        help="whose question and video settings are used (default: the defaults)",
    )
    add_set(parser)


def _verl(args: argparse.Namespace) -> None:
    from actrep_ray.tasks.verl_rows import write_verl_parquet

    recipe = read_recipe(args)
    num_rows = write_verl_parquet(read_split(args.data, args.split), recipe, args.out)
    show(f"{args.out}: {num_rows:,} rows for verl, scored by rewards.compute_score.compute_score")

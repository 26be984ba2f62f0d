"""What `rcs-report` and `rcs-export` share: clips to draw from, and the settings of the draw."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from actrep_ray.cli.commands import UsageError, add_set

if TYPE_CHECKING:
    from actrep_ray.config import Recipe
    from data_prep.schema import Clip


def add_draw_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the clips, `--recipe` and `--set`."""
    parser.add_argument("data", type=Path, metavar="FILE", help="JSONL of clips; only train")
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="RECIPE",
        help="whose sampling settings and seed are used (default: the defaults)",
    )
    add_set(parser)


def read_split(path: Path, split: str, recipe: "Recipe") -> "list[Clip]":
    """The clips of a split; a recipe says of which data sets, and where their videos may lie.

    Raises:
        DataError: if there is none.
    """
    from actrep_ray.tasks.loading import clips_of_split
    from data_prep.rows import clips_among

    data = recipe.data.model_copy(update={"path": str(path)})
    rows = clips_of_split(recipe.model_copy(update={"data": data}), split)
    return clips_among(rows)


def check_draws(num: int) -> None:
    """Refuse fewer draws than one.

    Raises:
        UsageError: if there are none.
    """
    if num < 1:
        raise UsageError(f"{num} draws, expected at least 1")

"""`actrep prepare verl`: clips as the rows of a verl data set."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.commands import add_command, add_overwrite, add_set, read_recipe, show
from actrep_ray.cli.prepare.rcs import read_split
from data_prep.schema import SPLITS

if TYPE_CHECKING:
    from actrep_ray.config import Recipe


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
    add_overwrite(parser, "FILE.parquet")
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="RECIPE",
        help="whose question and video settings are used, and the chat template of its model "
        "(default: the defaults)",
    )
    add_set(parser)


def _verl(args: argparse.Namespace) -> None:
    from actrep_ray.models.families import how_to_get
    from actrep_ray.tasks.verl_rows import write_verl_parquet
    from data_prep.overwriting import refuse_existing, refuse_input

    refuse_input(args.out, args.data)
    refuse_existing(args.out, overwrite=args.overwrite)
    recipe = read_recipe(args)
    clips = read_split(args.data, args.split, recipe)
    opened = _opened_by(recipe)
    num_rows = write_verl_parquet(clips, recipe, args.out, opened or "")
    show(f"{args.out}: {num_rows:,} rows for verl, scored by rewards.compute_score.compute_score")
    if opened is None:
        model = recipe.model.path
        missing = f"{model} is not here{how_to_get(model)}" if model else "model.path is not set"
        show(
            f"{missing}: the rows do not say what the model's chat template opens; with one "
            "that opens <think>, give the reward opened='<think>\\n' (docs/rewards.md)"
        )


def _opened_by(recipe: "Recipe") -> str | None:
    """What the chat template of the recipe's model opens; None where the model is not here."""
    from actrep_ray.run.model_folder import model_folder

    if not recipe.model.path or not model_folder(recipe.model.path).is_dir():
        return None
    from actrep_ray.models.qwen_vl import QwenVLInputs

    inputs = QwenVLInputs(model_folder(recipe.model.path))
    inputs.check_dialect(recipe.data.dialect)
    return inputs.opened

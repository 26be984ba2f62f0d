"""What `actrep evaluate` and `actrep count` share: a checkpoint and its settings."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actrep_ray.cli.commands import UsageError, add_download, add_set, with_paths
from actrep_ray.cli.inputs import check_model

if TYPE_CHECKING:
    from actrep_ray.config import Recipe


def add_checkpoint_arguments(parser: argparse.ArgumentParser, *, most: int | None = 1) -> None:
    """Add `--checkpoint` (None: of any number), `--method`, `--recipe`, `--download`, `--set`."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="model or run folder, or OWNER/MODEL"
        + ("" if most == 1 else "; several are compared"),
        nargs=None if most == 1 else "+",
    )
    parser.add_argument(
        "--method",
        choices=("model", "periodicity"),
        default="model",
        help="periodicity: a detector without a model, by self-similarity; default: %(default)s",
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="RECIPE",
        help="settings (default: those that the checkpoint was trained with)",
    )
    add_download(parser)
    add_set(parser)


def read_model(given: Path | None, *, may_download: bool) -> Path:
    """The model folder that a `--checkpoint` means.

    Raises:
        UsageError: if none was given.
        ConfigError: if there is no model in it.
    """
    if given is None:
        raise UsageError("--checkpoint DIR is missing; only --method periodicity needs none")
    return check_model(given, may_download=may_download)


def recipe_for(args: argparse.Namespace, model: Path, overrides: Sequence[str] = ()) -> "Recipe":
    """Settings to run a checkpoint with: those of --recipe, else its own, else the defaults.

    Args:
        args: With `recipe` and `set`.
        model: Folder of the checkpoint.
        overrides: What the command asks for, as of `--set`, which comes after them.
    """
    from actrep_ray.config import load_recipe, override
    from actrep_ray.run.model_folder import recipe_of

    recipe = load_recipe(args.recipe) if args.recipe else recipe_of(model) or load_recipe(None)
    of_model = f"model.path={json.dumps(str(model))}"
    return with_paths(args, override(recipe, [of_model, *overrides, *args.set]))

"""What `actrep sft` and `actrep train` share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from actrep_ray.cli.commands import UsageError, add_set, read_recipe, show, with_paths

if TYPE_CHECKING:
    from actrep_ray.config import Recipe

_COMMANDS = {"sft": "sft", "grpo": "train"}


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the recipe, `--resume`, `--root` and `--set`."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the run's last checkpoint"
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder that the recipe's relative paths start from (default: the current one)",
    )
    add_set(parser)


def read_training_recipe(args: argparse.Namespace, stage: str) -> "Recipe":
    """The recipe, its paths below `--root`.

    Raises:
        ConfigError: naming all that is wrong with it.
        UsageError: if it is for the other command.
    """
    from actrep_ray.config import under_root

    recipe = read_recipe(args)
    if recipe.stage != stage:
        command = _COMMANDS[recipe.stage]
        raise UsageError(f"{args.recipe}: stage={recipe.stage}, use `actrep {command}` for it")
    return with_paths(args, under_root(recipe, args.root)) if args.root else recipe


def announce(recipe: "Recipe") -> None:
    """Say what training comes to and where it can be watched."""
    from actrep_ray.planning.training import describe_training

    show("\n".join(describe_training(recipe)))
    show(f"run folder {recipe.run_dir}; watch it with: tensorboard --logdir {recipe.run_dir}")
    show("starting the workers ...")

"""What `actrep sft` and `actrep train` share."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from actrep_ray.cli.commands import UsageError, add_download, add_set, read_recipe, show, with_paths
from actrep_ray.run.program import program

if TYPE_CHECKING:
    from actrep_ray.config import Recipe
    from actrep_ray.run.checkpoint import Checkpoint

_COMMANDS = {"sft": "sft", "grpo": "train"}


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the recipe, how it begins, `--root` and `--set`."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--resume",
        action="store_true",
        help="go on from the run's last whole checkpoint; ctrl-C, SIGTERM and SIGUSR1 write one",
    )
    how.add_argument(
        "--begin-or-resume",
        action="store_true",
        help="for jobs that are started again: go on with the run if there is one, else begin it",
    )
    how.add_argument(
        "--overwrite", action="store_true", help="remove the run that is there, and start over"
    )
    parser.add_argument(
        "--allow-changes",
        metavar="KEY,...",
        default="",
        help="with --resume: settings that may differ from those that the run was begun with",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder that the recipe's relative paths start from (default: the current one)",
    )
    add_download(parser)
    add_set(parser)


def read_training_recipe(args: argparse.Namespace, stage: str) -> "Recipe":
    """The recipe, its paths below `--root`.

    Raises:
        ConfigError: naming all that is wrong with it, or a tracker that is not installed.
        UsageError: if it is for the other command.
    """
    from actrep_ray.config import under_root
    from actrep_ray.run.trackers import check_trackers

    recipe = read_recipe(args)
    check_trackers(recipe.run.trackers)
    if recipe.stage != stage:
        command = _COMMANDS[recipe.stage]
        raise UsageError(f"{args.recipe}: stage={recipe.stage}, use `actrep {command}` for it")
    return with_paths(args, under_root(recipe, args.root)) if args.root else recipe


def allowed_changes(args: argparse.Namespace) -> tuple[str, ...]:
    """The settings of `--allow-changes`.

    Raises:
        UsageError: if nothing is resumed.
    """
    keys = tuple(key.strip() for key in args.allow_changes.split(",") if key.strip())
    if keys and not (args.resume or args.begin_or_resume):
        raise UsageError("--allow-changes goes with --resume")
    return keys


def is_resumed(args: argparse.Namespace, recipe: "Recipe") -> bool:
    """Whether a run is gone on with."""
    from actrep_ray.run.record import RECORD

    return args.resume or (args.begin_or_resume and (recipe.run_dir / RECORD).is_file())


def announce(recipe: "Recipe", start: "Checkpoint | None", *, resume: bool) -> None:
    """Say what training comes to, from which step, and where it can be watched."""
    from actrep_ray.planning.training import describe_training
    from actrep_ray.run.trackers import TENSORBOARD

    show("\n".join(describe_training(recipe)))
    if start is not None:
        show(f"goes on from step {start.step}: {start.folder}")
    elif resume:
        show("goes on from step 0: the run was cut short before its first checkpoint")
    where = f"run folder {recipe.run_dir}"
    if TENSORBOARD in recipe.run.trackers:
        watch = shlex.join([program("tensorboard"), "--logdir", str(recipe.run_dir)])
        where += f"; watch it with: {watch}"
    if others := [name for name in recipe.run.trackers if name != TENSORBOARD]:
        stores = recipe.run_dir.parent / "trackers"
        where += f"; {', '.join(others)} in {stores} (docs/trackers.md)"
    show(where)
    show("starting the workers ...")

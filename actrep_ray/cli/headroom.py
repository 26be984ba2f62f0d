"""`actrep headroom`: can reinforcement help, asked before a run."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.commands import (
    UsageError,
    add_command,
    add_download,
    add_overwrite,
    add_set,
    show,
)
from actrep_ray.cli.inputs import check_inputs

if TYPE_CHECKING:
    from actrep_ray.config import Recipe
    from actrep_ray.driver.headroom import HeadroomJob
    from actrep_ray.evaluation.headroom import Headroom

_PROMPTS = 128  # a share is known to 0.09 at worst, and it is a few steps of most recipes
_FILES = ("headroom.json", "headroom.png")


def add_headroom(commands: Any) -> None:
    """Add `actrep headroom`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands,
        "headroom",
        _headroom,
        "say before a run whether reinforcement can help: sample as it would, and advise",
        "actrep headroom recipes/quickstart_grpo.yaml --checkpoint runs/quickstart/sft",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument(
        "--checkpoint",
        "--model",
        type=Path,
        metavar="DIR",
        help="model or run folder to start from (default: model.path of the recipe)",
    )
    parser.add_argument(
        "--prompts",
        type=int,
        default=_PROMPTS,
        metavar="N",
        help="clips to ask about, drawn as the run will draw them (default: %(default)s)",
    )
    parser.add_argument(
        "--answers",
        type=int,
        metavar="K",
        help="answers to each, a multiple of train.group_size (default: that)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: headroom/ in the folder of the run"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_download(parser)
    add_overwrite(parser, "what is in DIR")
    add_set(parser)


def _headroom(args: argparse.Namespace) -> None:
    from data_prep.overwriting import refuse_existing

    recipe = _read_recipe(args)
    out_dir = args.out or recipe.run_dir / "headroom"
    written = [out_dir / name for name in _FILES]
    refuse_existing(*written, overwrite=args.overwrite)
    check_inputs(recipe, ("train",), may_download=args.download)
    from actrep_ray.driver.headroom import prepare_headroom
    from actrep_ray.run.lock import FolderLock

    job = prepare_headroom(recipe, num_prompts=args.prompts, num_answers=args.answers)
    with FolderLock.acquire(out_dir, "actrep headroom"):
        refuse_existing(*written, overwrite=args.overwrite)
        with _showing_progress(job.total) as progress:
            found = job.run(progress)
        _write(found, job, out_dir)
    if args.json:
        show(json.dumps(found.to_json()))
    else:
        _print(found, recipe, out_dir)


def _read_recipe(args: argparse.Namespace) -> "Recipe":
    """The recipe with the start of `--checkpoint`; `--set` comes after it."""
    from actrep_ray.cli.commands import read_recipe

    if args.checkpoint is not None:
        args.set = [f"model.path={json.dumps(str(args.checkpoint))}", *args.set]
    recipe = read_recipe(args)
    if recipe.stage != "grpo":
        raise UsageError(f"{args.recipe}: stage={recipe.stage}, expected a recipe of stage grpo")
    return recipe


def _write(found: "Headroom", job: "HeadroomJob", out_dir: Path) -> None:
    """The figures with what they were measured on, and the picture."""
    from actrep_ray.evaluation.figure_style import save
    from actrep_ray.evaluation.headroom_figure import draw_headroom
    from actrep_ray.run.provenance import provenance
    from actrep_ray.tasks.loading import load_task
    from data_prep.files import write_json

    recipe = job.recipe
    source = {"settings": recipe.model_dump(mode="json"), **provenance(recipe)}
    write_json(out_dir / "headroom.json", {**found.to_json(), **source})
    save(draw_headroom(found, load_task(recipe.task)), out_dir / "headroom.png")


def _print(found: "Headroom", recipe: "Recipe", out_dir: Path) -> None:
    from actrep_ray.evaluation.headroom_tables import headroom_tables
    from actrep_ray.run.console import console
    from actrep_ray.tasks.loading import load_task

    for table in headroom_tables(found, load_task(recipe.task)):
        console().print(table.to_rich())
    show(f"{found.advice}\n\nfigures and picture: {out_dir}")


@contextmanager
def _showing_progress(num_groups: int) -> Iterator[Callable[[int], None]]:
    """A bar of the groups that were sampled."""
    from actrep_ray.run.console import error_console, progress_bar

    with progress_bar(on=error_console()) as bar:
        task = bar.add_task("sampling", total=num_groups)
        yield lambda done: bar.update(task, completed=done)

"""`actrep train`: reinforcement learning."""

import argparse
from typing import Any

from actrep_ray.cli.commands import add_command, show
from actrep_ray.cli.inputs import check_inputs
from actrep_ray.cli.training import (
    add_training_arguments,
    allowed_changes,
    announce,
    is_resumed,
    read_training_recipe,
)


def add_train(commands: Any) -> None:
    """Add `actrep train`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands,
        "train",
        _train,
        "reinforcement learning (GRPO) on counting rewards",
        "actrep train recipes/tiny_grpo.yaml --set learner.lr=2e-5 --set name=second",
    )
    add_training_arguments(parser)
    parser.add_argument(
        "--profile", action="store_true", help="draw who did what when, and name the bottleneck"
    )


def _train(args: argparse.Namespace) -> None:
    recipe = read_training_recipe(args, "grpo")
    check_inputs(recipe, ("train",), may_download=args.download)
    from actrep_ray.driver.job import prepare_grpo
    from actrep_ray.evaluation.report import print_remarks
    from actrep_ray.evaluation.run_results import remarks_on_training
    from actrep_ray.run.console import console
    from actrep_ray.tasks.loading import load_task

    resume = is_resumed(args, recipe)
    job = prepare_grpo(
        recipe,
        resume=resume,
        overwrite=args.overwrite,
        allow_changes=allowed_changes(args),
    )
    announce(recipe, job.start, resume=resume)
    checkpoint = job.run(profile=args.profile)
    print_remarks(remarks_on_training(recipe.run_dir, load_task(recipe.task)), console())
    show(f"last checkpoint: {checkpoint.folder}")

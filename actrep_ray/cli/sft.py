"""`actrep sft`: supervised fine-tuning."""

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


def add_sft(commands: Any) -> None:
    """Add `actrep sft`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands,
        "sft",
        _sft,
        "supervised fine-tuning on reference answers",
        "actrep sft recipes/tiny_sft.yaml --set sft.num_steps=100",
    )
    add_training_arguments(parser)


def _sft(args: argparse.Namespace) -> None:
    recipe = read_training_recipe(args, "sft")
    check_inputs(recipe, ("train",), may_download=args.download)
    from actrep_ray.sft import prepare_sft

    resume = is_resumed(args, recipe)
    job = prepare_sft(
        recipe,
        resume=resume,
        overwrite=args.overwrite,
        allow_changes=allowed_changes(args),
    )
    announce(recipe, job.start, resume=resume)
    show(f"last checkpoint: {job.run().folder}")

"""`actrep quickstart`: everything once."""

import argparse
from typing import Any

from actrep_ray.cli.commands import UsageError, add_command, add_set, with_paths


def add_quickstart(commands: Any) -> None:
    """Add `actrep quickstart`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands,
        "quickstart",
        _quickstart,
        "from nothing to a small Qwen3-VL that counts, in minutes on a CPU",
        "actrep quickstart --fresh",
    )
    parser.add_argument(
        "--task",
        choices=("counting", "recognition"),
        default="counting",
        help="recognition: activities in still images, from four shots of each; default: counting",
    )
    parser.add_argument("--fresh", action="store_true", help="start over")
    parser.add_argument(
        "--full",
        action="store_true",
        help="the long recipes (tiny_sft.yaml, tiny_grpo.yaml; at most 90 minutes on 2 cores)",
    )
    add_set(parser)


def _quickstart(args: argparse.Namespace) -> None:
    from actrep_ray.config import load_recipe, recipes_folder
    from actrep_ray.quickstart.run import FULL, QUICK, run_quickstart

    if args.task == "recognition":
        if args.full:
            raise UsageError("--full belongs to --task counting")
        from actrep_ray.quickstart.activities import run_activities

        run_activities(fresh=args.fresh, overrides=args.set)
        return
    edition = FULL if args.full else QUICK
    with_paths(args, load_recipe(recipes_folder() / edition.sft, args.set))
    run_quickstart(edition=edition, fresh=args.fresh, overrides=args.set)

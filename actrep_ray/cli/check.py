"""`actrep check`: what a recipe sets and needs, and whether rewards keep their contract."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.commands import UsageError, add_command, add_set, read_recipe, show

if TYPE_CHECKING:
    from actrep_ray.config import Recipe
    from actrep_ray.planning.description import Check
    from rewards.check import RewardCheck
    from rewards.contract import Part


def add_check(commands: Any) -> None:
    """Add `actrep check`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands,
        "check",
        _check,
        "show a recipe's settings beside the defaults and what it needs, or test a reward",
        "actrep check recipes/qwen3_vl_4b_grpo.yaml --gpus 8x80GB\n"
        "  actrep check recipes/tiny_grpo.yaml --reward my_package.rewards:smooth_count",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", nargs="?")
    parser.add_argument(
        "--gpus",
        metavar="NxSIZE",
        help="hardware to plan for, as 8x80GB or 2x8x80GB (nodes x GPUs x size); default: the "
        "cluster of RAY_ADDRESS, or the first line of the recipe",
    )
    parser.add_argument("--reward", action="append", default=[], metavar="NAME")
    add_set(parser)


def _check(args: argparse.Namespace) -> int:
    """1 if the recipe does not fit its hardware."""
    if args.recipe is None and not args.reward:
        raise UsageError("give a recipe, a --reward, or both")
    checks = [_check_reward(name) for name in args.reward]
    found = None
    if args.recipe is not None:
        found, of_recipe = _check_recipe(args)
        checks += of_recipe
    for check in checks:
        show(_describe(check))
    return 0 if found is None or found.fits else 1


def _check_recipe(args: argparse.Namespace) -> "tuple[Check, list[RewardCheck]]":
    """Show a recipe's settings and what they come to; test the rewards that are not only ours."""
    from actrep_ray.planning.description import check_recipe
    from actrep_ray.run.best import BestStep
    from actrep_ray.scoring.worker import make_spec
    from actrep_ray.tasks.loading import load_task

    recipe = read_recipe(args)
    load_task(recipe.task)  # of a file, it may not be one
    parts = make_spec(recipe).parts
    BestStep(recipe)
    _print_settings(recipe)
    found = check_recipe(recipe, args.recipe, args.gpus)
    show("\n" + "\n".join(found.lines))
    # Ours without options are tested by us.
    return found, [
        _check_reward(part.name, part) for part in parts if part.options or ":" in part.name
    ]


def _check_reward(name: str, part: "Part | None" = None) -> "RewardCheck":
    from rewards.check import check_reward

    try:
        if part is None:
            return check_reward(name)
        return check_reward(name, is_penalty=part.is_penalty, options=dict(part.options))
    except ValueError as error:  # it cannot be loaded, or breaks the contract that is tested here
        raise UsageError(str(error)) from error


def _describe(check: "RewardCheck") -> str:
    seen = "never applied"
    if check.lowest is not None:
        seen = f"{check.lowest:g} to {check.highest:g}"
    return (
        f"reward {check.name}: keeps its contract on {check.num_calls} answers "
        f"({check.num_skipped} not applicable), values {seen}, "
        f"{check.seconds_per_call * 1e6:.0f} µs each"
    )


def _print_settings(recipe: "Recipe") -> None:
    """Every setting, those that differ from the default marked with it."""
    from actrep_ray.config import Recipe, flat_settings

    values, defaults = flat_settings(recipe), flat_settings(Recipe())
    width = max(map(len, values))
    for key in sorted(values):
        value, default = values[key], defaults.get(key)
        note = "" if value == default else f"    # default {default!r}"
        show(f"{'*' if note else ' '} {key:<{width}}  {value!r}{note}")
    changed = sum(values[key] != defaults.get(key) for key in values)
    show(f"{changed} of {len(values)} settings differ from the defaults (marked *)")

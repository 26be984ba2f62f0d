"""What `actrep evaluate`, `count` and `demo` share: a checkpoint and its settings."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actrep_ray.cli.commands import UsageError, add_download, add_set, with_paths
from actrep_ray.cli.inputs import check_model

if TYPE_CHECKING:
    from actrep_ray.config import Recipe
    from actrep_ray.evaluation.confidence import Calibration


_FEW = 8  # videos up to which transformers has answered before vLLM has started
MOST_ANSWERS = 256
"""To one question: more are a slip of the finger, and their scores fill the memory."""


def add_checkpoint_arguments(
    parser: argparse.ArgumentParser,
    *,
    most: int | None = 1,
    needs_one: bool = True,
    has_api: bool = False,
) -> None:
    """Add `--checkpoint`, `--method`, `--recipe`, `--download` and `--set`.

    Args:
        parser: Gets them.
        most: How many checkpoints there may be; None: any number.
        needs_one: Or the detector stands in where there is none.
        has_api: Whether a model behind an API may be asked.
    """
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
        choices=("model", "periodicity", *(("api",) if has_api else ())),
        default="model" if needs_one else None,
        help="periodicity: a detector without a model, by self-similarity; "
        + ("api: a model behind an API, as --base-url says; " if has_api else "")
        + "default: "
        + ("%(default)s" if needs_one else "model, if there is a checkpoint"),
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="RECIPE",
        help="settings (default: those that the checkpoint was trained with)",
    )
    add_download(parser)
    add_set(parser)


def add_samples(parser: argparse.ArgumentParser) -> None:
    """Add `--samples`."""
    parser.add_argument(
        "--samples",
        type=_number_of_answers,
        default=1,
        metavar="N",
        help="ask the model N times and take the median; says how far the answers agree",
    )


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Add `--calibration`."""
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE.json",
        help="tell as confidence how often such answers of this checkpoint were right: a file of "
        "actrep evaluate --samples N",
    )


def calibration_for(
    args: argparse.Namespace, model: Path, recipe: "Recipe"
) -> "Calibration | None":
    """That of --calibration, if it is of this checkpoint and of answers drawn like these.

    Args:
        args: With `calibration` and `samples`.
        model: Folder of the checkpoint.
        recipe: What it is asked with.

    Raises:
        DataError: if it is not.
    """
    if args.calibration is None:
        return None
    from actrep_ray.evaluation.confidence import read_calibration
    from actrep_ray.evaluation.predictors import sampling_json
    from actrep_ray.run.record import model_fingerprint

    sampling = sampling_json(recipe, args.samples)
    return read_calibration(args.calibration, model_fingerprint(model), sampling)


def _number_of_answers(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= MOST_ANSWERS:
        raise argparse.ArgumentTypeError(f"{text}: expected an integer of 1 to {MOST_ANSWERS}")
    return number


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


def names_action(recipe: "Recipe") -> bool:
    """Whether the question of a checkpoint says what is repeated."""
    return recipe.task != "counting" or "{action}" in recipe.data.question


def with_sooner_engine(recipe: "Recipe", chosen: Sequence[str], num_videos: int) -> "Recipe":
    """The recipe with the engine that is sooner done, unless `--set` names one.

    Args:
        recipe: Of the checkpoint.
        chosen: What `--set` was given.
        num_videos: To count in.
    """
    is_chosen = any(one.partition("=")[0].strip() == "rollout.engine" for one in chosen)
    if is_chosen or num_videos > _FEW or recipe.rollout.tensor_parallel_size > 1:
        return recipe
    rollout = recipe.rollout.model_copy(update={"engine": "hf"})
    return recipe.model_copy(update={"rollout": rollout})

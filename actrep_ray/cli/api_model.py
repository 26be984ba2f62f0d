"""`actrep evaluate --method api`: a model behind an API, judged as a checkpoint is."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from actrep_ray.cli.commands import UsageError, show
from actrep_ray.cli.endpoint import add_endpoint_arguments, endpoint_of
from data_prep.chat_settings import ChatSettings

if TYPE_CHECKING:
    from actrep_ray.config import Recipe
    from actrep_ray.evaluation.api_cost import Prices
    from actrep_ray.evaluation.api_model import ApiEvaluation, ApiReport

_MOST_SHOWN = 10  # clips without an answer; the file names all


def add_api_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `--method api` needs."""
    group = parser.add_argument_group(
        "--method api", "questions, frames and lengths are those of --recipe and --set"
    )
    add_endpoint_arguments(group)
    group.add_argument(
        "--send",
        choices=("frames", "video"),
        default="frames",
        help="frames: by the recipe's rate and limits, as JPEG images after their times; video: "
        "the clip itself, of which the endpoint chooses frames; default: %(default)s",
    )
    group.add_argument(
        "--price-in", type=float, metavar="X", help="of a million tokens that are read"
    )
    group.add_argument(
        "--price-out", type=float, metavar="X", help="of a million tokens that are written"
    )
    group.add_argument(
        "--tokens-per-frame",
        type=int,
        metavar="N",
        help="of the estimate; default: one for 32 x 32 pixels, with --api gemini 258",
    )
    group.add_argument(
        "--estimate", action="store_true", help="tell requests, tokens and cost, and ask nothing"
    )


def refuse_without_api(args: argparse.Namespace) -> None:
    """Refuse what belongs to `--method api` with another method.

    Raises:
        UsageError: naming the first such option.
    """
    for name in (
        *("base_url", "model", "allow_network", "api_key_env", "requests_per_minute"),
        *("price_in", "price_out", "tokens_per_frame", "estimate"),
    ):
        if getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} belongs to --method api")


def refuse_with_api(args: argparse.Namespace) -> None:
    """Refuse what a model behind an API has no use for.

    Raises:
        UsageError: naming it, or a price or number that cannot be.
    """
    if args.checkpoint is not None or args.all_checkpoints:
        raise UsageError("--checkpoint belongs to --method model; --method api takes --model NAME")
    if args.samples is not None:
        raise UsageError("--samples belongs to --method model")
    if args.estimate and args.overwrite:
        raise UsageError("--estimate writes nothing: leave out --overwrite")
    if (args.price_in is None) != (args.price_out is None):
        raise UsageError("--price-in and --price-out: expected both or neither")
    for name in ("price_in", "price_out"):
        if (value := getattr(args, name)) is not None and not 0 <= value < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')} {value}, expected a number of at least 0")
    if args.tokens_per_frame is not None and args.tokens_per_frame < 1:
        raise UsageError(f"--tokens-per-frame {args.tokens_per_frame}, expected at least 1")


def name_of_model(model: str) -> str:
    """By which its files and its row are called: `org/Qwen3-VL:free` -> `Qwen3-VL-free`."""
    name = re.sub(r"[^A-Za-z0-9._]+", "-", model.rstrip("/").rpartition("/")[2]).strip("-.")
    return f"model-{name}" if not name or name.isdigit() else name  # a number would be a step


def api_evaluation(args: argparse.Namespace, recipe: "Recipe", out_dir: Path) -> "ApiEvaluation":
    """The evaluation that the arguments ask for, checked.

    Raises:
        ValueError: for arguments, data or settings that cannot be used.
    """
    from actrep_ray.evaluation.api_model import prepare_api_evaluation

    settings = endpoint_of(
        args,
        ChatSettings,
        "--method api",
        temperature=args.temperature or 0.0,
        max_tokens=recipe.rollout.max_response_tokens,
    )
    name = name_of_model(settings.model)
    return prepare_api_evaluation(
        recipe, settings, sends=args.send, split=args.split, out_dir=out_dir, name=name
    )


def show_estimate(args: argparse.Namespace, job: "ApiEvaluation") -> None:
    """Tell what is about to be asked, and what it costs at most."""
    from actrep_ray.evaluation.api_cost import estimate

    found = estimate(job, args.tokens_per_frame)
    told = [
        f"{job.settings.model} at {job.settings.base_url}: {found.num_requests:,} of "
        f"{len(job.clips):,} clips to ask about, {found.num_frames:,} frames",
        f"estimated tokens: {found.prompt_tokens:,} in, at most {found.completion_tokens:,} out",
    ]
    if prices := _prices(args):
        cost = prices.of(found.prompt_tokens, found.completion_tokens)
        told.append(f"estimated cost: at most {cost:,.4f}")
    show("\n".join(told))


def show_report(args: argparse.Namespace, job: "ApiEvaluation", report: "ApiReport") -> None:
    """Tell what a call took, and which clips have no answer."""
    tokens = report.tokens
    failed = ", ".join(f"{reason} {number:,}" for reason, number in report.failed.items())
    told = [
        f"requests: {report.num_sent:,} sent; failed: {failed or 'none'}; {report.num_reused:,} "
        f"answers of an earlier call; tokens: {tokens['prompt']:,} in, "
        f"{tokens['completion']:,} out"
    ]
    if prices := _prices(args):
        cost = prices.of(tokens["prompt"], tokens["completion"])
        told.append(f"cost by the tokens that the endpoint told: {cost:,.4f}")
    if report.unanswered:
        told.append(
            f"{len(report.unanswered):,} clips have no answer and count as wrong; --resume asks "
            f"about them again ({job.report_path} names each):"
        )
        told += [
            f"  {one['clip_id']}: {one['reason']}, {one['detail']}"
            for one in report.unanswered[:_MOST_SHOWN]
        ]
    show("\n".join(told))


def _prices(args: argparse.Namespace) -> "Prices | None":
    from actrep_ray.evaluation.api_cost import Prices

    return None if args.price_in is None else Prices(args.price_in, args.price_out)

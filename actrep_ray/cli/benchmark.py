"""`actrep benchmark`: a public set, judged as we judge it or as lmms-eval does."""

import argparse
from pathlib import Path
from typing import Any

from actrep_ray.cli.api_model import add_api_model_arguments
from actrep_ray.cli.checkpoint import add_checkpoint_arguments
from actrep_ray.cli.commands import UsageError, add_command
from actrep_ray.cli.evaluate import add_evaluation_arguments, evaluate

SETS = ("repcount", "ucfrep", "countix", "pushupbench", "quva", "ovr")


def add_benchmark(commands: Any) -> None:
    """Add `actrep benchmark`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands,
        "benchmark",
        _benchmark,
        "evaluate on a public set, as we judge it or as lmms-eval does",
        "actrep benchmark repcount --protocol lmms-eval --checkpoint runs/tiny_grpo \\\n"
        "      --data data/repcount/clips.jsonl",
    )
    parser.add_argument("dataset", choices=SETS, help="the rows of --data that are asked about")
    parser.add_argument(
        "--protocol",
        choices=("ours", "lmms-eval"),
        default="ours",
        help="lmms-eval: its question for a single integer in 16 tokens, of which it reads the "
        "first number (of pushupbench in 4,096, the last), and its figures; default: %(default)s",
    )
    add_evaluation_arguments(parser, "runs/benchmark-SET-PROTOCOL")
    add_checkpoint_arguments(parser, most=None, has_api=True)
    add_api_model_arguments(parser)


def _benchmark(args: argparse.Namespace) -> None:
    from actrep_ray.tasks.lmms_eval import LMMS_EVAL, MAX_TOKENS, PUSHUPBENCH_TOKENS

    chosen = [f"data.datasets=[{args.dataset}]"]
    if args.protocol == "lmms-eval":
        task = f"lmms_eval_{args.dataset}"
        names = [one.name for one in LMMS_EVAL]
        if task not in names:
            known = ", ".join(name.removeprefix("lmms_eval_") for name in names)
            raise UsageError(
                f"--protocol lmms-eval: it has no task for {args.dataset}, only for {known}"
            )
        tokens = PUSHUPBENCH_TOKENS if args.dataset == "pushupbench" else MAX_TOKENS
        chosen += [f"task={task}", f"rollout.max_response_tokens={tokens}"]
    args.set = [*chosen, *args.set]
    args.out = args.out or Path(f"runs/benchmark-{args.dataset}-{args.protocol}")
    evaluate(args)

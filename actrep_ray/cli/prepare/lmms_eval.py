"""`actrep prepare lmms-eval`: clips as a task that lmms-eval itself runs."""

import argparse
from pathlib import Path
from typing import Any

from actrep_ray.cli.commands import add_command, add_overwrite, add_set, read_recipe, show
from actrep_ray.cli.prepare.rcs import read_split
from data_prep.schema import SPLITS

_REASONS = {
    "part_of_a_video": "lmms-eval shows whole videos",
    "images_before_it": "lmms-eval shows a video alone",
    "unreadable_video": "the file cannot be read as a video",
}


def add_lmms_eval(kinds: Any) -> None:
    """Add `actrep prepare lmms-eval`.

    Args:
        kinds: The sub-parsers of `prepare`.
    """
    parser = add_command(
        kinds,
        "lmms-eval",
        _lmms_eval,
        "write clips as a task that lmms-eval runs, with a model that asks actrep serve",
        "actrep prepare lmms-eval repcount data/repcount/clips.jsonl --out lmms_repcount",
    )
    parser.add_argument("dataset", choices=("repcount", "countix", "ovr"), help="whose task")
    parser.add_argument("data", type=Path, metavar="FILE", help="JSONL of clips")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    add_overwrite(parser, "the task in DIR")
    add_set(parser)


def _lmms_eval(args: argparse.Namespace) -> None:
    from actrep_ray.run.console import error_console, progress_bar
    from actrep_ray.tasks.lmms_eval_export import RUNNER, write_lmms_eval
    from data_prep.overwriting import refuse_existing

    refuse_existing(args.out / "clips.jsonl", overwrite=args.overwrite)
    args.recipe = None
    clips = read_split(args.data, args.split, read_recipe(args))
    args.out.mkdir(parents=True, exist_ok=True)
    with progress_bar(on=error_console()) as bar:
        task = bar.add_task("clips", total=len(clips))
        num_rows, left_out = write_lmms_eval(
            args.dataset, clips, args.out, lambda: bar.advance(task)
        )
    lines = [f"{args.out}: {num_rows:,} clips, {left_out.total():,} left out"]
    lines += [f"{n:>9,}  {reason}: {_REASONS[reason]}" for reason, n in left_out.most_common()]
    lines += [
        "with the checkpoint behind `actrep serve CHECKPOINT --name NAME`, in lmms-eval's own "
        "environment:",
        f"  python {args.out / RUNNER} --model actrep \\",
        "      --model_args base_url=http://127.0.0.1:8000/v1,model=NAME \\",
        f"      --include_path {args.out} --tasks actrep_{args.dataset} --batch_size 1 \\",
        f"      --output_path {args.out / 'results'} --log_samples",
    ]
    show("\n".join(lines))

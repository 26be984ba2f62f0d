"""`actrep prepare chat-export`: clips as SFT rows of LLaMA-Factory or ms-swift."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.commands import (
    add_command,
    add_overwrite,
    add_set,
    read_recipe,
    show,
)
from actrep_ray.cli.prepare.rcs import read_split
from data_prep.chat_format import FORMATS
from data_prep.schema import SPLITS

if TYPE_CHECKING:
    from actrep_ray.tasks.chat_rows import ChatRows

_REASONS = {
    "part_of_a_video": "LLaMA-Factory shows whole videos (swift takes parts)",
    "unreadable_video": "the file cannot be read as a video",
    "media_in_answer": "its answer holds a word where a trainer would put media",
    "no_answer": "data.answers has none",
    "no_marks": "no marks to write an answer from (actrep cot)",
    "marks_differ_from_count": "its marks are not as many as its count",
}


def add_chat_export(kinds: Any) -> None:
    """Add `actrep prepare chat-export`.

    Args:
        kinds: The sub-parsers of `prepare`.
    """
    parser = add_command(
        kinds,
        "chat-export",
        _chat_export,
        "write clips with our questions and answers as SFT data of LLaMA-Factory or ms-swift",
        "actrep prepare chat-export data/repcount/clips.jsonl --format swift --out sft.jsonl",
    )
    parser.add_argument("data", type=Path, metavar="FILE", help="JSONL of clips")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), required=True, help="sharegpt is LLaMA-Factory's"
    )
    parser.add_argument("--split", choices=SPLITS, default="train", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    add_overwrite(parser, "FILE.jsonl")
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="RECIPE",
        help="whose question and answers are used (default: the defaults)",
    )
    add_set(parser)


def _chat_export(args: argparse.Namespace) -> None:
    from actrep_ray.run.console import error_console, progress_bar
    from actrep_ray.tasks.chat_rows import write_chat_rows
    from data_prep.overwriting import refuse_existing, refuse_input

    refuse_input(args.out, args.data)
    refuse_existing(args.out, overwrite=args.overwrite)
    recipe = read_recipe(args)
    clips = read_split(args.data, args.split, recipe)
    with progress_bar(on=error_console()) as bar:
        task = bar.add_task("clips", total=len(clips))
        rows = write_chat_rows(
            clips, recipe, FORMATS[args.format], args.out, lambda: bar.advance(task)
        )
    show(_told(rows, args.out))
    if args.format == "sharegpt":
        show(f"dataset_info.json of LLaMA-Factory:\n{_dataset_info(args.out)}")


def _told(rows: "ChatRows", out: Path) -> str:
    lines = [f"{out}: {rows.num_rows:,} rows, {rows.left_out.total():,} clips left out"]
    for reason, number in rows.left_out.most_common():
        meaning = _REASONS.get(reason, "its answer is not one to learn from (docs/cot.md)")
        lines.append(f"{number:>9,}  {reason}: {meaning}")
    return "\n".join(lines)


def _dataset_info(out: Path) -> str:
    """What tells LLaMA-Factory how to read the file, in its own folder of data."""
    form = FORMATS["sharegpt"]
    columns = {"messages": form.messages, "videos": "videos"}
    entry = {"file_name": out.name, "formatting": "sharegpt", "columns": columns}
    return json.dumps({out.stem: entry})

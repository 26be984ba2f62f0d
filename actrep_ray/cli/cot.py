"""`actrep cot`: arguments, progress and table; the work is done by `data_prep.teachers`."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.commands import (
    UsageError,
    add_allow_outside,
    add_command,
    add_overwrite,
    complain,
    show,
)
from actrep_ray.cli.endpoint import add_endpoint_arguments, argument_adder, endpoint_of
from data_prep.chat_settings import GEMINI_URL
from data_prep.schema import SPLITS
from data_prep.teachers.settings import ApiSettings

if TYPE_CHECKING:
    from actrep_ray.run.progress import StepCallback
    from data_prep.schema import Clip
    from data_prep.teachers.answers import CotReport

_EXAMPLES = f"""\
actrep cot data/synthetic-easy/clips.jsonl --variety 5 --out cot.jsonl
  actrep cot data/repcount/clips.jsonl --split train --teacher api --out cot.jsonl \\
      --base-url http://localhost:8000/v1 --model Qwen/Qwen3-VL-32B-Instruct
  actrep cot data/repcount/clips.jsonl --split train --teacher api --out cot.jsonl \\
      --base-url {GEMINI_URL} \\
      --model gemini-2.5-flash --api-key-env GEMINI_API_KEY --requests-per-minute 100 \\
      --allow-network"""


def add_cot(commands: Any) -> None:
    """Add `actrep cot`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands, "cot", _cot, "write the reasoning that SFT teaches (data.answers)", _EXAMPLES
    )
    parser.add_argument("data", type=Path, metavar="FILE", help="JSONL of clips")
    parser.add_argument(
        "--teacher",
        choices=("annotations", "periodicity", "api"),
        default="annotations",
        help="annotations: from the cycle marks; periodicity: from marks that the detector finds "
        "in clips without, where they agree with the count; api: a model behind an "
        "OpenAI-compatible endpoint, checked against the labels; default: %(default)s",
    )
    parser.add_argument("--split", choices=SPLITS, help="only its clips")
    add_allow_outside(parser, "that of FILE")
    parser.add_argument("--dialect", choices=("think", "thinking"), default="think")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    add_overwrite(parser, "FILE (what an API was paid for stays in the journal beside it)")
    group = parser.add_argument_group("--teacher annotations, periodicity")
    group.add_argument(
        "--variety",
        type=int,
        default=1,
        metavar="N",
        help="phrasings of each section to draw from, at most 5; default: %(default)s",
    )
    group.add_argument("--seed", type=int, default=0, help="of the draw; default: %(default)s")
    group.add_argument(
        "--clips-out",
        type=Path,
        metavar="FILE",
        help="periodicity: also write the clips with the marks that were kept",
    )
    _add_api(parser.add_argument_group("--teacher api"))


def _add_api(group: Any) -> None:
    add_endpoint_arguments(group)
    add = argument_adder(group, ApiSettings)
    add("num_candidates", int, "N", "most answers about one clip; the first accepted is kept")
    add("temperature", float, "X", "of sampling")
    add("max_tokens", int, "N", "most tokens of an answer")
    add("fps", float, "X", "frames a second that are sent")
    add("max_frames", int, "N", "most frames of a clip that are sent")
    add("max_pixels", int, "N", "most pixels of a frame that is sent")


def _cot(args: argparse.Namespace) -> int:
    from data_prep.overwriting import refuse_existing, refuse_input
    from data_prep.schema import read_clips

    if args.variety < 1:
        raise UsageError(f"--variety {args.variety}, expected at least 1")
    written = [args.out, *([args.clips_out] if args.clips_out else [])]
    for file in written:
        refuse_input(file, args.data)
    refuse_existing(*written, overwrite=args.overwrite)
    teachers = {
        "annotations": _from_annotations,
        "periodicity": _from_periodicity,
        "api": _from_api,
    }
    clips = read_clips(args.data, split=args.split, allow_outside=args.allow_outside)
    report = teachers[args.teacher](args, clips)
    _show(report, args.out)
    if not report.num_accepted:
        complain(f"{args.data}: no clip has an answer that can be learnt from")
    return 0 if report.num_accepted else 2


def _from_annotations(args: argparse.Namespace, clips: "Iterator[Clip]") -> "CotReport":
    from data_prep.teachers.annotations import annotate
    from data_prep.teachers.answers import write_answers

    outcomes = annotate(clips, dialect=args.dialect, variety=args.variety, seed=args.seed)
    return write_answers(args.out, outcomes, "annotations")


def _from_periodicity(args: argparse.Namespace, clips: "Iterator[Clip]") -> "CotReport":
    from data_prep.rows import portable_row
    from data_prep.schema import write_clips
    from data_prep.teachers.answers import write_answers
    from data_prep.teachers.journal import Journal
    from data_prep.teachers.periodicity import found_path, propose_answers

    wanted = list(clips)
    with _progress("looking", len(wanted)) as progress, Journal(found_path(args.out)) as journal:
        outcomes = list(
            propose_answers(
                wanted,
                dialect=args.dialect,
                variety=args.variety,
                seed=args.seed,
                journal=journal,
                progress=lambda done, accepted: progress(done, {"accepted": accepted}),
            )
        )
    report = write_answers(args.out, outcomes, "periodicity")
    if args.clips_out:
        folder = args.clips_out.parent
        kept = [found.clip for found in outcomes if found.text is not None]
        write_clips(args.clips_out, [portable_row(clip, folder) for clip in kept])
    return report


def _from_api(args: argparse.Namespace, clips: "Iterator[Clip]") -> "CotReport":
    from data_prep.teachers.api import ask_api

    settings = endpoint_of(args, ApiSettings, "--teacher api")
    wanted = list(clips)
    with _progress("asking", len(wanted)) as progress:
        return ask_api(
            wanted,
            args.out,
            settings,
            progress=lambda done, _, accepted: progress(done, {"accepted": accepted}),
        )


@contextmanager
def _progress(title: str, total: int) -> "Iterator[StepCallback]":
    """A bar, or lines in a log, on standard error."""
    from actrep_ray.run.console import error_console
    from actrep_ray.run.progress import step_progress

    with step_progress(title, start=0, total=total, on=error_console()) as progress:
        yield progress


def _show(report: "CotReport", out: Path) -> None:
    from data_prep.teachers.answers import report_path

    lines = [f"{out}: answers for {report.num_accepted:,} of {report.num_clips:,} clips"]
    if report.rejected:
        lines += [f"without one ({report_path(out).name} names each):", *_rows(report.reasons)]
    figures = report.figures
    if candidates := figures.get("candidates"):
        lines.append(
            f"candidates: {candidates['asked']:,} asked, {candidates['reused']:,} from an earlier "
            f"run, {candidates['accepted']:,} accepted; rejected:"
        )
        lines += _rows(candidates["rejected"]) or ["        none"]
        failed = ", ".join(f"{k} {n:,}" for k, n in figures["requests"]["failed"].items())
        tokens = figures["tokens"]
        lines.append(
            f"requests: {figures['requests']['sent']:,} sent; failed: {failed or 'none'}; tokens: "
            f"{tokens.get('prompt', 0):,} in, {tokens.get('completion', 0):,} out"
        )
    show("\n".join(lines))


def _rows(numbers: "dict[str, int]") -> list[str]:
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    return [f"{number:>12,}  {name}" for name, number in ordered]

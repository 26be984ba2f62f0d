"""`actrep prepare {repcount,ucfrep,countix,quva,ovr,actrep,csv,chat}`: arguments, summary.

Owns what a person types and sees; the conversion is `data_prep.converters`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.commands import (
    UsageError,
    add_allow_outside,
    add_command,
    add_overwrite,
    complain,
    outside_note,
    show,
)
from data_prep.schema import SPLITS

CONFLICTS = ("drop", "first", "mean")  # of data_prep.converters.same_clips, which is slow to load

if TYPE_CHECKING:
    from data_prep.converters.annotation import Source
    from data_prep.converters.conversion import Summary

_BAR = 30  # characters of the longest bar


def add_converters(kinds: Any) -> None:
    """Add the sub-commands of `actrep prepare` that convert a set.

    Args:
        kinds: The sub-parsers of `prepare`.
    """
    for add in (
        _add_repcount,
        _add_ucfrep,
        _add_countix,
        _add_quva,
        _add_ovr,
        _add_actrep,
        _add_csv,
        _add_chat,
    ):
        add(kinds)


def _add_repcount(kinds: Any) -> None:
    parser = add_command(
        kinds,
        "repcount",
        _repcount,
        "convert RepCount-A: train.csv, valid.csv, test.csv",
        "actrep prepare repcount annotation/*.csv --videos video --out data/repcount",
    )
    _add_common(parser, "FILE", "the tables")


def _add_ucfrep(kinds: Any) -> None:
    parser = add_command(
        kinds,
        "ucfrep",
        _ucfrep,
        "convert UCFRep: its tables, or the original .mat files",
        "actrep prepare ucfrep annotations --videos UCF-101 --out data/ucfrep",
    )
    _add_common(parser, "PATH", "tables, .mat files, or folders of .mat files")
    parser.add_argument(
        "--strip-prefix", metavar="TEXT", help="take this off the front of the tables' video names"
    )


def _add_countix(kinds: Any) -> None:
    parser = add_command(
        kinds,
        "countix",
        _countix,
        "convert Countix: countix_train.csv, countix_val.csv, countix_test.csv",
        "actrep prepare countix countix/*.csv --videos kinetics700 --out data/countix",
    )
    _add_common(parser, "FILE", "the tables")
    parser.add_argument(
        "--full-videos",
        action="store_true",
        help="the videos are whole YouTube videos, not the 10-second clips of Kinetics",
    )


def _add_quva(kinds: Any) -> None:
    parser = add_command(
        kinds,
        "quva",
        _quva,
        "convert QUVA Repetition: annotations/*.npy and videos/*.mp4",
        "actrep prepare quva QUVARepetitionDataset --videos QUVARepetitionDataset/videos "
        "--out data/quva",
    )
    _add_common(parser, "PATH", "the set's folder, its folder of annotations, or .npy files")
    parser.add_argument(
        "--first-mark",
        choices=("end", "start"),
        default="end",
        help="whether the first number ends the first cycle (the set's own convention: the count "
        "is how many numbers there are) or starts it (one less); default: %(default)s",
    )


def _add_ovr(kinds: Any) -> None:
    parser = add_command(
        kinds,
        "ovr",
        _ovr,
        "convert OVR: JSON with a list of annotations for each video",
        "actrep prepare ovr ovr_kinetics.json --videos kinetics700 --out data/ovr",
    )
    _add_common(parser, "PATH", ".json or .jsonl files, or folders of them")


def _add_actrep(kinds: Any) -> None:
    parser = add_command(
        kinds,
        "actrep",
        _actrep,
        "convert ActRep-R1's files: CSV, or JSON Lines (also the older form)",
        "actrep prepare actrep train.jsonl --videos videos --out data/actrep",
    )
    _add_common(parser, "FILE", ".csv or .jsonl files")


def _add_csv(kinds: Any) -> None:
    parser = add_command(
        kinds,
        "csv",
        _csv,
        "convert a table of your own",
        "actrep prepare csv mine.csv --videos videos --out data/mine \\\n"
        "      --split train --column video=file --column count=reps --marks L --unit frames",
    )
    _add_common(parser, "FILE", "the tables")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="FIELD=COLUMN",
        help="which column holds video, count, id, split, action, start, end, fps or cycles "
        "(default: the one of that name; video and count must be there); may be given again",
    )
    parser.add_argument(
        "--marks", metavar="PREFIX", help="cycle marks in columns, L for L1, L2, ...: start, end"
    )
    parser.add_argument(
        "--unit", choices=("seconds", "frames"), default="seconds", help="default: %(default)s"
    )
    parser.add_argument(
        "--first-frame", type=int, choices=(0, 1), default=0, help="default: %(default)s"
    )
    parser.add_argument(
        "--delimiter", metavar="CHARACTER", help="default: found in the header (, ; tab |)"
    )
    parser.add_argument("--dataset", default="csv", metavar="NAME", help="default: %(default)s")


def _add_chat(kinds: Any) -> None:
    parser = add_command(
        kinds,
        "chat",
        _chat,
        "convert SFT data of LLaMA-Factory (ShareGPT) or ms-swift: a video, a question, an answer "
        "that counts",
        "actrep prepare chat sft.jsonl --videos videos --out data/chat --split train",
    )
    _add_common(parser, "FILE", ".jsonl or .json files")
    parser.add_argument(
        "--dataset",
        default="chat",
        metavar="NAME",
        help="of rows that do not say it; default: %(default)s",
    )


def _add_common(parser: argparse.ArgumentParser, metavar: str, what: str) -> None:
    parser.add_argument("annotations", type=Path, nargs="+", metavar=metavar, help=what)
    parser.add_argument(
        "--videos", type=Path, required=True, metavar="DIR", help="folder of the videos"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data") / parser.prog.split()[-1],
        metavar="DIR",
        help="folder to write clips.jsonl to (default: %(default)s)",
    )
    add_overwrite(parser, "clips.jsonl and what lies beside it")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="of all rows (default: as the files' names or their column say)",
    )
    add_allow_outside(parser, "that of --videos")
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="reject rows whose video is missing, instead of failing",
    )
    parser.add_argument(
        "--conflicts",
        choices=CONFLICTS,
        default="drop",
        help="rows that give one clip different counts: drop all of them, keep the first, or keep "
        "the first with the mean of the counts if that is whole (default: %(default)s)",
    )


# --- the commands


def _repcount(args: argparse.Namespace) -> int:
    from data_prep.converters.repcount import repcount

    return _convert(args, lambda: repcount(args.annotations, split=args.split))


def _ucfrep(args: argparse.Namespace) -> int:
    from data_prep.converters.ucfrep import ucfrep

    return _convert(
        args,
        lambda: ucfrep(args.annotations, split=args.split, strip_prefix=args.strip_prefix),
    )


def _countix(args: argparse.Namespace) -> int:
    from data_prep.converters.countix import countix

    return _convert(
        args, lambda: countix(args.annotations, split=args.split, full_videos=args.full_videos)
    )


def _quva(args: argparse.Namespace) -> int:
    from data_prep.converters.quva import quva

    return _convert(
        args, lambda: quva(args.annotations, split=args.split, first_mark=args.first_mark)
    )


def _ovr(args: argparse.Namespace) -> int:
    from data_prep.converters.ovr import ovr

    return _convert(args, lambda: ovr(args.annotations, split=args.split))


def _actrep(args: argparse.Namespace) -> int:
    from data_prep.converters.actrep import actrep

    return _convert(args, lambda: actrep(args.annotations, split=args.split))


def _csv(args: argparse.Namespace) -> int:
    from data_prep.converters.table import TableFormat, table

    def source() -> "Source":
        layout = TableFormat(
            columns=_columns(args.column),
            marks=args.marks,
            unit=args.unit,
            first_frame=args.first_frame,
            delimiter="\t" if args.delimiter == "\\t" else args.delimiter,
        )
        return table(args.annotations, dataset=args.dataset, split=args.split, layout=layout)

    return _convert(args, source)


def _chat(args: argparse.Namespace) -> int:
    from data_prep.converters.chat import chat

    return _convert(
        args,
        lambda: chat(args.annotations, videos=args.videos, split=args.split, dataset=args.dataset),
    )


def _columns(options: list[str]) -> dict[str, str]:
    columns = {}
    for option in options:
        name, equals, column = option.partition("=")
        if not (name and equals and column):
            raise UsageError(f"--column {option!r}, expected FIELD=COLUMN")
        columns[name] = column
    return columns


def _convert(args: argparse.Namespace, source: "Callable[[], Source]") -> int:
    """Convert with a progress bar, then show the summary; 1 if no row could be used."""
    from actrep_ray.run.console import error_console, progress_bar
    from data_prep.converters.conversion import convert
    from data_prep.overwriting import refuse_existing

    written = (args.out / name for name in ("clips.jsonl", "rejected.jsonl", "summary.json"))
    refuse_existing(*written, overwrite=args.overwrite)
    with progress_bar(on=error_console()) as bar:
        task = bar.add_task("converting", total=None)
        summary = convert(
            source(),
            videos=args.videos,
            out=args.out,
            allow_outside=args.allow_outside,
            allow_missing=args.allow_missing,
            conflicts=args.conflicts,
            progress=lambda done, size: bar.update(task, completed=done, total=size),
        )
    show(_report(summary, args.out))
    videos = args.videos.absolute()
    if summary.num_written and not videos.is_relative_to(args.out.absolute()):
        show(outside_note(args.out / "clips.jsonl", [f"{videos}/any"]))
    if not summary.num_written:
        complain(f"no row could be used; the first: {summary.first_rejected}")
    return 0 if summary.num_written else 1


def _report(summary: "Summary", out: Path) -> str:
    """The summary as text: numbers, remarks by kind, and the histogram of counts."""
    from data_prep.converters.remarks import FLAGS, REASONS
    from data_prep.strata import BINS

    splits = ", ".join(f"{summary.splits[name]} {name}" for name in SPLITS if summary.splits[name])
    clips = "1 clip" if summary.num_written == 1 else f"{summary.num_written:,} clips"
    lines = [
        f"{out / 'clips.jsonl'}: {clips}" + f" ({splits})" * bool(splits),
        "",
        f"{summary.num_read:>9,}  rows read",
        f"{summary.num_written:>9,}  written, {summary.num_cycles:,} cycles marked",
        f"{summary.num_flagged:>9,}  of them flagged" + ":" * bool(summary.flags),
        *_by_kind(summary.flags, FLAGS),
        f"{summary.num_rejected:>9,}  rejected" + _where(summary, out),
        *_by_kind(summary.rejected, REASONS),
        "",
        "   counts",
    ]
    highest = max(summary.counts.values(), default=0)
    for stratum in BINS:
        number = summary.counts[stratum.name]
        bar = "█" * -(-_BAR * number // max(highest, 1))
        lines.append(f"{stratum.name:>9}  {number:>7,}  {bar}".rstrip())
    return "\n".join(lines)


def _by_kind(numbers: "dict[str, int]", meaning: dict[str, str]) -> list[str]:
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    return [f"{number:>17,}  {name}: {meaning[name]}" for name, number in ordered]


def _where(summary: "Summary", out: Path) -> str:
    if not summary.num_rejected:
        return ""
    missing = f"; missing videos in {out / 'missing.txt'}" if summary.num_missing_videos else ""
    return f", each with its reason in {out / 'rejected.jsonl'}{missing}:"

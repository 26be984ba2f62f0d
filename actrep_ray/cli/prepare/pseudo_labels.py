"""`actrep prepare pseudo-labels`: clips whose counts are those of the periodicity detector."""

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.commands import (
    UsageError,
    add_allow_outside,
    add_command,
    add_overwrite,
    complain,
    filled_path,
    outside_note,
    show,
)
from data_prep.schema import SPLITS

if TYPE_CHECKING:
    from data_prep.schema import Clip
    from data_prep.teachers.periodicity import PseudoLabel

_MEANINGS = {
    "not_sure": "the detector doubts what it sees",
    "unreadable_video": "the file cannot be read as a video",
    "unreadable_name": "the name is not UTF-8",
    "too_long": "longer than --longest",
}


def add_pseudo_labels(kinds: Any) -> None:
    """Add `actrep prepare pseudo-labels`.

    Args:
        kinds: The sub-parsers of `prepare`.
    """
    parser = add_command(
        kinds,
        "pseudo-labels",
        _pseudo_labels,
        "count unlabelled videos by the periodicity detector, to learn from where it is sure",
        "actrep prepare pseudo-labels footage/ --action squat --out footage/clips.jsonl",
    )
    parser.add_argument(
        "videos",
        type=filled_path,
        nargs="+",
        metavar="VIDEO",
        help="files, folders or patterns; or one JSONL of clips, whose labels are not looked at",
    )
    parser.add_argument("--action", default="unknown", help="what the videos show")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="train",
        help="of the videos, or the one of a JSONL that is labelled; default: %(default)s",
    )
    parser.add_argument(
        "--longest",
        type=float,
        default=60.0,
        metavar="S",
        help="longer videos are left out, seconds; default: %(default)s",
    )
    add_allow_outside(parser, "that of a JSONL")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    add_overwrite(parser, "FILE")


def _pseudo_labels(args: argparse.Namespace) -> int:
    from actrep_ray.run.console import error_console
    from actrep_ray.run.progress import step_progress
    from data_prep.overwriting import refuse_existing, refuse_input
    from data_prep.rows import files_of, portable_row
    from data_prep.schema import write_clips
    from data_prep.teachers.journal import Journal
    from data_prep.teachers.periodicity import found_path, pseudo_labels

    if not args.longest > 0:
        raise UsageError(f"--longest {args.longest:g}, expected more than 0 seconds")
    refuse_input(args.out, *args.videos)
    refuse_existing(args.out, overwrite=args.overwrite)
    clips, labels = _clips(args)
    with (
        step_progress("looking", start=0, total=len(clips), on=error_console()) as progress,
        Journal(found_path(args.out)) as journal,
    ):
        labels += pseudo_labels(
            clips,
            journal=journal,
            progress=lambda done, labelled: progress(done, {"labelled": labelled}),
        )
    folder = args.out.parent
    kept = [portable_row(one.clip, folder) for one in labels if one.clip]
    _write_left_out(args.out, labels)
    if kept:
        write_clips(args.out, kept)
    show(_told(args.out, labels) + outside_note(args.out, files_of(kept)))
    if not kept:
        complain(f"{args.out}: not written, since no clip has a count")
    return 0 if kept else 2


def _clips(args: argparse.Namespace) -> "tuple[list[Clip], list[PseudoLabel]]":
    """The clips to look at, and the others."""
    from data_prep.schema import read_clips
    from data_prep.teachers.periodicity import PseudoLabel

    if [path.suffix for path in args.videos] == [".jsonl"]:
        found = read_clips(args.videos[0], split=args.split, allow_outside=args.allow_outside)
        clips: list[Clip] = list(found)
        others: list[PseudoLabel] = []
    else:
        clips, others = _opened(args)
    for clip in clips:
        if clip.duration_s > args.longest:
            told = f"{clip.duration_s:.1f} s, longer than {args.longest:g}"
            others.append(PseudoLabel(clip.id, None, "too_long", told))
    return [clip for clip in clips if clip.duration_s <= args.longest], others


def _opened(args: argparse.Namespace) -> "tuple[list[Clip], list[PseudoLabel]]":
    """Each video as a clip called by its path below the folder that holds all."""
    from actrep_ray.counting.videos import Failure, find_videos, open_source
    from data_prep.printable import printable
    from data_prep.strict_json import is_text
    from data_prep.teachers.periodicity import PseudoLabel

    videos = [path.absolute() for path in find_videos(args.videos)]
    root = os.path.commonpath([video.parent for video in videos])
    clips: list[Clip] = []
    failed: list[PseudoLabel] = []
    for video in videos:
        name = video.relative_to(root).as_posix()
        if not is_text(name):
            told = "the name of the file is not UTF-8, which a file of clips is"
            failed.append(PseudoLabel(printable(name), None, "unreadable_name", told))
            continue
        source = open_source(video, args.action)
        if isinstance(source, Failure):
            failed.append(PseudoLabel(name, None, "unreadable_video", source.reason))
        else:
            clips.append(replace(source.clip, id=name, split=args.split))
    return clips, failed


def _write_left_out(out: Path, labels: "Sequence[PseudoLabel]") -> None:
    from data_prep.files import write_lines

    rows = (
        {"id": one.name, "reason": one.reason, "detail": one.detail}
        for one in labels
        if not one.clip
    )
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    write_lines(_left_out_path(out), lines)


def _left_out_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.left_out.jsonl")


def _told(out: Path, labels: "Sequence[PseudoLabel]") -> str:
    reasons = Counter(one.reason for one in labels if not one.clip)
    kept = len(labels) - reasons.total()
    lines = [f"{out}: the detector's count of {kept:,} of {len(labels):,} clips"]
    if reasons:
        lines.append(f"without one ({_left_out_path(out).name} names each):")
    lines += [f"{n:>12,}  {name}: {_MEANINGS[name]}" for name, n in reasons.most_common()]
    return "\n".join(lines)

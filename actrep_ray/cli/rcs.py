"""`actrep prepare {rcs-report,rcs-export}`: what is typed and shown of `sampling_report`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.parts import add_command, add_set, checking_input, show

if TYPE_CHECKING:
    from actrep_ray.config import Recipe
    from data_prep.schema import Clip


def add_rcs(kinds: Any) -> None:
    """Add both commands.

    Args:
        kinds: The sub-parsers of `prepare`.
    """
    report = add_command(
        kinds,
        "rcs-report",
        _report,
        "show the counts of a set before and after Random Count Sampling",
        "actrep prepare rcs-report data/repcount/clips.jsonl --set sampling.crop_probability=0.5",
    )
    export = add_command(
        kinds,
        "rcs-export",
        _export,
        "write draws of Random Count Sampling as a file of clips, for SFT",
        "actrep prepare rcs-export data/repcount/clips.jsonl --num 5000 --out balanced.jsonl \\\n"
        "      --set sampling.crop_probability=0.5",
    )
    for parser in (report, export):
        parser.add_argument("data", type=Path, metavar="FILE", help="JSONL of clips; only train")
        parser.add_argument(
            "--recipe",
            type=Path,
            metavar="RECIPE",
            help="whose sampling settings and seed are used (default: the defaults)",
        )
        add_set(parser)
    report.add_argument(
        "--draws", type=int, default=10_000, metavar="N", help="default: %(default)s"
    )
    report.add_argument(
        "--out", type=Path, metavar="PNG", help="picture (default: rcs-report.png beside FILE)"
    )
    export.add_argument("--num", type=int, required=True, metavar="N", help="draws to write")
    export.add_argument("--out", type=Path, required=True, metavar="FILE")
    export.add_argument(
        "--with-validation",
        action="store_true",
        help="add the clips of the validation split as they are, which SFT wants",
    )


def _report(args: argparse.Namespace) -> None:
    from actrep_ray.driver.sampling_report import plot_report, rcs_report

    recipe = _recipe(args)
    clips = _clips(args.data, "train")
    with checking_input():
        report = rcs_report(clips, recipe.sampling, seed=recipe.seed, num_draws=args.draws)
        picture = args.out or args.data.with_name("rcs-report.png")
        plot_report(report, picture)
    show(f"{report.text()}\npicture: {picture}")


def _export(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from actrep_ray.driver.sampling_report import export_clips, portable
    from data_prep.schema import write_clips

    recipe = _recipe(args)
    clips = _clips(args.data, "train")
    folder = args.out.parent
    with checking_input():
        drawn = export_clips(clips, recipe.sampling, seed=recipe.seed, num=args.num, folder=folder)
        others = _clips(args.data, "validation") if args.with_validation else []
        others = [replace(clip, video=portable(clip.video, folder)) for clip in others]
        write_clips(args.out, [*drawn, *others])
    crops = sum("cropped" in clip.flags for clip in drawn)
    also = f", and {len(others):,} of validation as they are" if args.with_validation else ""
    show(
        f"{args.out}: {len(drawn):,} draws from {len(clips):,} clips of train, {crops:,} of them "
        f"crops{also}"
    )


def _recipe(args: argparse.Namespace) -> "Recipe":
    from actrep_ray.config import load_recipe

    return load_recipe(args.recipe, args.set)


def _clips(path: Path, split: str) -> "list[Clip]":
    from data_prep.schema import DataError, read_clips

    clips = list(read_clips(path, split=split))
    if not clips:
        raise DataError(f"{path}: no clip has split={split!r}")
    return clips

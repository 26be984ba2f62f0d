"""`actrep prepare rcs-export`: draws of Random Count Sampling as a file of clips."""

import argparse
from pathlib import Path
from typing import Any

from actrep_ray.cli.commands import add_command, add_overwrite, outside_note, read_recipe, show
from actrep_ray.cli.prepare.rcs import add_draw_arguments, check_draws, read_split


def add_rcs_export(kinds: Any) -> None:
    """Add `actrep prepare rcs-export`.

    Args:
        kinds: The sub-parsers of `prepare`.
    """
    parser = add_command(
        kinds,
        "rcs-export",
        _rcs_export,
        "write draws of Random Count Sampling as a file of clips, for SFT",
        "actrep prepare rcs-export data/repcount/clips.jsonl --num 5000 --out balanced.jsonl \\\n"
        "      --set sampling.crop_probability=0.5",
    )
    add_draw_arguments(parser)
    parser.add_argument("--num", type=int, required=True, metavar="N", help="draws to write")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    add_overwrite(parser, "FILE")
    parser.add_argument(
        "--with-validation",
        action="store_true",
        help="add the clips of the validation split as they are, which SFT wants",
    )


def _rcs_export(args: argparse.Namespace) -> None:
    from actrep_ray.driver.sampling_report import export_clips
    from data_prep.overwriting import refuse_existing, refuse_input
    from data_prep.rows import files_of, portable_row
    from data_prep.schema import write_clips

    check_draws(args.num)
    refuse_input(args.out, args.data)
    refuse_existing(args.out, overwrite=args.overwrite)
    recipe = read_recipe(args)
    clips = read_split(args.data, "train", recipe)
    folder = args.out.parent
    drawn = export_clips(clips, recipe.sampling, seed=recipe.seed, num=args.num, folder=folder)
    others = read_split(args.data, "validation", recipe) if args.with_validation else []
    others = [portable_row(clip, folder) for clip in others]
    write_clips(args.out, [*drawn, *others])
    crops = sum("cropped" in clip.flags for clip in drawn)
    also = f", and {len(others):,} of validation as they are" if args.with_validation else ""
    show(
        f"{args.out}: {len(drawn):,} draws from {len(clips):,} clips of train, {crops:,} of them "
        f"crops{also}{outside_note(args.out, files_of([*drawn, *others]))}"
    )

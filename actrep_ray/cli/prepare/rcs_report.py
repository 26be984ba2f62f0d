"""`actrep prepare rcs-report`: counts before and after Random Count Sampling."""

import argparse
from typing import Any

from actrep_ray.cli.commands import add_command, picture_file, read_recipe, show
from actrep_ray.cli.prepare.rcs import add_draw_arguments, check_draws, read_split


def add_rcs_report(kinds: Any) -> None:
    """Add `actrep prepare rcs-report`.

    Args:
        kinds: The sub-parsers of `prepare`.
    """
    parser = add_command(
        kinds,
        "rcs-report",
        _rcs_report,
        "show the counts of a set before and after Random Count Sampling",
        "actrep prepare rcs-report data/repcount/clips.jsonl --set sampling.crop_probability=0.5",
    )
    add_draw_arguments(parser)
    parser.add_argument(
        "--draws", type=int, default=10_000, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--out",
        type=picture_file,
        metavar="PNG",
        help="picture (default: rcs-report.png beside FILE)",
    )


def _rcs_report(args: argparse.Namespace) -> None:
    from actrep_ray.driver.sampling_report import plot_report, rcs_report

    check_draws(args.draws)
    recipe = read_recipe(args)
    clips = read_split(args.data, "train", recipe)
    report = rcs_report(clips, recipe.sampling, seed=recipe.seed, num_draws=args.draws)
    picture = args.out or args.data.with_name("rcs-report.png")
    plot_report(report, picture)
    show(f"{report.text()}\npicture: {picture}")

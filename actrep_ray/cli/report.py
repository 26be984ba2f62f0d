"""`actrep report`: tables and figures of a run."""

import argparse
import os
from pathlib import Path
from typing import Any

from actrep_ray.cli.commands import UsageError, add_command


def add_report(commands: Any) -> None:
    """Add `actrep report`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands,
        "report",
        _report,
        "tables and plots of a finished or running run",
        "actrep report runs/tiny_grpo",
    )
    parser.add_argument(
        "run_dir",
        type=Path,
        nargs="+",
        metavar="RUN_DIR",
        help="folder of a run, or of several; more than one are put side by side",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the report of several runs (default: compared/ in the folder above them)",
    )


def _report(args: argparse.Namespace) -> None:
    from actrep_ray.evaluation.report import report_run, report_runs

    if len(args.run_dir) == 1:
        if args.out is not None:
            raise UsageError("--out is for several runs: the report of one lies in its folder")
        report_run(args.run_dir[0])
        return
    above = Path(os.path.commonpath([run.absolute() for run in args.run_dir]))
    report_runs(args.run_dir, args.out or above / "compared")

"""`actrep report`: tables and figures of a run."""

import argparse
from pathlib import Path
from typing import Any

from actrep_ray.cli.commands import add_command


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
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")


def _report(args: argparse.Namespace) -> None:
    from actrep_ray.evaluation.report import report_run

    report_run(args.run_dir)

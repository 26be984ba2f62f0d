"""What the commands of `actrep` share: how one is added, and whose mistake an error is."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Command = Callable[[argparse.Namespace], int | None]
"""Runs a command; None and 0 are success."""


class UsageError(ValueError):
    """What was asked cannot be done; the message is for the person who asked."""


@contextmanager
def checking_input() -> Iterator[None]:
    """Within it, a ValueError or OSError is about what the user gave."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error


def add_command(
    commands: Any, name: str, run: Command, summary: str, example: str
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: The sub-parsers that it belongs to.
        name: What is typed.
        run: What it does.
        summary: Of its help, from a small letter on and without a full stop.
        example: Shown below its help.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add `--set`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, for example --set learner.lr=2e-6; may be given again",
    )


def show(text: str) -> None:
    """Write lines for the user to standard output."""
    sys.stdout.write(text + "\n")

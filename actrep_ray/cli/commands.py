"""What the commands of `actrep` share: adding one, reading settings, showing text."""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.run.program import program
from data_prep.printable import printable

if TYPE_CHECKING:
    from actrep_ray.config import Recipe

Command = Callable[[argparse.Namespace], int | None]
"""Runs a command; None and 0 are success."""

_TYPED = re.compile(r"(?m)^( *)actrep(?= )")
_LAST_PORT = 65535
_PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")


class UsageError(ValueError):
    """What was asked cannot be done; the message is for the person who asked."""


def add_command(
    commands: Any, name: str, run: Command, summary: str, example: str
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: The sub-parsers that it belongs to.
        name: What is typed.
        run: What it does.
        summary: Of its help, from a small letter on and without a full stop.
        example: Shown below its help, each `actrep` that begins a line as it can be typed here.
    """
    typed = shlex.quote(program("actrep"))
    shown = _TYPED.sub(lambda found: f"{found[1]}{typed}", example)
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, paths=())
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


def add_download(parser: argparse.ArgumentParser) -> None:
    """Add `--download`."""
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetch a model that is given as OWNER/MODEL, as Qwen/Qwen3-VL-4B-Instruct, and is not "
        "in the local hub cache",
    )


def add_overwrite(parser: argparse._ActionsContainer, what: str) -> None:
    """Add `--overwrite`; `what` is written over then."""
    parser.add_argument(
        "--overwrite", action="store_true", help=f"write over {what}, which is refused otherwise"
    )


def filled(text: str) -> str:
    """A name that is one, as the type of an argument: an unset variable of a shell is none."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty, expected a name")
    return text


def filled_path(text: str) -> Path:
    """The path of something, as the type of an argument: an empty one would be this folder."""
    return Path(filled(text))


def port_number(text: str) -> int:
    """A port, as the type of an argument."""
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text}: expected an integer of 1 to {_LAST_PORT}")
    return number


def picture_file(text: str) -> Path:
    """A file that a picture can be written to, as the type of an argument."""
    path = Path(text)
    if path.suffix.lower() not in _PICTURES:
        raise argparse.ArgumentTypeError(f"{text}: expected a name in {', '.join(_PICTURES)}")
    return path


def add_allow_outside(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add `--allow-outside`.

    Args:
        parser: Gets it.
        folder: Where videos may lie without, in words.
    """
    parser.add_argument(
        "--allow-outside",
        action="append",
        default=[],
        metavar="DIR",
        help=f"videos may also lie in this folder, not only in {folder}; may be repeated",
    )


def outside_note(file: Path, videos: Sequence[str]) -> str:
    """What whoever reads a file of clips has to say where its videos are absolute; else nothing."""
    outside = [Path(video).parent for video in videos if Path(video).is_absolute()]
    if not outside:
        return ""
    folder = os.path.commonpath(outside)
    return (
        f"\nvideos lie outside of {file.parent}: read it with data.allow_outside=[{folder}], or "
        f"write it beside them, --out {Path(folder).parent}"
    )


def read_recipe(args: argparse.Namespace) -> "Recipe":
    """The recipe of `args.recipe` with `--set`; its paths count as given by the user.

    Raises:
        ConfigError: naming all that is wrong with it.
    """
    from actrep_ray.config import load_recipe

    return with_paths(args, load_recipe(args.recipe, args.set))


def with_paths(args: argparse.Namespace, recipe: "Recipe") -> "Recipe":
    """The recipe, its paths noted in `args.paths` for the words of an error."""
    data, model = recipe.data, recipe.model
    paths = (
        recipe.runs_dir,
        data.path,
        data.answers,
        model.path,
        recipe.video.cache_dir,
        recipe.learner.deepspeed_config,
    )
    args.paths = tuple(Path(path) for path in paths if path)
    return recipe


def show(text: str) -> None:
    """Write lines for the user to standard output; nothing in them but their breaks acts."""
    sys.stdout.write(printable(text, keeps_lines=True) + "\n")


def complain(text: str) -> None:
    """Write what is wrong to standard error, likewise."""
    sys.stderr.write(f"actrep: {printable(text, keeps_lines=True)}\n")

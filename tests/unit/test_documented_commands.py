"""Every command that README, docs, recipes and --help show is one that the real parser takes."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from actrep_ray.cli.main import build_parser, main
from actrep_ray.config import load_recipe
from actrep_ray.run.program import program

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
_LINE = re.compile(
    r"^\s*(?:# +)?(?:[A-Z]+=\S+ )?(?:CUDA\S+ )?(?P<program>(?:[^\s`]*/)?actrep) (?P<rest>.+)$"
)
_SPAN = re.compile(r"`actrep ([^`]+)`")
_BARE = re.compile(r"^\s*(?:# +)?(actrep|tensorboard) ")


class Shown(NamedTuple):
    """A command line of a document: where, what starts it, and the words after that."""

    where: str
    program: str
    words: list[str]


def commands_of(
    parser: argparse.ArgumentParser, name: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command and group of commands with its parser."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from commands_of(below, (*name, word))


COMMANDS = dict(commands_of(build_parser()))


def lines_of(text: str, where: str) -> Iterator[Shown]:
    """Command lines that stand alone in a line, continued ones joined."""
    pending, began = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        began = began if pending else number
        pending += line.rstrip().removesuffix("\\")
        if line.rstrip().endswith("\\"):
            continue
        found, pending = _LINE.match(pending), ""
        if found is not None:
            words = shlex.split(re.sub(r"\$\w+", "1", found["rest"]), comments=True)
            yield Shown(f"{where}:{began}", found["program"], words)


def every_line() -> Iterator[Shown]:
    for path in (*PAGES, *RECIPES):
        yield from lines_of(path.read_text(), str(path.relative_to(ROOT)))
    for name, parser in COMMANDS.items():
        example = (parser.epilog or "").removeprefix("example:\n")
        yield from lines_of(example, f"actrep {' '.join(name)} --help")


def every_span() -> Iterator[Shown]:
    for path in PAGES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for text in _SPAN.findall(line.replace("\\|", "|")):
                words = re.sub(r"[\[\]]|\.\.\.", " ", text).split()
                yield Shown(f"{path.relative_to(ROOT)}:{number}", "actrep", words)


LINES, SPANS = list(every_line()), list(every_span())


def test_the_commands_are_found() -> None:
    """What finds them must not go blind: 21 commands have an example, and the docs show more."""
    assert len(LINES) >= 50
    assert len(SPANS) >= 40
    assert {shown.where for shown in LINES} >= {f"actrep {c} --help:1" for c in ("count", "train")}


@pytest.mark.parametrize("shown", LINES, ids=lambda shown: shown.where)
def test_a_shown_command_is_taken(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It parses, and a recipe of ours is there and takes what `--set` gives it."""
    monkeypatch.chdir(ROOT)
    try:
        args = build_parser().parse_args(shown.words)
    except SystemExit as exit_:
        told = capsys.readouterr().err
        raise AssertionError(f"{shown.where}: actrep {shlex.join(shown.words)}: {told}") from exit_
    recipe = getattr(args, "recipe", None)
    if recipe is not None and Path(recipe).parts[0] == "recipes":
        values = [text for text in args.set if not re.search(r"=[A-Z]+$", text)]
        load_recipe(recipe, values)


@pytest.mark.parametrize("shown", SPANS, ids=lambda shown: shown.where)
def test_a_command_named_in_a_sentence_exists(shown: Shown) -> None:
    """Its name, and each of its flags; what stands for a value is not judged."""
    if shown.words[0].isupper():
        return
    number = 2 if shown.words[0] == "prepare" and len(shown.words) > 1 else 1
    name = tuple(shown.words[:number])
    if number == 2 and name[1].isupper():
        name = ("prepare", "csv")  # a SET, any of them
    assert name in COMMANDS, f"{shown.where}: actrep {' '.join(name)}"
    known = {flag for action in COMMANDS[name]._actions for flag in action.option_strings}
    flags = {flag for word in shown.words for flag in word.split("|") if flag.startswith("--")}
    assert flags <= known, f"{shown.where}: {sorted(flags - known)}"


@pytest.mark.parametrize("path", [*PAGES, *RECIPES], ids=lambda path: path.name)
def test_no_command_needs_an_active_environment(path: Path) -> None:
    bare = [
        f"{path.name}:{number}: {line}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if _BARE.match(line) and not re.match(r"\s*actrep [A-Za-z]+ [a-z]+ [a-z]+ ", line)
    ]
    assert bare == []


def test_actrep_alone_shows_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    told = capsys.readouterr().out
    shown = [line.split()[1] for line in told.splitlines() if line.startswith(program("actrep"))]
    assert shown == ["doctor", "quickstart", "count", "--help"]


def test_a_program_is_named_as_it_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name where PATH finds that very file; else by the path beside the interpreter."""
    bin_, other = tmp_path / "clone" / ".venv" / "bin", tmp_path / "other"
    for folder in (bin_, other):
        folder.mkdir(parents=True)
        (folder / "actrep").write_text("#!/bin/sh\n")
        (folder / "actrep").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(bin_ / "python"))
    monkeypatch.chdir(tmp_path / "clone")
    for path, told in (
        ("", ".venv/bin/actrep"),
        (str(other), ".venv/bin/actrep"),  # another environment's is not ours
        (str(bin_), "actrep"),
    ):
        monkeypatch.setenv("PATH", path)
        assert program("actrep") == told
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(other)
    assert program("actrep") == str(bin_ / "actrep")
    assert program("absent") == "absent"

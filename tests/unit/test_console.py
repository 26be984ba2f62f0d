"""Text from data, models and the command line is shown as it is: no markup, no control."""

import ast
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from actrep_ray.cli.main import main
from actrep_ray.evaluation.figure_style import make_figure, save
from actrep_ray.evaluation.figures import draw_curves
from actrep_ray.run.console import as_text, make_console, progress_bar
from actrep_ray.run.progress import step_progress
from data_prep.printable import printable
from data_prep.schema import Clip, write_clips
from data_prep.video_writer import encode_mp4

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = (
    "[/red]",
    "[bold]x[/bold] [link=http://a.b]y[/link]",
    "[red",
    ":smile: \\[/]",
    "\x1b[2J\x1b]0;title\x07bell",
    "half \ud800 a pair",
    "$\\frac{1}{$ $x^2$ $",
    "line\nbreak\rreturn",
)


def shown(*what: object) -> str:
    out = io.StringIO()
    console = make_console(width=200)
    console.file = out
    for one in what:
        console.print(one)
    return out.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_console_shows_text_as_it_is(text: str) -> None:
    """As a line, in a cell and title of a table, and beside a bar."""
    table = Table(title=as_text(text))
    table.add_column(as_text(text))
    table.add_row(as_text(text))
    expected = printable(text, keeps_lines=True)
    found = shown(as_text(text), table)
    for line in expected.splitlines():
        assert found.count(line.rstrip()) >= 4
    assert "\x1b" not in found
    found.encode("utf-8")


def test_strings_that_reach_a_console_by_themselves_are_no_markup_either() -> None:
    table = Table()
    table.add_column("[/red]")
    table.add_row("[/red] :smile:")
    assert shown("[/red] :smile:", table).count("[/red]") == 3


@given(st.text())
def test_what_is_printable_stays_and_the_rest_is_written_out(text: str) -> None:
    found = printable(text)
    assert found.isprintable()
    assert (found == text) == text.isprintable()
    found.encode("utf-8")
    assert printable(text, keeps_lines=True).count("\n") == text.count("\n")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_shows_names_as_they_are(is_terminal: bool) -> None:
    out = io.StringIO()
    console = make_console(width=150)
    console.file = out
    console._force_terminal = is_terminal
    with step_progress("[/red]", start=0, total=2, on=console) as report:
        report(1, {"[/blue]": 1.0})
        report(2, {"[/blue]": 2.0})
    assert "[/red]" in out.getvalue()
    assert "[/blue]" in out.getvalue()
    with progress_bar(on=console, shows="told", is_transient=False) as bar:
        bar.add_task("[/green]", total=1, told="[/white]")
    assert ("[/green]" in out.getvalue()) == is_terminal
    assert ("[/white]" in out.getvalue()) == is_terminal


# --- nobody makes another console


def sources() -> Iterator[tuple[Path, ast.AST]]:
    for package in ("actrep_ray", "data_prep", "rewards"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def names_called(tree: ast.AST) -> set[str]:
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {ast.unparse(func) for func in calls}


def test_only_one_module_makes_consoles_bars_and_texts() -> None:
    """What rich would read as markup, or other text that is not made safe, has no way in."""
    owner = ROOT / "actrep_ray" / "run" / "console.py"
    makers = {"Console", "get_console", "Progress", "TextColumn", "Text", "Text.from_markup"}
    found, num_looked_at = {}, 0
    for path, tree in sources():
        num_looked_at += 1
        if path != owner and (made := names_called(tree) & makers):
            found[path.name] = made
    assert num_looked_at > 150
    assert found == {}
    assert names_called(ast.parse(owner.read_text(encoding="utf-8"))) >= {"Console", "TextColumn"}


def test_only_the_command_lines_parts_write_to_the_streams() -> None:
    found = [
        path.relative_to(ROOT).as_posix()
        for path, tree in sources()
        if names_called(tree) & {"sys.stdout.write", "sys.stderr.write"}
    ]
    assert found == ["actrep_ray/cli/commands.py"]


# --- every command that shows what a file says


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "videos" / "[red] $x.mp4"
    path.parent.mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), dtype=np.uint8)
    encode_mp4(path, frames, 12)
    return path


def hostile_clips(folder: Path, video: Path) -> Path:
    clip = Clip(
        id="a", dataset="set", split="test", video=f"videos/{video.name}", start_s=0.0, end_s=2.0,
        video_fps=12.0, num_frames=24, width=64, height=64, action="a", count=2,
        cycles=((0.1, 0.9), (1.0, 1.9)),
    )  # fmt: skip
    texts = [text for text in HOSTILE if "\ud800" not in text]
    clips = [
        replace(clip, id=f"{i} {text}", action=text, dataset=text, split=split)
        for split in ("train", "test")
        for i, text in enumerate(texts)
    ]
    clips = [replace(clip, id=f"{clip.split} {clip.id}") for clip in clips]
    path = folder / "[bold] clips.jsonl"
    write_clips(path, clips)
    return path


COMMANDS = {
    "validate": ["validate", "DATA", "--out", "OUT/[dim]", "--workers", "1"],
    "cot": ["cot", "DATA", "--out", "OUT/[red].jsonl"],
    "evaluate": ["evaluate", "--method", "periodicity", "--data", "DATA", "--out", "OUT/[/]"],
    "report": ["report", "OUT/[/]"],
    "count": ["count", "VIDEO", "--method", "periodicity", "--plot", "OUT/[/].png"],
    "rcs-report": ["prepare", "rcs-report", "DATA", "--draws", "4", "--out", "OUT/[/].png"],
    "rcs-export": ["prepare", "rcs-export", "DATA", "--num", "4", "--out", "OUT/[/].jsonl"],
    "verl": ["prepare", "verl", "DATA", "--out", "OUT/[/].parquet"],
    "csv": [
        "prepare",
        "csv",
        "OUT/[/].csv",
        "--videos",
        "VIDEOS",
        "--out",
        "OUT/[/red]",
        "--split=train",
    ],
}


@pytest.mark.lengthy
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_shows_hostile_names(
    command: str, tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = hostile_clips(tmp_path, video)
    out = tmp_path / "out"
    out.mkdir()
    rows = "".join(f'"{video.name}",2,"{text}"\n' for text in HOSTILE[:4])
    (out / "[").mkdir()
    (out / "[" / "].csv").write_text("video,count,action\n" + rows)
    filled = {"DATA": str(data), "OUT": str(out), "VIDEOS": str(video.parent), "VIDEO": str(video)}
    pattern = re.compile("|".join(sorted(filled, key=len, reverse=True)))

    def run(words: list[str]) -> int:
        return main([pattern.sub(lambda found: filled[found[0]], word) for word in words])

    if command == "report":
        assert run(COMMANDS["evaluate"]) == 0
    # Two clips of one window and splits that share a video: findings whose words hold the names.
    # The detector may doubt what it sees in the video (3).
    codes = {"validate": (2,), "count": (0, 3)}
    assert run(COMMANDS[command]) in codes.get(command, (0,))
    told = capsys.readouterr()
    assert "\x1b[2J" not in told.out + told.err
    assert "[/" in told.out + told.err or command in ("cot", "count")


@pytest.mark.parametrize("text", HOSTILE)
def test_bad_input_is_told_in_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "clips.jsonl"
    data.write_text(json.dumps({"id": text, "video": text, text: 1}) + "\n")
    for words in (
        ["cot", str(data), "--out", str(tmp_path / "a.jsonl")],
        ["cot", f"{tmp_path}/{text}", "--out", str(tmp_path / "a.jsonl")],
        ["check", f"{text}.yaml"],
        ["count", text, "--method", "periodicity"],
        ["validate", str(data), "--set", f"{text}=1"],
        ["validate", str(data), "--set", f"data.question={text}", "--set", "video.fps=[/red]"],
    ):
        assert main(words) == 2
        told = capsys.readouterr().err
        assert told.startswith("actrep: error: ")
        assert "\x1b" not in told
        assert "\r" not in told
        told.encode("utf-8")


@pytest.mark.parametrize("name", HOSTILE)
def test_curves_of_rewards_with_hostile_names_are_drawn(name: str, tmp_path: Path) -> None:
    figure = make_figure(6, 3)
    rows = [{"step": step, "reward/mean": 0.5, f"reward/{name}": 0.1} for step in range(5)]
    draw_curves(figure, {name: rows})
    save(figure, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_console_of_rich_itself_would_have_failed() -> None:
    """What the tests above guard against happens, so that they can fail."""
    with pytest.raises(Exception, match="closing tag"):
        Console(file=io.StringIO()).print("[/red]")

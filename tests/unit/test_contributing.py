"""CONTRIBUTING.md: its files and commands, run in order in a folder of their own."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from actrep_ray.tasks import loading
from actrep_ray.tasks.base import Task
from actrep_ray.tasks.counting import Counting
from actrep_ray.tasks.recognition import Recognition
from tests.unit import test_tasks as contract

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WALKS = ("A first reward", "A first converter", "A first task")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./]+)\n")


def section(title: str) -> str:
    """What stands under a heading of the page."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def write_files(title: str, folder: Path) -> list[str]:
    """Write the files of a section, each as its first line names it; the section's commands."""
    commands = []
    for language, text in _BLOCK.findall(section(title)):
        if language == "bash":
            commands.append(text)
        elif match := _FILE.match(text):
            (folder / match[1]).write_text(text[match.end() :])
    return commands


def run(commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run commands in a folder that has stand-ins for the programs of a set-up clone."""
    tools = folder / ".venv" / "bin"
    tools.mkdir(parents=True, exist_ok=True)
    path = f'PYTHONPATH="${{PYTHONPATH-}}:{ROOT}" exec {sys.executable}'
    for name, line in {"python": f'{path} "$@"', "actrep": f'{path} -P -m actrep_ray "$@"'}.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        ["bash", "-euc", commands], cwd=folder, env=environment, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.lengthy
@pytest.mark.parametrize("title", WALKS)
def test_a_walk_works(title: str, tmp_path: Path) -> None:
    commands = write_files(title, tmp_path)
    assert commands
    for one in commands:
        done = run(one, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.lengthy
def test_the_check_of_a_reward_finds_one_that_is_out_of_range(tmp_path: Path) -> None:
    command = write_files(WALKS[0], tmp_path)[0]
    path = tmp_path / "my_rewards.py"
    text = path.read_text()
    path.write_text(text.replace("return math.exp(", "return 2 * math.exp("))
    assert path.read_text() != text
    assert run(command, tmp_path).returncode != 0


def test_the_files_of_the_page_are_in_the_house_style(tmp_path: Path) -> None:
    for title in WALKS:
        write_files(title, tmp_path)
    names = sorted(path.name for path in tmp_path.glob("*.py"))
    assert names == ["gym.py", "my_rewards.py", "presence.py", "test_gym.py", "test_presence.py"]
    ruff = [str(Path(sys.executable).with_name("ruff"))]
    settings = ["--no-cache", "--config", str(ROOT / "pyproject.toml")]
    for command in (["check"], ["format", "--diff"]):
        line = [*ruff, *command, *settings, str(tmp_path)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_task_of_the_page_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files("A first task", tmp_path)
    spec = importlib.util.spec_from_file_location("presence", tmp_path / "presence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "presence", module)
    spec.loader.exec_module(module)
    # The two lines that the page says it takes.
    ours = "(Counting(), Recognition(), *LMMS_EVAL, Presence())"
    line = f"_TASKS: dict[str, Task] = {{ task.name: task for task in {ours} }}"
    assert line in " ".join(PAGE.split())
    tasks: dict[str, Task] = {
        task.name: task for task in (Counting(), Recognition(), module.Presence())
    }
    monkeypatch.setattr(loading, "_TASKS", tasks)
    contract.test_a_task_keeps_the_contract(tasks["presence"])


def test_the_hook_that_the_page_installs_exists() -> None:
    (commands,) = [text for language, text in _BLOCK.findall(section("Set up, check, commit"))]
    assert "git config core.hooksPath .githooks\n" in commands
    assert os.access(ROOT / ".githooks" / "pre-commit", os.X_OK)
    for command in re.findall(r"\./launch\.sh (\w+)", commands):
        assert re.search(rf"^        {command}\) ", (ROOT / "launch.sh").read_text(), re.MULTILINE)

"""What shells offer at the tab key, asked of the shells themselves."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actrep_ray.cli.completion import SHELLS, offers_of
from actrep_ray.cli.main import build_parser, main
from tests.unit.test_documented_commands import COMMANDS

# (what is typed, the last word incomplete; some that are offered, or none: names of files)
TYPED = [
    (["tra"], {"train"}),
    (["prepare", "rcs-"], {"rcs-report", "rcs-export"}),
    (["count", "--cross"], {"--cross-check"}),
    (["evaluate", "--method", ""], {"api", "model", "periodicity"}),
    (["completion", "f"], {"fish"}),
    (["train", "--resume", "rec"], {"recipe.yaml"}),
    (["count", "--checkpoint", "rec"], {"recipe.yaml"}),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipe.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def scripts(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Path]:
    paths = {}
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        paths[shell] = folder / f"script.{shell}"
        paths[shell].write_text(capsys.readouterr().out)
    return paths


def in_bash(script: Path, program: str, words: list[str]) -> set[str]:
    """What bash would offer; where the function has nothing, the names of files."""
    code = (
        'source "$1"; shift; spec=$(complete -p actrep); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
        'COMPREPLY=(); _actrep; if [[ ${#COMPREPLY[@]} == 0 && $spec == *"-o default"* ]]; then '
        'compgen -f -- "${!#}"; else printf "%s\\n" "${COMPREPLY[@]}"; fi'
    )
    line = ["bash", "--norc", "-c", code, "bash", str(script), program, *words]
    return set(subprocess.run(line, capture_output=True, text=True, check=True).stdout.split())


def _id(value: list[str] | set[str]) -> str:
    """The same in each process: a set has another order in each."""
    return str(sorted(value) if isinstance(value, set) else value)


@pytest.mark.parametrize(("words", "expected"), TYPED, ids=_id)
def test_bash(words: list[str], expected: set[str], scripts: dict[str, Path]) -> None:
    assert in_bash(scripts["bash"], ".venv/bin/actrep", words) == expected


def test_bash_offers_all_that_the_parser_takes(scripts: dict[str, Path]) -> None:
    offers = {tuple(offer.name.split()): offer for offer in offers_of(build_parser())}
    assert offers.keys() == COMMANDS.keys()
    for name in [(), ("prepare",), ("train",), ("count",), ("prepare", "csv")]:
        known = {flag for action in COMMANDS[name]._actions for flag in action.option_strings}
        assert in_bash(scripts["bash"], "actrep", [*name, ""]) == known | set(offers[name].words)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(("words", "expected"), TYPED, ids=_id)
def test_fish(words: list[str], expected: set[str], scripts: dict[str, Path]) -> None:
    code = f"source {scripts['fish']}; complete -C 'actrep {' '.join(words)}'"
    told = subprocess.run(
        ["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True
    )
    assert {line.partition("\t")[0] for line in told.stdout.splitlines()} == expected, told.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("actrep tra", "actrep train "),
        ("actrep prepare rcs-r", "actrep prepare rcs-report "),
        ("actrep evaluate --method per", "actrep evaluate --method periodicity "),
        ("actrep count --checkpoint rec", "actrep count --checkpoint recipe.yaml "),
    ],
)
def test_zsh(typed: str, completed: str, scripts: dict[str, Path]) -> None:
    """At a terminal of its own: the line after the tab key."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb", "PS1": "> "})
    try:
        begin = "autoload -U compinit; compinit -u -D"
        os.write(terminal, f"{begin}; source {scripts['zsh']}; print re''ady\n".encode())
        _read_until(terminal, "ready")
        os.write(terminal, f"{typed}\t".encode())
        told = _read_until(terminal, completed)
        assert completed in told
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def _read_until(terminal: int, expected: str) -> str:
    text, end = "", time.monotonic() + 20
    while expected not in text and time.monotonic() < end:
        if select.select([terminal], [], [], 0.5)[0]:
            text += os.read(terminal, 4096).decode(errors="replace")
    return text


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_of_bash_is_clean(scripts: dict[str, Path]) -> None:
    line = ["shellcheck", "--shell=bash", "--severity=warning", str(scripts["bash"])]
    assert subprocess.run(line, capture_output=True, text=True, check=False).stdout == ""


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom actrep_ray.cli.main import main\nmain(['completion', 'bash'])\n"
        "slow = {'torch', 'ray', 'vllm', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "sys.stderr.write(repr(slow))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()"

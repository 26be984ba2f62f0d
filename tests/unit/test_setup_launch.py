"""launch.sh from outside, and the lock files: what they pin and what they must not contain."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("cpu", "gpu")


def _launch(*arguments: str, address: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "launch.sh"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "RAY_ADDRESS": address},
    )


def test_help_names_every_command() -> None:
    run = _launch("help")
    assert run.returncode == 0
    for command in ("setup", "test", "test-slow", "quickstart", "submit", "lock", "help"):
        assert re.search(rf"^  {command}\b", run.stdout, re.MULTILINE), command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "unknown command 'fly'"),
        (["setup", "--tpu"], "setup takes --cpu or --gpu, not '--tpu'"),
        (["submit"], "submit needs a recipe"),
        (["submit", "recipes/none.yaml"], "recipe 'recipes/none.yaml' does not exist"),
        (["submit", "/etc/hostname", "--dry-run"], "lies outside"),
        (["submit", "pyproject.toml", "--dry-run"], "no cluster"),
        (["submit", "pyproject.toml", "--address"], "--address needs a URL"),
        (["submit", "pyproject.toml", "--fast"], "does not know '--fast'"),
        (["submit", "a.yaml", "b.yaml"], "one recipe, got 'a.yaml' and 'b.yaml'"),
    ],
)
def test_wrong_command_line_exits_2_with_one_reason(arguments: list[str], message: str) -> None:
    run = _launch(*arguments)
    assert run.returncode == 2
    assert message in run.stderr


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_dry_run_prints_the_job_and_submits_nothing(how: str) -> None:
    """pyproject.toml stands in for a recipe: launch.sh reads only its ``stage:`` line."""
    url = "http://head.example:8265"
    flags = ["--address", url] if how == "flag" else []
    run = _launch(
        "submit", "pyproject.toml", *flags, "--dry-run", "--", "--set", "learner.lr=2.0e-6",
        address=url if how == "environment" else "",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    words = shlex.split(run.stdout)
    assert words[1:5] == ["job", "submit", "--address", url]
    assert words[words.index("--") + 1 :] == [
        "python", "-m", "actrep_ray", "train", "pyproject.toml", "--set", "learner.lr=2.0e-6",
    ]  # fmt: skip
    for excluded in ("/runs/", "/data/", "/.venv/", "/.git/"):
        assert excluded in run.stdout


def test_the_recipe_s_stage_chooses_the_command() -> None:
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        stage = re.search(r"^stage:\s*(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        run = _launch("submit", str(path), "--dry-run", "--address", "http://head.example:8265")
        assert run.returncode == 0, run.stderr
        expected = "sft" if stage and stage[1] == "sft" else "train"
        assert shlex.split(run.stdout)[-2:] == [expected, str(path.relative_to(ROOT))]


def _lock(name: str) -> dict[str, str]:
    """Pins of a lock file: normalised name -> version."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pins}


@pytest.mark.parametrize("name", LOCKS)
def test_lock_is_free_of_hosts_paths_and_local_versions(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links|@ ", text)
    assert not [version for version in _lock(name).values() if "+" in version]


@pytest.mark.parametrize("name", LOCKS)
def test_lock_serves_every_direct_dependency_and_none_of_the_harmful(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pins = _lock(name)
    for requirement in project["dependencies"] + extras[name] + extras["dev"]:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?(?:==(\S+))?", requirement)
        assert match is not None
        package = re.sub(r"[-_.]+", "-", match[1]).lower()
        assert package in pins, requirement
        assert match[2] in (None, pins[package]), requirement
    assert not {"torchaudio", "torchcodec"} & set(pins)

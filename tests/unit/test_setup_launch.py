"""launch.sh from outside, and the lock files: what they pin and what they must not contain."""

import hashlib
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("cpu", "gpu")
FILES = (*LOCKS, "uv", "build")


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
    for command in (
        "setup",
        "check",
        "test",
        "test-slow",
        "quickstart",
        "actrep",
        "submit",
        "lock",
        "help",
    ):
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


# --- checks, with stand-ins for the tools


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone that is set up: its tools note how they are called, and fail if FAILS names them."""
    for name in ("launch.sh", "pyproject.toml", "requirements/cpu.txt", "requirements/uv.txt",
                 "requirements/build.txt", ".githooks/pre-commit",
                 "actrep_ray/torchvision_hook.py"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("ruff", "mypy", "lint-imports", "shellcheck", "hadolint", "python"):
        note = f'echo "{name} $*" >> "{tmp_path}/calls"'
        knows = 'case "$*" in *version_info*) exit 0 ;; esac' if name == "python" else ""
        tool = tools / name
        tool.write_text(f'#!/bin/sh\n{knows}\n{note}\n[ "$FAILS" != {name} ]\n')
        tool.chmod(0o755)
    depends = ("requirements/cpu.txt", "requirements/uv.txt", "requirements/build.txt",
               "pyproject.toml", "actrep_ray/torchvision_hook.py")  # fmt: skip
    content = b"".join((tmp_path / name).read_bytes() for name in depends)
    stamp = f"cpu\n{tmp_path}\n{hashlib.sha256(content).hexdigest()}  -\n"
    (tmp_path / ".venv/.setup-stamp").write_text(stamp)
    return tmp_path


def _in_clone(
    clone: Path, command: list[str], fails: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(clone), "FAILS": fails}
    return subprocess.run(
        command, cwd=clone, capture_output=True, text=True, check=False, timeout=60,
        env=environment | variables,
    )  # fmt: skip


def test_check_leaves_out_what_is_lengthy_and_test_does_not(clone: Path) -> None:
    for command in ("check", "test"):
        run = _in_clone(clone, ["./launch.sh", command])
        assert run.returncode == 0, run.stderr
        assert "all checks passed" in run.stdout
        calls = (clone / "calls").read_text().splitlines()
        (clone / "calls").unlink()
        for tool in ("ruff check", "ruff format --check", "mypy", "lint-imports", "shellcheck"):
            assert any(call.startswith(tool) for call in calls), (command, tool)
        (pytest_call,) = (call for call in calls if call.startswith("python -m pytest"))
        if command == "check":
            assert pytest_call.startswith("python -m pytest tests/unit ")
            assert pytest_call.endswith(" -m not slow and not lengthy")
        else:
            assert pytest_call == "python -m pytest -m not slow"


@pytest.mark.parametrize("tool", ["ruff", "mypy", "lint-imports", "python"])
def test_one_failed_check_fails_and_the_others_still_run(clone: Path, tool: str) -> None:
    run = _in_clone(clone, ["./launch.sh", "check"], fails=tool)
    assert run.returncode == 1
    assert "failed: " in run.stderr
    called = {call.split()[0] for call in (clone / "calls").read_text().splitlines()}
    assert called == {"ruff", "mypy", "lint-imports", "shellcheck", "python"}


def test_the_hook_refuses_a_commit_that_fails(clone: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.example"]
    for arguments in (["init", "-q"], ["config", "core.hooksPath", ".githooks"],
                      ["add", "launch.sh"]):  # fmt: skip
        assert _in_clone(clone, ["git", *arguments]).returncode == 0
    refused = _in_clone(clone, [*git, "commit", "-qm", "x"], fails="mypy")
    assert refused.returncode == 1
    assert "failed: mypy" in refused.stderr
    accepted = _in_clone(clone, [*git, "commit", "-qm", "x"])
    assert accepted.returncode == 0, accepted.stderr


def test_the_hook_hides_the_repository_from_what_it_runs(clone: Path) -> None:
    """A test that runs git in a folder of its own would else write to the index of the commit."""
    (clone / "launch.sh").write_text('#!/bin/sh\necho "${GIT_INDEX_FILE-unset} ${GIT_DIR-unset}"\n')
    assert _in_clone(clone, ["git", "init", "-q"]).returncode == 0
    variables = {"GIT_INDEX_FILE": str(clone / "index"), "GIT_DIR": str(clone / ".git")}
    run = _in_clone(clone, [".githooks/pre-commit"], **variables)
    assert (run.returncode, run.stdout) == (0, "unset unset\n"), run.stderr


# --- the lock files


def _lock(name: str) -> dict[str, str]:
    """Pins of a lock file: normalised name -> version."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pins}


@pytest.mark.parametrize("name", FILES)
def test_every_pin_has_hashes(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^[^\s#].*", text, re.MULTILINE)
    hashed = re.findall(r"^[^\s#]\S+ \\\n    --hash=sha256:[0-9a-f]{64}\b", text, re.MULTILINE)
    assert len(pins) == len(hashed) > 0


def test_a_file_that_is_not_the_locked_one_is_not_installed(tmp_path: Path) -> None:
    """Whatever installs from a lock asks for its hashes; no other line of launch.sh installs."""
    text = (ROOT / "launch.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    installs = [line for line in text.splitlines() if "pip install " in line]
    own = [line for line in installs if line.endswith("--editable .")]
    assert len(installs) == 3
    assert len(own) == 1
    assert all("--require-hashes" in line for line in installs if line not in own)


@pytest.mark.parametrize("name", FILES)
def test_lock_is_free_of_hosts_paths_and_local_versions(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links|@ ", text)
    local = {package for package, version in _lock(name).items() if "+" in version}
    assert local == ({"torch"} if name == "cpu" else set())  # uv looks for hashes by whole versions


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
        assert match[2] in (None, pins[package].removesuffix("+cpu")), requirement
    assert not {"torchaudio", "torchcodec"} & set(pins)

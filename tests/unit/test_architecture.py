"""The layout is kept: the contracts of pyproject.toml hold, and they notice what breaks them."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("actrep_ray", "data_prep", "rewards")


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """What import-linter says of the packages of a folder, under this project's contracts."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    command += ["--config", folder / "pyproject.toml"]
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def plant(tmp_path: Path) -> Callable[[str, str], subprocess.CompletedProcess[str]]:
    """Adds a line to a file of a copy of the project, and lints the copy."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=_all_but_python)
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")

    def add(path: str, line: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / path
        before = file.read_text(encoding="utf-8") if file.exists() else '"""New."""\n'
        file.write_text(f"{before}\n\n{line}\n", encoding="utf-8")
        return _lint(tmp_path)

    return add


def _all_but_python(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (name.endswith(".py") or Path(folder, name).is_dir())]


def test_every_module_keeps_the_contracts() -> None:
    run = _lint(ROOT)
    assert run.returncode == 0, run.stdout
    assert "0 broken" in run.stdout


ROOMS, CIRCLES = "rooms: imports point down", "no circles"
TYPED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
INSIDE = "def later() -> None:\n    "


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("path", "line", "contract"),
    [
        ("actrep_ray/weights/buckets.py", "import actrep_ray.driver.job", ROOMS),
        ("actrep_ray/weights/buckets.py", f"{TYPED}import actrep_ray.driver.job", ROOMS),
        ("actrep_ray/run/metrics.py", "import actrep_ray.cli.main", ROOMS),
        ("actrep_ray/run/metrics.py", f"{INSIDE}import actrep_ray.cli.main", ROOMS),
        ("actrep_ray/evaluation/new.py", "import ray", "ray: "),
        ("actrep_ray/learner/worker.py", "import ray", "ray: "),
        ("actrep_ray/planning/new.py", "import torch", "torch: "),
        ("actrep_ray/learner/worker.py", "import vllm", "vllm: "),
        ("actrep_ray/driver/new.py", f"{INSIDE}import verl", "verl"),
        ("actrep_ray/new.py", "", "exhaustive"),
        ("actrep_ray/driver/phases.py", f"{TYPED}import actrep_ray.driver.synchronous", CIRCLES),
        ("data_prep/schema.py", "import actrep_ray.records", "packages: "),
        ("rewards/count.py", "import pandas", "rewards: "),
    ],
)
def test_a_planted_import_is_noticed(
    plant: Callable[[str, str], subprocess.CompletedProcess[str]],
    path: str,
    line: str,
    contract: str,
) -> None:
    run = plant(path, line)
    assert run.returncode == 1, run.stdout + run.stderr
    broken = [text for text in run.stdout.splitlines() if text.endswith("BROKEN")]
    assert any(text.startswith(contract) for text in broken) or contract in run.stdout


@pytest.mark.parametrize("name", ["config", "records", "tasks"])
def test_what_a_command_checks_with_imports_neither_ray_nor_torch(name: str) -> None:
    code = (
        "import importlib, pkgutil, sys\n"
        f"room = importlib.import_module('actrep_ray.{name}')\n"
        "for found in pkgutil.iter_modules(getattr(room, '__path__', [])):\n"
        f"    importlib.import_module(f'actrep_ray.{name}.{{found.name}}')\n"
        "print([m for m in ('ray', 'torch') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == "[]"


def test_no_file_of_the_product_is_long() -> None:
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert not {path: size for path, size in sizes.items() if size > 450}

"""The wheel: what it holds, and what it does where nothing else of the checkout is."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from actrep_ray.quickstart.data import COUNTED
from actrep_ray.torchvision_hook import PTH_LINE, PTH_NAME

pytestmark = pytest.mark.lengthy

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("actrep_ray", "data_prep", "rewards")
BUILT_FROM = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


def files_below(folder: Path) -> set[Path]:
    return {
        path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout; needs no network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*PACKAGES, "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, source)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-c", code, folder],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and with what it depends on from this one."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    options = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *options, str(wheel)], check=True, timeout=300)
    # A path in a .pth file: the .pth files in there, an editable installation's too, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin" / "python"


def run_in(
    folder: Path, program: Path, *command: str, timeout_s: float = 240.0
) -> "subprocess.CompletedProcess[str]":
    """A command in a folder, without what this process says of the checkout."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [program, *command],
        cwd=folder,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )


def test_the_wheel_holds_every_file_of_the_packages_and_the_recipes(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    of_packages = {str(p.relative_to(ROOT)) for name in PACKAGES for p in files_below(ROOT / name)}
    recipes = {f"actrep_ray/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert len(recipes) > 30
    assert of_packages | recipes <= names
    extra = names - of_packages - recipes
    assert {name for name in extra if ".dist-info/" not in name} == {PTH_NAME}
    assert zipfile.ZipFile(wheel).read(PTH_NAME).decode() == PTH_LINE


def test_an_installed_wheel_finds_its_recipes(installed: Path, tmp_path: Path) -> None:
    code = (
        "from actrep_ray.config import load_recipe, recipes_folder as f; import actrep_ray;"
        "print(actrep_ray.__file__); print(f()); print(load_recipe(f() / 'tiny_grpo.yaml').stage)"
    )
    run = run_in(tmp_path, installed, "-c", code)
    assert run.returncode == 0, run.stderr
    package, recipes, stage = run.stdout.split()
    site = next(installed.parents[1].glob("lib/python*/site-packages"))
    assert Path(package).parent == site / "actrep_ray"
    assert Path(recipes) == site / "actrep_ray" / "recipes"
    assert stage == "grpo"


def test_an_installed_wheel_says_where_its_recipes_are(installed: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path, installed, "-m", "actrep_ray", "--help")
    assert run.returncode == 0
    assert "quickstart" in run.stdout
    run = run_in(tmp_path, installed, "-m", "actrep_ray", "train", "tiny_grpo.yml")
    assert run.returncode == 2
    site = next(installed.parents[1].glob("lib/python*/site-packages"))
    assert f"did you mean {site / 'actrep_ray/recipes/tiny_grpo.yaml'}?" in run.stderr


def test_an_installed_wheel_repairs_torchvision(installed: Path, tmp_path: Path) -> None:
    code = "import sys; print([type(f).__name__ for f in sys.meta_path])"
    assert "TorchvisionFinder" in run_in(tmp_path, installed, "-c", code).stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_quickstart_runs_from_an_installed_wheel_in_an_empty_folder(
    installed: Path, tmp_path: Path
) -> None:
    """Its data and all of its milestones, with as few steps and clips as the command takes."""
    folder = tmp_path / "empty"
    folder.mkdir()
    settings = {
        "video.cache_dir": tmp_path / "frames",
        "rollout.max_response_tokens": 24,
        "eval.num_clips": 4,
        "sft.num_steps": 1,
        "sft.clips_per_step": 2,
        "sft.num_validation_clips": 2,
        "train.num_steps": 1,
        "train.prompts_per_step": 2,
        "train.group_size": 2,
        "train.mini_batch_size": "null",
    }
    options = [f"--set={key}={value}" for key, value in settings.items()]
    program = installed.with_name("actrep")
    run = run_in(folder, program, "quickstart", *options, timeout_s=1500.0)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    (summary,) = folder.glob("runs/**/summary.json")
    found = json.loads(summary.read_text(encoding="utf-8"))
    counted = found[COUNTED]
    assert {"constant", "untrained", "sft", "grpo"} <= set(counted)
    assert counted["grpo"]["n"] == 4
    assert set(found["num_clips"][COUNTED]) == {"train", "validation", "test"}
    assert {path.name for path in folder.iterdir()} == {"data", "runs"}  # and nothing beside them
    site = next(installed.parents[1].glob("lib/python*/site-packages"))
    assert f"actrep check {site / 'actrep_ray/recipes/qwen3_vl_4b_grpo.yaml'}" in run.stdout

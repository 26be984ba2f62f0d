"""`launch.sh submit` against a real head: what travels, what is shown, how it ends."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.models.tiny import write_tiny_model
from data_prep.synthetic.dataset import write_dataset

pytestmark = pytest.mark.usefixtures("of_nodes")

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """\
# SFT of a small random model: a few steps, for tests of job submission.
stage: sft
name: tiny
model: {path: models/tiny, dtype: float32}
data: {path: data/clips.jsonl}
video: {max_pixels: 1024, max_frames: 16}
sft: {num_steps: 3, clips_per_step: 2, validate_every: 3, num_validation_clips: 2}
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies on storage that the nodes share: a model and clips."""
    folder = tmp_path_factory.mktemp("shared")
    write_tiny_model(folder / "models" / "tiny")
    sizes = {"train": 4, "validation": 2}
    write_dataset(folder / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    return folder


@pytest.fixture(scope="module")
def head(start_node: Any) -> Any:
    node = start_node(num_cpus=3)
    node.wait_ready()
    return node


@pytest.fixture
def recipe() -> Any:
    """A recipe inside the repository, which is what the cluster receives."""
    path = ROOT / f".test-submit-{os.getpid()}.yaml"
    path.write_text(RECIPE)
    yield path
    path.unlink()


def submit(recipe: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "launch.sh"), "submit", str(recipe), "--address", url, "--", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


@pytest.mark.timeout(1800)
def test_a_job_runs_to_its_end_and_a_failing_one_says_why(
    shared: Path, head: Any, recipe: Path
) -> None:
    run = submit(recipe, head.url, "--root", str(shared))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "starting the workers" in run.stdout  # the job's own output
    assert "succeeded" in run.stdout
    checkpoint = shared / "runs" / "tiny" / "checkpoints" / "step-000003"
    assert (checkpoint / "model.safetensors").is_file()

    packages = list(head.folder.glob("session_latest/runtime_resources/working_dir_files/*/"))
    (package,) = [path for path in packages if (path / "actrep_ray").is_dir()]
    assert (package / "actrep_ray" / "models" / "qwen_vl.py").is_file()
    for left_out in ("runs", "data", "models", ".venv", ".git", ".mypy_cache"):
        assert not (package / left_out).exists(), left_out

    asked = ("--set", "name=large")
    too_many = ("--set", "learner.num_workers=4", "--set", "sft.clips_per_step=4")
    run = submit(recipe, head.url, "--root", str(shared), *asked, *too_many)
    assert run.returncode != 0
    assert "the nodes cannot hold 4 learner workers of 1 CPU each" in run.stdout[-3000:]
    assert "missing: 1 more CPU" in run.stdout[-3000:]

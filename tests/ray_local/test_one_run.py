"""`actrep sft` as two processes at once, and on a folder with damaged checkpoints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.run.checkpoint import CheckpointStore
from actrep_ray.run.metrics import read_metrics
from data_prep.synthetic.dataset import write_dataset
from tests.unit.test_checkpoints import DAMAGES

pytestmark = pytest.mark.slow

RECIPE = """
stage: sft
name: one
runs_dir: {folder}
model: {{path: {folder}/model, dtype: float32}}
data: {{path: {folder}/data/clips.jsonl}}
video: {{max_pixels: 1024, cache_dir: {folder}/frames}}
learner: {{num_threads: 1}}
sft: {{num_steps: 3, clips_per_step: 2, validate_every: 9, num_validation_clips: 1}}
checkpoint: {{every: 1, keep: 4}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    sizes = {"train": 4, "validation": 1}
    write_dataset(tmp_path / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    write_tiny_model(tmp_path / "model")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def start(recipe: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "actrep_ray", "sft", str(recipe), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def steps_in(recipe: Path) -> list[int]:
    return [row["step"] for row in read_metrics(recipe.parent / "one" / "metrics.jsonl")]


def run_both(recipe: Path, first: list[str], second: list[str]) -> str:
    """Start two at once; exactly one runs to its end. Returns the words of the other."""
    processes = [start(recipe, *arguments) for arguments in (first, second)]
    ends = [(process.communicate(timeout=500), process.returncode) for process in processes]
    codes = sorted(code for _, code in ends)
    assert codes == [0, 2], ends
    [told] = [error for (_, error), code in ends if code == 2]
    lines = [line for line in told.splitlines() if line.startswith("actrep: error: ")]
    assert len(lines) == 1, told
    return lines[0]


@pytest.mark.parametrize("kind", ["two fresh", "two resumes", "one of each"])
def test_of_two_at_once_one_trains_three_times_of_three(recipe: Path, kind: str) -> None:
    longer, steps = [], 3
    if kind != "two fresh":  # so that each finds a run, from the first trial on
        process = start(recipe)
        assert process.communicate(timeout=500) is not None
        assert process.returncode == 0
    for trial in range(3):
        if kind == "two fresh":
            told = run_both(recipe, ["--overwrite"], ["--overwrite"])
        elif kind == "two resumes":
            steps += 2
            longer = ["--resume", "--set", f"sft.num_steps={steps}"]
            told = run_both(recipe, longer, longer)
        else:
            steps = 3 + trial
            told = run_both(
                recipe, ["--resume", "--set", f"sft.num_steps={steps}"], ["--overwrite"]
            )
        held = f"{recipe.parent / 'one'}: held by actrep sft, process "
        assert held in told or (kind == "one of each" and "holds no run to go on with" in told)
        found = CheckpointStore(recipe.parent / "one", keep=4).newest()
        assert found is not None
        assert steps_in(recipe) == list(range(1, found.step + 1))
        assert found.step in (steps, 3)


def test_a_run_resumes_before_the_damage_and_says_so(recipe: Path) -> None:
    run = recipe.parent / "one"
    process = start(recipe)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    damages = [
        ("bit flip", "model.safetensors"),
        ("zeroed page", "training/learner.safetensors"),
        ("missing", "training/driver.json"),
        ("empty", "manifest.json"),
    ]
    for number, (damage, name) in enumerate(damages):
        last = 3 + number
        newest = run / "checkpoints" / f"step-{last:06d}"
        DAMAGES[damage](newest / name)
        process = start(recipe, "--resume", "--set", f"sft.num_steps={last + 1}")
        output, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        assert f"{newest}: skipped, " in errors
        assert name in errors
        assert f"goes on from step {last - 1}: " in output
        assert steps_in(recipe) == list(range(1, last + 2))
    record = json.loads((run / "config.resolved.json").read_text())
    assert [row["step"] for row in record["resumed"]] == [2, 3, 4, 5]

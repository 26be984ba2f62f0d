"""`actrep headroom` as a process: what it says of a first step is what that step then is."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.run.metrics import read_metrics
from data_prep.synthetic.dataset import write_dataset

LIMIT_S = 500.0
PROMPTS, GROUP_SIZE = 12, 2
# Two answers of a random model earn the same now and then: one group in three.
REWARDS = """
from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference


def third(response: ParsedResponse, reference: Reference) -> float:
    return float(sum(map(ord, response.text)) % 5 == 0)
"""
RECIPE = """
stage: grpo
name: mine
runs_dir: {folder}/runs
model: {{path: {folder}/absent, dtype: float32}}
data: {{path: {folder}/data/clips.jsonl}}
video: {{max_pixels: 1024, cache_dir: {folder}/frames}}
rollout: {{engine: hf, max_model_len: 512, max_response_tokens: 8}}
reward: {{weights: {{own_third:third: 1.0}}}}
train: {{num_steps: 1, prompts_per_step: {prompts}, group_size: {group_size}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("headroom")
    write_dataset(folder / "data", level="easy", num_clips={"train": 6}, seed=0, num_processes=1)
    write_tiny_model(folder / "model")
    (folder / "own_third.py").write_text(REWARDS)
    text = RECIPE.format(folder=folder, prompts=PROMPTS, group_size=GROUP_SIZE)
    (folder / "recipe.yaml").write_text(text)
    return folder


def actrep(folder: Path, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    given = [str(folder / "recipe.yaml"), *arguments]
    return subprocess.run(
        [sys.executable, "-m", "actrep_ray", command, *given],
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )


def headroom(folder: Path, *arguments: str) -> dict[str, Any]:
    given = ["--model", str(folder / "model"), "--prompts", str(PROMPTS), "--json", *arguments]
    run = actrep(folder, "headroom", *given)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.mark.slow
def test_a_start_that_cannot_answer_yet_is_told_so(folder: Path) -> None:
    out = folder / "out"
    given = ("--out", str(out), "--answers", str(2 * GROUP_SIZE), "--set", "rollout.temperature=2")
    found = headroom(folder, *given)
    assert (found["num_prompts"], found["num_answers"]) == (PROMPTS, 2 * GROUP_SIZE)
    assert found["model"] == str(folder / "model")
    assert found["temperature"] == 2.0  # of --set
    assert found["advice"]["name"] == "SFT first"
    assert "0% of the answers can be read" in found["advice"]["reason"]
    assert found["step"]["response_tokens"] <= PROMPTS * GROUP_SIZE * 8
    written = json.loads((out / "headroom.json").read_text())
    assert written["figures"] == found["figures"]
    assert written["settings"]["rollout"]["temperature"] == 2.0
    assert written["data"]["sha256"]
    assert (out / "headroom.png").stat().st_size > 10_000


@pytest.mark.slow
def test_what_is_said_of_a_first_step_is_what_it_is(folder: Path) -> None:
    """The same clips, the same answers, the same rewards, the same filter."""
    found = headroom(folder)
    assert (folder / "runs" / "mine" / "headroom" / "headroom.json").is_file()
    run = actrep(folder, "train", "--set", f"model.path={folder / 'model'}")  # not kept from it
    assert run.returncode == 0, run.stderr
    (step,) = [row for row in read_metrics(folder / "runs/mine/metrics.jsonl") if row["step"] == 1]
    figures = {name: figure["value"] for name, figure in found["figures"].items()}
    assert 0 < figures["useful"] < 1
    assert figures["useful"] * PROMPTS == pytest.approx(step["headroom/useful_groups"])
    assert found["dropped"] == {
        key.removeprefix("dropped/"): pytest.approx(value / PROMPTS)
        for key, value in step.items()
        if key.startswith("dropped/") and key != "dropped/groups"
    }
    for name in ("pass_at_1", "pass_at_k", "majority", "flat", "parse_rate"):
        assert figures[name] == pytest.approx(step[f"headroom/{name}"]), name
    assert found["accuracy"] == {
        key.removeprefix("train/"): pytest.approx(value)
        for key, value in step.items()
        if key.startswith("train/")
    }

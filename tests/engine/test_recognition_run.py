"""Recognition end to end by its commands: SFT on drawn activities, then 4-shot SFT and GRPO."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from actrep_ray.run.metrics import read_metrics

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1200)]

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def actrep(folder: Path, *words: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "actrep_ray", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:]
    return run.stdout


def prepare(folder: Path) -> None:
    for style in ("line", "block"):
        numbers = ["--train", "8", "--validation", "1", "--test", "2"]
        actrep(folder, "prepare", "activities", "--style", style, *numbers)
    actrep(folder, "prepare", "tiny-model")


def test_sft_then_few_shots_by_both_trainings(tmp_path: Path) -> None:
    prepare(tmp_path)
    cache = ["--set", f"video.cache_dir={tmp_path / 'frames'}"]
    few = ["--set", "sft.num_steps=4"]
    actrep(tmp_path, "sft", str(RECIPES / "recognition_tiny_sft.yaml"), *few, *cache)
    command = [
        *("evaluate", "--protocol", "few-shot", "--checkpoint", "runs/recognition_tiny/sft"),
        *("--data", "data/sticks-block/rows.jsonl"),
        *("--sft", str(RECIPES / "recognition_tiny_shots_sft.yaml")),
        *("--grpo", str(RECIPES / "recognition_tiny_grpo.yaml")),
        *(*few, "--set", "train.num_steps=2", "--set", "train.prompts_per_step=4", *cache),
    ]
    actrep(tmp_path, *command)
    out = tmp_path / "runs" / "few-shot"
    trials = pd.read_csv(out / "tables" / "trials.csv").set_index("method")
    assert trials.index.tolist() == ["zero-shot", "sft", "grpo"]
    assert trials["images"].tolist() == [32] * 3
    assert trials["accuracy"].between(0, 1).all()
    rows = read_metrics(out / "trials" / "grpo.sticks-block.4-shots.seed-0" / "metrics.jsonl")
    assert [row["step"] for row in rows][-1] == 2
    assert max(row.get("learner/log_prob_gap_mean", 0.0) for row in rows) < 1e-4

    before = json.loads((out / "protocol.json").read_text())
    lost = next((out / "predictions").glob("sft.*.jsonl"))
    answers = lost.read_text()
    lost.unlink()
    told = actrep(tmp_path, *command)  # trains nothing again, and asks what is missing
    assert "1/1 sft.sticks-block.4-shots.seed-0" in told
    assert lost.read_text() == answers
    assert json.loads((out / "protocol.json").read_text()) == before


def test_its_quickstart_goes_from_nothing_to_tables(tmp_path: Path) -> None:
    settings = {
        "video.cache_dir": tmp_path / "frames",
        "sft.num_steps": 3,
        "train.num_steps": 2,
        "train.prompts_per_step": 4,
        "eval.num_bootstrap": 50,
    }
    command = ["quickstart", "--task", "recognition"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    actrep(tmp_path, *command)
    out = tmp_path / "runs" / "quickstart_recognition" / "base-to-new"
    table = pd.read_csv(out / "tables" / "base_new.csv")
    assert table["method"].tolist() == ["zero-shot", "sft", "grpo"]
    assert (out / "report" / "report.html").is_file()
    before = (out / "trials").stat().st_mtime
    told = actrep(tmp_path, *command)  # finds everything
    assert "sft took" not in told
    assert (out / "trials").stat().st_mtime == before

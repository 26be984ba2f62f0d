"""The quickstart in small: every milestone once, then again from what is there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from actrep_ray.evaluation.predictions import read_predictions
from actrep_ray.quickstart.data import COUNTED, MARKED
from actrep_ray.run.metrics import read_metrics
from actrep_ray.tasks.loading import load_task
from data_prep.schema import read_clips

pytestmark = pytest.mark.engine

FIGURES = {"n", "mae", "obo", "obz", "rmse", "parse_rate"}
BESIDE = {figure.name for figure in load_task("counting").figures if figure.by}  # if written

CODE = """
import sys
from dataclasses import replace
from actrep_ray.quickstart.data import COUNTED, MARKED
from actrep_ray.quickstart.run import QUICK, run_quickstart

few = {"train": 12, "validation": 2, "test": 4}
edition = replace(QUICK, num_clips={MARKED: few, COUNTED: few})
run_quickstart(edition=edition, fresh=False, overrides=sys.argv[1:])
"""


def run_quickstart(overrides: list[str]) -> None:
    """In a process of its own: this one may hold a Ray cluster already."""
    command = [sys.executable, "-c", CODE, *overrides]
    run = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert run.returncode == 0, run.stdout


def test_every_stage_runs_and_is_not_done_twice(tmp_path: Path) -> None:
    settings = {
        "runs_dir": tmp_path / "runs",
        "data.path": tmp_path / "data" / "clips.jsonl",
        "video.cache_dir": tmp_path / "frames",
        "rollout.max_response_tokens": 24,
        "sft.num_steps": 2,
        "sft.clips_per_step": 4,
        "train.num_steps": 2,
        "train.prompts_per_step": 2,
        "train.group_size": 2,
        "train.mini_batch_size": "null",
        "checkpoint.every": 1,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    run_quickstart(overrides)

    summary = json.loads((tmp_path / "runs" / "summary.json").read_text())
    for held_out in (summary[MARKED], summary[COUNTED]):
        for name in ("constant", "untrained", "sft", "grpo"):
            assert FIGURES <= set(held_out[name]) <= FIGURES | BESIDE
            assert held_out[name]["n"] == 4
            assert held_out[name]["mae"]["low"] <= held_out[name]["mae"]["value"]
        assert FIGURES - {"n"} <= set(held_out["paired"]) <= FIGURES | BESIDE
    for name in (MARKED, COUNTED):
        board = EventAccumulator(str(tmp_path / "runs" / "held-out" / name)).Reload()
        curve = [(event.step, event.value) for event in board.Scalars("eval/obo")]
        values = [summary[name][model]["obo"]["value"] for model in ("untrained", "sft", "grpo")]
        assert [step for step, _ in curve] == [0, 2, 4]
        assert [value for _, value in curve] == pytest.approx(values)
    clips = list(read_clips(tmp_path / "data" / "clips.jsonl"))
    assert len(clips) == 36 + 4  # those of the marked kind among the counted
    has_marks = {(clip.dataset, clip.split): clip.cycles is not None for clip in clips}
    assert [key for key, marked in has_marks.items() if not marked] == [
        (COUNTED, "train"),
        (COUNTED, "validation"),
    ]
    milestones = {"data", "model", "untrained", "sft", "sft evaluation", "grpo", "grpo evaluation"}
    assert milestones < set(summary["seconds"])
    assert summary["versions"]["torch"]
    rows = read_metrics(tmp_path / "runs" / "grpo" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert max(row.get("learner/log_prob_gap_mean", 0.0) for row in rows) < 1e-4
    assert (
        len(read_predictions(tmp_path / "runs" / "predictions-grpo.jsonl", load_task("counting")))
        == 4
    )
    assert (tmp_path / "runs" / "report" / "summary.png").stat().st_size > 10_000

    milestones_file = tmp_path / "runs" / "milestones.json"
    before = json.loads(milestones_file.read_text())
    run_quickstart(overrides)
    after = json.loads(milestones_file.read_text())
    assert {**before, "report": None} == {**after, "report": None}

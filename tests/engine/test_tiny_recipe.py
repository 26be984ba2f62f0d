"""What the long recipes of the small model must reach: `actrep quickstart --full`, from nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from actrep_ray.models.qwen_vl import QwenVLInputs, load_model
from actrep_ray.pretrain.reading import QUESTION, certainty
from actrep_ray.quickstart.data import COUNTED
from actrep_ray.run.model_folder import resolve_model
from data_prep.synthetic.levels import LEVELS

LIMIT_S = 90 * 60


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(LIMIT_S + 60)
def test_grpo_counts_better_than_its_sft_start_where_only_counts_are_known(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    command = [sys.executable, "-m", "actrep_ray", "quickstart", "--full"]
    for key, value in {
        "runs_dir": tmp_path / "runs",
        "data.path": tmp_path / "data" / "clips.jsonl",
        "video.cache_dir": tmp_path / "frames",
    }.items():
        command += ["--set", f"{key}={value}"]
    with log.open("w") as out:
        run = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, check=False, timeout=LIMIT_S
        )
    assert run.returncode == 0, log.read_text()[-4000:]
    summary = json.loads((tmp_path / "runs" / "summary.json").read_text())
    held_out = summary[COUNTED]
    assert held_out["paired"]["obo"]["low"] > 0
    assert held_out["paired"]["obo_list"]["low"] > 0
    assert held_out["grpo"]["consistent"]["value"] >= 0.98
    for stage in ("sft", "grpo"):
        by_answer, by_list = (held_out[stage][name]["value"] for name in ("obz", "obz_list"))
        assert abs(by_answer - by_list) <= 0.02, stage
    folder = resolve_model(tmp_path / "runs" / "sft")
    model, inputs = load_model(folder, dtype="float32").eval(), QwenVLInputs(folder)
    lowest = certainty(model, inputs, QUESTION, seed=7)
    assert min(min(lowest[n]) for n in range(LEVELS["long"].max_count + 1)) > 0.95

"""What the long recipes of the small model must reach: `actrep quickstart --full`, from nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from actrep_ray.quickstart.data import COUNTED

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

"""What the long recipes of the small model must reach: `actrep quickstart --full`, from nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_S = 90 * 60


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(LIMIT_S + 60)
def test_grpo_counts_more_clips_exactly_than_its_sft_start(tmp_path: Path) -> None:
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
    assert summary["paired"]["obz"]["value"] >= 0.10
    assert summary["paired"]["obz"]["low"] > 0
    assert summary["grpo"]["obo"]["value"] >= 0.90

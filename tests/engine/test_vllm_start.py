"""How vLLM is started: a start that fails in a worker process says why."""

import json
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.config import RolloutConfig, VideoConfig
from actrep_ray.rollout.vllm_engine import VllmEngine
from actrep_ray.rollout.vllm_start import EngineStartError, _cause_of

pytestmark = pytest.mark.engine


@pytest.mark.slow
def test_a_start_that_fails_in_a_worker_process_names_its_cause(
    checkpoint: Any, rollout: RolloutConfig, video: VideoConfig, tmp_path: Path, capfd: Any
) -> None:
    folder = tmp_path / "odd"
    source: Path = checkpoint("qwen2_5_vl", 0, True)
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["intermediate_size"] = 191
    (folder / "config.json").write_text(json.dumps(config))
    cfg = rollout.model_copy(update={"tensor_parallel_size": 2})
    with pytest.raises(
        EngineStartError, match=r"did not start: assert .* % self\.tp_size .*\(AssertionError\)"
    ):
        VllmEngine(folder, cfg, video, device="cpu", seed=0)


def test_the_cause_is_the_first_error_that_a_traceback_ends_with() -> None:
    lines = ["loading", "  raise ValueError(x)", "ValueError: 7 is odd", "RuntimeError: gave up"]
    assert _cause_of(lines) == "ValueError: 7 is odd"
    assert (
        _cause_of(["  assert x % 2 == 0", "AssertionError"]) == "assert x % 2 == 0 (AssertionError)"
    )
    assert _cause_of(["all is well", "no ValueError here"]) == ""

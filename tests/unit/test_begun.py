"""Which settings an evaluation that goes on may change."""

from pathlib import Path

import pytest

from actrep_ray.config import ConfigError, Recipe, flat_settings, override
from actrep_ray.evaluation.begun import _FREE, begin, deciding_settings


def begun(folder: Path, *settings: str) -> None:
    recipe = override(Recipe(), settings)
    begin(folder, "", answers={"checkpoint": "a"}, recipe=recipe, clips=[])


@pytest.mark.parametrize(
    "setting",
    [
        "rollout.num_workers=4", "rollout.num_workers={min: 1, max: 3}", "rollout.num_cpus=2",
        "rollout.gpu_memory_utilization=0.5", "rollout.kv_cache_gib=3", "rollout.max_num_seqs=8",
        "rollout.max_in_flight=9", "rollout.timeout_s=9", "rollout.max_restarts=1",
        "placement.mode=colocated", "learner.lr=1e-5", "eval.num_bootstrap=7", "name=other",
        "video.cache_gib=2", "reward.num_workers=2",
    ],
)  # fmt: skip
def test_what_cannot_change_an_answer_may_differ(setting: str, tmp_path: Path) -> None:
    begun(tmp_path)
    begun(tmp_path, setting)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("seed=1", r"seed \(0 -> 1\)"),
        ("video.fps=2", r"video.fps \(4.0 -> 2.0\)"),
        ("data.question=How often?", "data.question"),
        ("model.dtype=float32", "model.dtype"),
        ("rollout.engine=hf", r'rollout.engine \("vllm" -> "hf"\)'),
        ("rollout.tensor_parallel_size=2", "rollout.tensor_parallel_size"),
        ("rollout.max_model_len=512", "rollout.max_model_len"),
        ("rollout.max_response_tokens=16", "rollout.max_response_tokens"),
        ("rollout.temperature=0.5", "rollout.temperature"),
        ("rollout.enforce_eager=true", "rollout.enforce_eager"),
        ("rollout.vllm.attention_backend=TRITON_ATTN", "rollout.vllm.attention_backend"),
    ],
)
def test_what_can_change_one_is_refused_by_name(setting: str, told: str, tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(ConfigError, match=rf"begun with another one of: {told}"):
        begun(tmp_path, setting)
    with pytest.raises(ConfigError, match="another one of: checkpoint;"):
        begin(tmp_path, "", answers={"checkpoint": "b"}, recipe=Recipe(), clips=[])


def test_every_name_of_the_list_is_a_setting() -> None:
    names = flat_settings(Recipe())
    for free in _FREE:
        assert any(name == free or (free.endswith(".") and name.startswith(free)) for name in names)
    assert {name.partition(".")[0] for name in deciding_settings(Recipe())} == {
        "task", "seed", "device", "model", "data", "video", "rollout",
    }  # fmt: skip

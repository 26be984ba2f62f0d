"""vLLM inside a Ray actor, as a run uses it: generate, and take weights from the object store."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from actrep_ray.config import Recipe, RolloutConfig, VideoConfig
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.weights import pack_weights

pytestmark = pytest.mark.engine


def test_a_pool_of_vllm_follows_the_pushed_weights(
    ray_session: Any,
    checkpoint: Any,
    rollout: RolloutConfig,
    video: VideoConfig,
    make_prompts: Any,
    make_reference: Any,
) -> None:
    paths: list[Path] = [checkpoint("qwen3_vl", seed, True) for seed in (0, 1)]
    recipe = Recipe.model_validate({"device": "cpu", "model": {"dtype": "float32"}}).model_copy(
        update={"rollout": rollout, "video": video}
    )
    prompts = make_prompts(QwenVLInputs(paths[0]))
    settings = SamplingSettings(max_tokens=8, group_size=2)
    pool = RolloutPool.start(recipe, paths[0])
    try:
        assert make_reference(paths[0]).gap(pool.generate(prompts, settings)) < 1e-4
        weights = load_file(paths[1] / "model.safetensors")
        pool.load_weights(ray_session.put(list(pack_weights(weights.items(), 2**20))), 1)
        assert pool.policy_versions() == [1]
        assert make_reference(paths[1]).gap(pool.generate(prompts, settings)) < 1e-4
    finally:
        pool.shutdown()

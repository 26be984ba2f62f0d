"""What a frozen tower made of frames outlives a push; what another one would make does not."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actrep_ray.config import RolloutConfig, VideoConfig
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import Prompt, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.vllm_engine import VllmEngine

pytestmark = pytest.mark.engine

SETTINGS = SamplingSettings(max_tokens=6, group_size=2)


def test_a_push_leaves_what_a_frozen_tower_made_of_frames(
    checkpoint: Callable[..., Path],
    rollout: RolloutConfig,
    video: VideoConfig,
    make_prompts: Callable[[QwenVLInputs], list[Prompt]],
) -> None:
    base = checkpoint("qwen3_vl", 0, True)
    weights = load_file(base / "model.safetensors")
    engine = VllmEngine(
        base, rollout, video, device="cpu", seed=0, dtype="float32", is_visual_frozen=True
    )
    try:
        prompts = make_prompts(engine.inputs)[:2]
        passes = count_passes(engine)
        version = 0

        def push(words: str, factor: float) -> None:
            """Scale the weights whose names hold some words."""
            nonlocal version
            version += 1
            for name in [name for name in weights if words in name]:
                weights[name] = weights[name] * factor
            engine.load_weights(weights, version)

        push("nothing", 1.0)
        before = engine.generate(prompts, SETTINGS)
        num_first = len(passes)
        assert num_first > 0
        push("layers.0.mlp.down_proj", 1.5)  # of the language model
        kept = engine.generate(prompts, SETTINGS)
        assert len(passes) == num_first
        assert differ(before, kept)
        engine.forget_prompts()
        anew = engine.generate(prompts, SETTINGS)
        assert len(passes) == 2 * num_first
        assert not differ(kept, anew)
        push("visual.merger", 1.5)
        moved = engine.generate(prompts, SETTINGS)
        assert len(passes) == 3 * num_first
        assert differ(anew, moved)
    finally:
        engine.shutdown()


def count_passes(engine: VllmEngine) -> list[int]:
    """A list that grows with every pass of the engine's tower, which is in this process."""
    passes: list[int] = []

    def watch(model: torch.nn.Module) -> None:
        tower = model.get_submodule("visual")
        tower.register_forward_pre_hook(lambda *_: passes.append(1))

    engine.llm.apply_model(watch)
    return passes


def differ(some: Sequence[RolloutGroup], others: Sequence[RolloutGroup]) -> bool:
    """Whether the first tokens' log-probabilities differ by more than rounding."""
    gaps = [
        np.abs(a.rollout_log_probs[0] - b.rollout_log_probs[0])
        for one, other in zip(some, others, strict=True)
        for a, b in zip(one.rollouts, other.rollouts, strict=True)
        if a.token_ids[0] == b.token_ids[0]
    ]
    return not gaps or max(gaps) > 1e-5

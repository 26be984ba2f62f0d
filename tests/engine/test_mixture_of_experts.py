"""A small Qwen3-VL-MoE, not square, in the files of the published ones: from SFT to a push."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actrep_ray.config import Recipe, RolloutConfig, VideoConfig
from actrep_ray.driver.groups import row_of
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import LearnerRow, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.vllm_engine import VllmEngine
from actrep_ray.weights import vllm_transfer
from actrep_ray.weights.buckets import magnitude

pytestmark = pytest.mark.engine

SETTINGS = SamplingSettings(max_tokens=8, group_size=2)
DOWN = "model.language_model.layers.1.mlp.experts.down_proj"
SQUARE = "model.visual.blocks.0.attn.proj.weight"


def test_from_sft_to_a_push_learner_and_engine_agree(
    checkpoint: Any,
    rollout: RolloutConfig,
    video: VideoConfig,
    make_prompts: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base: Path = checkpoint("qwen3_vl_moe", 0, False)
    prompts = make_prompts(QwenVLInputs(base))
    engine = VllmEngine(base, rollout, video, device="cpu", seed=0)
    rows = rows_of(engine.generate(prompts, SETTINGS))
    engine.shutdown()

    learner = start_learner(base, video, "sft")
    learner.sft_step(rows)
    saved = tmp_path / "sft"
    learner.save_model(saved)
    learner.shutdown()
    before, after = (load_file(one / "model.safetensors") for one in (base, saved))
    assert {n: w.shape for n, w in after.items()} == {n: w.shape for n, w in before.items()}
    assert after[DOWN].shape == (8, 96, 64)  # [experts, in, out], as published
    assert not torch.equal(after[DOWN], before[DOWN])

    engine = VllmEngine(saved, rollout, video, device="cpu", seed=0)
    learner = start_learner(saved, video, "grpo")
    try:
        groups = engine.generate(prompts, SETTINGS)
        assert gap(learner, groups) < 1e-4
        learner.update(rows_of(groups), 1)
        assert gap(learner, groups) > 1e-2  # the step has moved the weights
        weights = dict(learner.iter_weights())
        engine.load_weights(weights, 1)
        assert gap(learner, engine.generate(prompts, SETTINGS)) < 1e-4
        check_verification(engine, weights, monkeypatch)
    finally:
        engine.shutdown()
        learner.shutdown()


def check_verification(
    engine: VllmEngine, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transposed weight and stale ones are seen, though sums of magnitudes may be the same."""
    turned = {**weights, SQUARE: weights[SQUARE].T.contiguous()}
    assert magnitude(turned[SQUARE]) == pytest.approx(magnitude(weights[SQUARE]), rel=1e-12)
    engine.replace_weights(turned)
    with pytest.raises(RuntimeError, match=f"{SQUARE}: located sum"):
        engine.verify_weights(weights)
    newer = {n: w + 1e-5 if n.endswith("layers.0.self_attn.k_proj.weight") else w for n, w in
             weights.items()}  # fmt: skip
    engine.replace_weights(weights)
    with pytest.raises(RuntimeError, match=r"k_proj.weight: located sum"):
        engine.verify_weights(newer)
    with pytest.raises(RuntimeError, match=f"{DOWN}: the experts in use are not"):
        engine.verify_weights({**weights, DOWN: weights[DOWN].flip(0)})
    engine.verify_weights(weights)
    monkeypatch.setattr(vllm_transfer, "pack_again", lambda layer: None)
    engine.replace_weights(weights)
    with pytest.raises(RuntimeError, match=r"experts.*: the experts in use are not"):
        engine.verify_weights(weights)


def start_learner(model: Path, video: VideoConfig, stage: str) -> LearnerWorker:
    recipe = Recipe.model_validate(
        {
            "stage": stage,
            "device": "cpu",
            "model": {"path": str(model), "dtype": "float32"},
            "train": {"prompts_per_step": 6, "group_size": 2},
            "learner": {"lr": 1e-2},
        }
    ).model_copy(update={"video": video})
    worker = LearnerWorker(recipe, str(model), 0, 1, 10, str(model))
    worker.setup("127.0.0.1", 0)
    return worker


def rows_of(groups: Sequence[RolloutGroup]) -> list[LearnerRow]:
    signs = np.array([1.0, -0.5], np.float32)
    return [row_of(replace(group, advantages=signs)) for group in groups]


def gap(learner: LearnerWorker, groups: Sequence[RolloutGroup]) -> float:
    """Mean absolute difference between the learner's log-probabilities and the engine's."""
    learned = learner.log_probs(rows_of(groups))
    differences = [
        np.abs(expected - answer.rollout_log_probs)
        for row, group in zip(learned, groups, strict=True)
        for expected, answer in zip(row, group.rollouts, strict=True)
    ]
    return float(np.concatenate(differences).mean())

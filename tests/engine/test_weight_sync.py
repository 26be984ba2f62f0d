"""A real learner trains, pushes its weights into vLLM in another process, and both still agree."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actrep_ray.config import LoraConfig, Recipe, RolloutConfig, VideoConfig
from actrep_ray.driver.groups import row_of
from actrep_ray.learner.pool import LearnerPool
from actrep_ray.models.lora import is_adapter
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import LearnerRow, Prompt, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.weights.buckets import unpack_weights
from actrep_ray.weights.sync import WeightSync

pytestmark = pytest.mark.engine


def test_learner_and_engine_agree_after_each_step_and_push(
    ray_session: Any,
    checkpoint: Any,
    rollout: RolloutConfig,
    video: VideoConfig,
    make_prompts: Any,
) -> None:
    model: Path = checkpoint("qwen3_vl", 0, True)
    recipe = Recipe.model_validate(
        {
            "stage": "sft",
            "device": "cpu",
            "model": {"dtype": "float32"},
            "learner": {"num_workers": 2, "lr": 1e-2},
        }
    ).model_copy(update={"rollout": rollout, "video": video})
    prompts = make_prompts(QwenVLInputs(model))
    settings = SamplingSettings(max_tokens=8, group_size=2)
    learners = LearnerPool.start(recipe, model, total_steps=10)
    rollouts = RolloutPool.start(recipe, model)
    try:
        sync = WeightSync(learners, rollouts)
        rows = rows_of(rollouts.generate(prompts, settings))
        for version in (1, 2):
            learners.sft_step(rows)
            stale = rollouts.generate(prompts, settings)
            assert gap(learners, stale) > 1e-2  # the step has moved the weights
            metrics = sync.push(version)
            assert metrics["sync/policy_version"] == version
            groups = rollouts.generate(prompts, settings)
            assert gap(learners, groups) < 1e-4
            versions = {answer.policy_version for group in groups for answer in group.rollouts}
            assert versions == {version}
            rows = rows_of(groups)
        check_push_into_work(learners, rollouts, sync, prompts, rows)
    finally:
        rollouts.shutdown()
        learners.shutdown()


def test_adapters_alone_are_sent_and_agree(
    ray_session: Any,
    checkpoint: Any,
    rollout: RolloutConfig,
    video: VideoConfig,
    make_prompts: Any,
) -> None:
    """Adapters in all components, beside a base that the engine has loaded once."""
    model: Path = checkpoint("qwen2_5_vl", 0, True)
    adapters = {
        "rank": 4,
        "alpha": 8,
        "target_modules": [*LoraConfig().target_modules, "qkv", "proj"],
        "components": ["vision_tower", "merger", "language_model"],
        "send": "adapter",
    }
    recipe = Recipe.model_validate(
        {
            "stage": "grpo",
            "device": "cpu",
            "model": {"path": str(model), "dtype": "float32", "lora": adapters},
            "train": {"prompts_per_step": 6, "group_size": 2},
            "learner": {"num_workers": 2, "lr": 3e-2},
        }
    ).model_copy(update={"rollout": rollout, "video": video})
    prompts = make_prompts(QwenVLInputs(model))
    settings = SamplingSettings(max_tokens=8, group_size=2)
    learners = LearnerPool.start(recipe, model, total_steps=10)
    rollouts = RolloutPool.start(recipe, model)
    try:
        sync = WeightSync(learners, rollouts)
        sync.push(0)
        groups = rollouts.generate(prompts, settings)
        for version in (1, 2):
            assert gap(learners, groups) < 1e-4
            learners.update(rows_of(groups), version)
            assert gap(learners, groups) > 1e-3  # the step has moved the adapters
            metrics = sync.push(version)
            assert metrics["sync/policy_version"] == version
            groups = rollouts.generate(prompts, settings)
            assert {a.policy_version for group in groups for a in group.rollouts} == {version}
        assert gap(learners, groups) < 1e-4
        check_push_into_work(learners, rollouts, sync, prompts, rows_of(groups))
        buckets = ray_session.get(learners.export_weights_refs())
        sent = unpack_weights(buckets)
        assert all(is_adapter(name) for name in sent)
        num_bytes = sum(data.nbytes for bucket in buckets for data in bucket.data)
        assert num_bytes == 4 * sum(weight.numel() for weight in sent.values())
        assert num_bytes < 0.25 * sum(f.stat().st_size for f in model.glob("*.safetensors"))
    finally:
        rollouts.shutdown()
        learners.shutdown()


def check_push_into_work(
    learners: LearnerPool,
    rollouts: RolloutPool,
    sync: WeightSync,
    prompts: Sequence[Prompt],
    rows: Sequence[LearnerRow],
) -> None:
    """Answers at work go on with the new weights: their last tokens agree with the learner."""
    num_tokens = 400
    step = learners.sft_step if learners.recipe.stage == "sft" else partial(learners.update, step=3)
    step(rows)
    groups: list[RolloutGroup] = []
    again = [replace(prompt, prompt_id=f"{prompt.prompt_id}-again") for prompt in prompts]
    rollouts.submit(again, SamplingSettings(max_tokens=num_tokens, group_size=4), groups.append)
    sync.push(3)
    rollouts.wait(lambda: len(groups) == len(again), lambda: "the groups")
    mixed = [group for group in groups if group.rollouts[0].last_policy_version == 3]
    assert mixed, "every group was finished before the push: make the answers longer"
    assert {group.rollouts[0].policy_version for group in mixed} == {2}
    learned = learners.log_probs(rows_of(mixed))
    gaps = [
        np.abs(expected - answer.rollout_log_probs)
        for row, group in zip(learned, mixed, strict=True)
        for expected, answer in zip(row, group.rollouts, strict=True)
        if len(answer.token_ids) == num_tokens
    ]
    assert np.mean([values[-1] for values in gaps]) < 1e-4
    assert np.mean([values[0] for values in gaps]) > 1e-3


def gap(learners: LearnerPool, groups: Sequence[RolloutGroup]) -> float:
    """Mean absolute difference between the learner's log-probabilities and the engine's."""
    learned = learners.log_probs(rows_of(groups))
    differences = [
        np.abs(expected - answer.rollout_log_probs)
        for row, group in zip(learned, groups, strict=True)
        for expected, answer in zip(row, group.rollouts, strict=True)
    ]
    return float(np.concatenate(differences).mean())


def rows_of(groups: Sequence[RolloutGroup]) -> list[LearnerRow]:
    rows = []
    for group in groups:
        is_odd = np.arange(len(group.rollouts)) % 2
        rows.append(row_of(replace(group, advantages=np.where(is_odd, -0.5, 1).astype(np.float32))))
    return rows

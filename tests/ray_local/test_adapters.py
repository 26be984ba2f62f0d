"""GRPO of adapters in bfloat16: an engine that died, and a run that goes on, apply them once."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actrep_ray.config import LOG_PROB_GAP_LIMITS, load_recipe, override
from actrep_ray.driver.job import prepare_grpo
from actrep_ray.driver.pools import start_pools
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import Prompt, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.run.metrics import read_metrics
from actrep_ray.run.model_folder import resolve_model
from actrep_ray.tasks.loading import load_clips
from data_prep.synthetic.dataset import write_dataset

RECIPE = """
stage: grpo
name: adapters
device: cpu
runs_dir: {folder}
model:
  path: {folder}/model
  lora: {{rank: 4, alpha: 16}}
data: {{path: {folder}/data/clips.jsonl}}
video: {{max_pixels: 1024, cache_dir: {folder}/frames}}
rollout: {{engine: hf, max_model_len: 512, max_response_tokens: 8, max_restarts: 1}}
reward: {{weights: {{"letters:letters": 1}}}}
learner: {{lr: 6.0e-2}}
train: {{num_steps: 4, prompts_per_step: 2, group_size: 4}}
checkpoint: {{every: 2}}
"""
GREEDY = SamplingSettings(max_tokens=8, temperature=0.0)


@pytest.mark.slow
def test_adapters_are_applied_once_after_a_death_and_a_restart(
    ray_session: Any, tmp_path: Path
) -> None:
    sizes = {"train": 6, "test": 2}
    write_dataset(tmp_path / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    write_tiny_model(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    limit = LOG_PROB_GAP_LIMITS["bfloat16"]
    inputs = QwenVLInputs(tmp_path / "model")
    prompts = [
        Prompt(f"p{i}", clip.id, "How many?", inputs.plan(clip, recipe.video))
        for i, clip in enumerate(load_clips(recipe, "train"))
    ]
    model = resolve_model(recipe.model.path)
    pools = start_pools(recipe, model, model)
    try:
        untrained = pools.rollouts.generate(prompts, GREEDY)
        assert prepare_grpo(recipe).run(pools).step == 4
        trained = pools.rollouts.generate(prompts, GREEDY)
        assert difference(untrained, trained) > 5 * limit  # twice as much would show
        kill_engine(ray_session, pools.rollouts)
        assert difference(trained, pools.rollouts.generate(prompts, GREEDY)) < 1e-6
        assert pools.rollouts.restarts.num_spent == 1
    finally:
        pools.shutdown()

    job = prepare_grpo(override(recipe, ["train.num_steps=5"]), resume=True)
    assert job.model != tmp_path / "model"  # a folder with the adapter merged
    pools = start_pools(job.recipe, job.model, job.base)
    try:
        assert job.run(pools).step == 5
    finally:
        pools.shutdown()
    rows = read_metrics(recipe.run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    for row in rows[1:]:
        assert row["learner/log_prob_gap_mean"] < limit, row["step"]
        assert row["learner/num_optimizer_steps"] == 1


def kill_engine(ray: Any, rollouts: RolloutPool) -> None:
    [worker] = rollouts.workers
    os.kill(ray.get(worker.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


def difference(first: list[RolloutGroup], second: list[RolloutGroup]) -> float:
    """Mean over prompts of what the first answer's first log-probability differs by."""
    pairs = zip(first, second, strict=True)
    return float(
        np.mean([abs(a.rollouts[0].rollout_log_probs[0] - b.rollouts[0].rollout_log_probs[0])
                 for a, b in pairs])
    )  # fmt: skip

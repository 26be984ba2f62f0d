"""GRPO by the real driver with ZeRO-3 on two ranks and a vLLM engine; it goes on from its end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from actrep_ray.config import load_recipe, override
from actrep_ray.driver.job import prepare_grpo
from actrep_ray.driver.pools import start_pools
from actrep_ray.learner.pool import LearnerPool
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.run.metrics import read_metrics
from actrep_ray.run.model_folder import resolve_model
from actrep_ray.weights.sync import WeightSync
from data_prep.synthetic.dataset import write_dataset

pytestmark = pytest.mark.engine

RECIPE = """
stage: grpo
name: zero
device: cpu
runs_dir: {folder}
model: {{path: {folder}/model, dtype: float32}}
data: {{path: {folder}/data/clips.jsonl}}
video: {{max_pixels: 1024, cache_dir: {folder}/frames}}
rollout: {{max_model_len: 512, max_response_tokens: 12, max_num_seqs: 16, kv_cache_gib: 0.25}}
reward: {{weights: {{"letters:letters": 1}}}}
learner:
  strategy: deepspeed
  deepspeed_config: {folder}/zero.json
  num_workers: 2
  lr: 1.0e-3
  ema_decay: 0.5
train: {{num_steps: 2, prompts_per_step: 2, group_size: 4}}
checkpoint: {{every: 2}}
"""
# Without this, weights as small as these are kept whole.
ZERO = '{"zero_optimization": {"stage3_param_persistence_threshold": 0}}'


def test_engine_and_zero_3_agree_and_the_run_goes_on(ray_session: Any, tmp_path: Path) -> None:
    sizes = {"train": 6, "test": 2}
    write_dataset(tmp_path / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    model = write_tiny_model(tmp_path / "model")
    (tmp_path / "zero.json").write_text(ZERO)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    job = prepare_grpo(recipe)
    model = resolve_model(recipe.model.path)
    pools = start_pools(recipe, model, model)
    try:
        checkpoint = job.run(pools)
        assert checkpoint.step == 2
        start, trained, average = (
            load_file(folder / "model.safetensors")
            for folder in (model, checkpoint.folder, checkpoint.folder / "ema")
        )
        norm = "model.language_model.norm.weight"
        assert start.keys() == trained.keys() == average.keys()
        assert 1e-4 < (trained[norm] - start[norm]).abs().max() < 1e-2
        moved = (trained[norm] - start[norm]).sign() * (average[norm] - start[norm])
        assert (moved > 0).float().mean() > 0.9  # on the way from the start to the end
        loaded: Any = AutoModelForImageTextToText.from_pretrained(checkpoint.folder)
        assert torch.equal(loaded.state_dict()[norm], trained[norm])

        pools.learners.shutdown()
        learners = LearnerPool.start(recipe, checkpoint.folder, 3)
        sync = WeightSync(learners, pools.rollouts)
        pools = replace(pools, learners=learners, weight_sync=sync)
        longer = prepare_grpo(override(recipe, ["train.num_steps=3"]), resume=True)
        newest = longer.run(pools)
        assert newest.step == 3
        assert newest.driver_state()["sampler"]["num_drawn"] == 6
    finally:
        pools.shutdown()
    rows = read_metrics(recipe.run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows[1:]:
        assert row["learner/log_prob_gap_mean"] < 1e-4, row["step"]
        assert row["learner/num_optimizer_steps"] == 1
        assert row["sync/policy_version"] == row["step"]

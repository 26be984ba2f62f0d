"""Every preset and loss through the learner: two updates of a batch, finite, and weights move."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actrep_ray.config import PRESETS, Recipe
from actrep_ray.learner.grpo import GrpoUpdate
from actrep_ray.models.qwen_vl import QwenVLInputs

GRPO = (
    "stage=grpo",
    "learner.lr=1e-3",
    "train.group_size=4",
    "train.prompts_per_step=2",
    "train.num_updates_per_batch=2",
)
CASES = {
    **{name: (f"algorithm.preset={name}",) for name in PRESETS},
    "sapo": ("algorithm.loss=sapo", "algorithm.aggregation=seq-mean-token-mean"),
    "geo_mean": ("algorithm.loss=geo_mean", "algorithm.aggregation=seq-mean-token-mean"),
    "clip_cov": ("algorithm.loss=clip_cov",),
    "kl_cov": ("algorithm.loss=kl_cov",),
    "corrected": ("algorithm.rollout_correction=sequence_truncate", "algorithm.loss=cispo"),
}


def test_every_preset_and_loss_trains(
    make_worker: Any,
    make_recipe: Callable[..., Recipe],
    tiny_model: Callable[..., Path],
    make_rows: Callable[..., list[Any]],
) -> None:
    # One worker for all of them, with a reference policy, as starting one costs more than they do.
    worker = make_worker(make_recipe(*GRPO, "algorithm.preset=grpo"), tiny_model())
    rows = make_rows(QwenVLInputs(tiny_model()), 2, 4)
    clipped = {}
    for step, (name, settings) in enumerate(CASES.items()):
        recipe = make_recipe(*GRPO, *settings)
        worker.grpo = GrpoUpdate(
            recipe, worker.ranks, worker.loader, worker.strategy.forward, worker.reference,
            worker.steps,
        )  # fmt: skip
        log_probs = worker.log_probs(rows)
        sampled = [replace(r, rollout_log_probs=v) for r, v in zip(rows, log_probs, strict=True)]
        metrics = worker.update(sampled, step)
        assert np.isfinite(metrics["loss"]), name
        assert metrics["grad_norm"] > 0, name
        assert metrics["log_prob_gap_max"] < 1e-5, name
        moved = worker.log_probs(rows)[0][0] - log_probs[0][0]
        assert np.abs(moved).max() > 1e-4, name
        clipped[name] = metrics["clip_fraction"]
    assert clipped["gspo"] > 0
    assert clipped["grpo"] > 0
    assert clipped["sapo"] == 0

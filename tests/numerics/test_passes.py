"""What `check` says of the passes of a step is what the learner does, counted in tokens."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actrep_ray.learner.batch.packing import PackedBatch
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.planning.training import passes

BASE = ("stage=grpo", "train.prompts_per_step=4", "train.group_size=2", "train.max_log_prob_gap=99")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), (0, 0, 0, 1)),
        (("algorithm.kl_coef=0.1",), (1, 0, 0, 1)),
        (("algorithm.kl_coef=0.1", "algorithm.kl_in=reward", "algorithm.kl_type=k1"), (1, 1, 0, 1)),
        (("algorithm.rollout_correction=token_truncate",), (0, 1, 0, 1)),
        (("train.mini_batch_size=4",), (0, 1, 0, 1)),
        (("train.num_updates_per_batch=3",), (0, 1, 0, 3)),
        (("algorithm.loss=kl_cov",), (0, 1, 0, 1)),
        (("algorithm.loss=kl_cov", "train.mini_batch_size=4", "train.num_updates_per_batch=2"),
         (0, 1, 1.5, 2)),
        (("model.lora.rank=4", "algorithm.kl_coef=0.1"), (1, 0, 0, 1)),
    ],
)  # fmt: skip
def test_passes_of_a_step(
    settings: tuple[str, ...],
    expected: tuple[float, ...],
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Any],
    make_rows: Callable[..., Any],
    make_worker: Callable[..., Any],
) -> None:
    recipe = make_recipe(*BASE, *settings)
    planned = passes(recipe)
    assert (planned.reference, planned.old, planned.picking, planned.training) == expected
    model = tiny_model()
    rows = [
        replace(
            row,
            rewards=np.array([1, 0], np.float32),
            rollout_log_probs=tuple(np.full(len(r), -6.0, np.float32) for r in row.responses),
        )
        for row in make_rows(QwenVLInputs(model), 4, 2)
    ]
    worker = make_worker(recipe, model)
    seen = {"forward": 0, "backward": 0}

    def count(_: Any, args: tuple[PackedBatch, ...]) -> None:
        seen["backward" if torch.is_grad_enabled() else "forward"] += args[0].num_targets

    worker.policy.register_forward_pre_hook(count)
    if isinstance(worker.reference, torch.nn.Module):
        worker.reference.register_forward_pre_hook(count)
    worker.update(rows, 1)
    num_tokens = sum(len(response) for row in rows for response in row.responses)
    assert seen["backward"] == planned.training * num_tokens
    num_scored = (planned.reference + planned.old) * num_tokens
    if planned.picking:  # all mini-batches but the first of all, which are not of one length
        first = sum(len(response) for row in rows[:2] for response in row.responses)
        num_scored += planned.training * num_tokens - first
    assert seen["forward"] == num_scored

"""Which optimiser steps are taken: how a batch is cut, what moves nothing, where schedules end."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actrep_ray.config import Recipe, TrainConfig
from actrep_ray.learner.batch.rows import mini_batches
from actrep_ray.learner.optimizer_step import LearnerError
from actrep_ray.learner.strategies.optimizer import lr_factor
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.qwen_vl import QwenVLInputs

MakeRecipe = Callable[..., Recipe]
TinyModel = Callable[..., Path]
GRPO = (
    "stage=grpo",
    "learner.lr=1e-3",
    "learner.weight_decay=0.1",
    "train.group_size=4",
    "train.prompts_per_step=4",
)


def _sizes(num_rows: int, per_mini_batch: int, group_size: int = 8) -> list[int]:
    cfg = TrainConfig(group_size=group_size, mini_batch_size=per_mini_batch * group_size)
    found = mini_batches(num_rows, cfg)
    assert [i for mini in found for i in mini] == list(range(num_rows))
    return [len(mini) for mini in found]


@pytest.mark.parametrize(
    ("num_rows", "per_mini_batch", "expected"),
    [
        (64, 2, [2] * 32),
        (63, 2, [3] + [2] * 30),  # not 31 of two and a lone one
        (63, 16, [16, 16, 16, 15]),
        (49, 16, [13, 12, 12, 12]),
        (40, 16, [14, 13, 13]),  # not 16, 16, 8
        (33, 32, [33]),
        (34, 32, [17, 17]),
        (3, 32, [3]),
        (1, 1, [1]),
        (5, 1, [1] * 5),
    ],
)
def test_mini_batches_by_hand(num_rows: int, per_mini_batch: int, expected: list[int]) -> None:
    assert _sizes(num_rows, per_mini_batch) == expected


@given(num_rows=st.integers(1, 300), per_mini_batch=st.integers(1, 64))
def test_mini_batches_are_even(num_rows: int, per_mini_batch: int) -> None:
    sizes = _sizes(num_rows, per_mini_batch)
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) <= -(-num_rows // per_mini_batch)
    if len(sizes) > 1:
        assert 2 * min(sizes) > per_mini_batch
    if num_rows % per_mini_batch == 0:
        assert set(sizes) == {per_mini_batch}


def test_without_a_size_all_is_one_mini_batch() -> None:
    assert mini_batches(5, TrainConfig()) == [[0, 1, 2, 3, 4]]


@pytest.fixture
def rows(tiny_model: TinyModel, make_rows: Callable[..., list[Any]]) -> list[Any]:
    found = make_rows(QwenVLInputs(tiny_model()), 4, 4)
    return [replace(row, is_truncated=np.zeros(4, bool)) for row in found]


def _cut(row: Any) -> Any:
    return replace(row, is_truncated=np.ones(4, bool))


def _factors(worker: Any) -> list[float]:
    """Where the learning rates go that the strategy is asked to step with, if its step is taken."""
    found: list[float] = []
    step = worker.strategy.step

    def noted(factor: float) -> float:
        norm = float(step(factor))
        if np.isfinite(norm):
            found.append(factor)
        return norm

    worker.strategy.step = noted
    return found


def _weights(worker: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in worker.iter_weights()}


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed"])
def test_an_update_with_nothing_to_train_leaves_weights_moments_and_average(
    strategy: str,
    make_recipe: MakeRecipe,
    tiny_model: TinyModel,
    rows: list[Any],
    tmp_path: Path,
) -> None:
    settings = ("algorithm.mask_truncated=true", "learner.ema_decay=0.5")
    recipe = make_recipe(*GRPO, *settings, f"learner.strategy={strategy}")
    # DeepSpeed keeps the first process group of a process for good: one of its own.
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        process.submit(_train_nothing, recipe, tiny_model(), rows, tmp_path).result()


def _train_nothing(recipe: Recipe, model: Path, rows: list[Any], folder: Path) -> None:
    worker = LearnerWorker(recipe, str(model), 0, 1, 10, str(model))
    worker.setup("127.0.0.1", 0)
    worker.update(rows, 1)  # momentum is there
    worker.save_state(folder / "before")
    before = _weights(worker)
    metrics = worker.update([_cut(row) for row in rows], 2)
    assert (metrics["num_optimizer_steps"], metrics["grad_norm"]) == (0, 0)
    worker.save_state(folder / "after")
    assert all(torch.equal(value, before[name]) for name, value in _weights(worker).items())
    for name in ("learner.safetensors", "learner.json", "ema.safetensors"):
        files = [(folder / one / name).read_bytes() for one in ("before", "after")]
        assert files[0] == files[1], name
    assert worker.update(rows, 3)["num_optimizer_steps"] == 1
    assert any(not torch.equal(value, before[name]) for name, value in _weights(worker).items())
    worker.shutdown()


def test_a_mini_batch_with_nothing_to_train_is_skipped_among_others(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    """Two of three mini-batches are as if the third were not there."""
    settings = (*GRPO, "algorithm.mask_truncated=true", "train.mini_batch_size=4")
    worker = make_worker(make_recipe(*settings), tiny_model())
    metrics = worker.update([rows[0], _cut(rows[1]), rows[2]], 1)
    assert metrics["num_optimizer_steps"] == 2
    found = _weights(worker)
    worker = make_worker(make_recipe(*settings), tiny_model())
    worker.update([rows[0], rows[2]], 1)
    assert all(torch.equal(value, found[name]) for name, value in _weights(worker).items())


@pytest.mark.parametrize(
    "settings",
    [
        "algorithm.mask_truncated=true",
        "algorithm.rollout_correction=sequence_reject",  # a ratio of NaN is out of every range
    ],
)
def test_broken_weights_are_told_where_nothing_has_a_gradient(
    settings: str, make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    """Log-probabilities of NaN whose tokens all are left out: no gradient, and no skipped step."""
    worker = make_worker(make_recipe(*GRPO, settings), tiny_model())
    with torch.no_grad():
        next(iter(worker.policy.model.parameters())).fill_(torch.nan)
    batch = [
        replace(
            _cut(row),
            rollout_log_probs=tuple(np.full(len(r), -1.0, np.float32) for r in row.responses),
        )
        for row in rows
    ]
    with pytest.raises(LearnerError, match="optimiser step 1: the loss is not finite"):
        worker.update(batch, 1)


def test_advantages_of_zero_move_nothing_and_a_kl_does(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    flat = [replace(row, advantages=np.zeros(4, np.float32)) for row in rows]
    worker = make_worker(make_recipe(*GRPO), tiny_model())
    worker.update(rows, 1)
    assert worker.update(flat, 2)["num_optimizer_steps"] == 0
    worker = make_worker(make_recipe(*GRPO, "algorithm.kl_coef=0.1"), tiny_model())
    worker.update(rows, 1)
    assert worker.update(flat, 2)["num_optimizer_steps"] == 1


def test_masked_answers_do_not_adapt_the_weight_of_the_kl(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    """Their KL would be 0, below any target."""
    settings = ("algorithm.kl_coef=0.1", "algorithm.kl_target=0.01")
    recipe = make_recipe(*GRPO, *settings, "algorithm.mask_truncated=true")
    worker = make_worker(recipe, tiny_model())
    worker.update([_cut(row) for row in rows], 1)
    assert worker.kl_coef == 0.1


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_schedule_ends_with_the_run_whatever_was_dropped(
    schedule: str, make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    """Four steps of two mini-batches are planned; 2, 0, 1 and 2 are taken."""
    settings = ("train.mini_batch_size=8", f"learner.schedule={schedule}", "learner.warmup_steps=1")
    recipe = make_recipe(*GRPO, *settings)
    worker = make_worker(recipe, tiny_model(), total_steps=4)
    found = _factors(worker)
    worker.update(rows, 1)
    # in step 2 every group was dropped: the driver does not even ask
    worker.update(rows[:2], 3)
    worker.update(rows, 4)
    of_cfg = [lr_factor(*at) for at in _at([(0, 8), (1, 8), (2, 5), (3, 5), (4, 5)], recipe)]
    assert found == pytest.approx(of_cfg)
    assert found[-1] == lr_factor(4, recipe.learner, 5)  # the end of a run of five
    assert all(later < earlier for earlier, later in pairwise(found[1:]))
    assert found[0] == 1.0  # the one step of warm-up


def test_a_skipped_mini_batch_does_not_warm_up(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    settings = ("algorithm.mask_truncated=true", "learner.warmup_steps=4")
    worker = make_worker(make_recipe(*GRPO, *settings), tiny_model(), total_steps=4)
    found = _factors(worker)
    for step, batch in enumerate([rows, [_cut(row) for row in rows], rows], start=1):
        worker.update(batch, step)
    assert found == [1 / 4, 2 / 4]


def _at(places: Sequence[tuple[int, int]], recipe: Recipe) -> list[tuple[int, Any, int]]:
    return [(step, recipe.learner, total) for step, total in places]

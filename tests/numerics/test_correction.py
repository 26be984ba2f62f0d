"""Importance correction and masking: by hand, alone and inside an update of the learner."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actrep_ray.config import AlgorithmConfig, Recipe
from actrep_ray.driver.groups import row_of
from actrep_ray.learner.loss.correction import apply_kl_penalty, token_weights
from actrep_ray.learner.optimizer_step import LearnerError
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import LearnerRow, Prompt, Rollout, RolloutGroup, RolloutStatus
from data_prep.video import FramePlan

MakeRecipe = Callable[..., Recipe]
TinyModel = Callable[..., Path]
GRPO = ("stage=grpo", "learner.lr=1e-3", "train.group_size=4", "train.prompts_per_step=3")
PLAN = FramePlan("a.mp4", 1, (0, 1), 4.0, 32, 32)

# Ratios learner / engine of the tokens of two answers.
RATIOS = ([1.0, 4.0, 0.25], [1.5, 1.5])


def _row() -> LearnerRow:
    return LearnerRow(
        row_id="p",
        question="?",
        plan=PLAN,
        num_prompt_tokens=3,
        responses=(np.full(3, 9, np.int32), np.full(2, 9, np.int32)),
        advantages=np.array([1.0, -1.0], np.float32),
        rollout_log_probs=tuple(np.full(len(r), -1.0, np.float32) for r in RATIOS),
        rewards=np.array([1.0, 0.0], np.float32),
        is_truncated=np.array([False, True]),
    )


def _old() -> dict[tuple[int, int], np.ndarray]:
    return {(0, a): (np.log(r) - 1.0).astype(np.float32) for a, r in enumerate(RATIOS)}


def _found(**settings: Any) -> Any:
    cfg = AlgorithmConfig(**settings)
    return token_weights([_row()], {0}, _old(), cfg, lambda value: [value])


def test_token_truncation_bounds_each_weight() -> None:
    found = _found(rollout_correction="token_truncate", rollout_correction_threshold=2.0)
    np.testing.assert_allclose(found.weights[0, 0], [1.0, 2.0, 0.25], rtol=1e-5)
    np.testing.assert_allclose(found.weights[0, 1], [1.5, 1.5], rtol=1e-5)
    assert not found.masks
    assert found.metrics["correction_weight_mean"] == pytest.approx(6.25 / 5, rel=1e-4)
    log_ratios = np.log(np.concatenate(RATIOS))
    assert found.metrics["engine_kl"] == pytest.approx(-log_ratios.mean(), abs=1e-5)
    k3 = np.exp(log_ratios) - 1 - log_ratios
    assert found.metrics["engine_kl_k3"] == pytest.approx(k3.mean(), rel=1e-4)


def test_sequence_truncation_takes_the_ratio_of_the_answer() -> None:
    found = _found(rollout_correction="sequence_truncate", rollout_correction_threshold=2.0)
    np.testing.assert_allclose(found.weights[0, 0], [1.0] * 3, rtol=1e-5)  # 1 * 4 / 4
    np.testing.assert_allclose(found.weights[0, 1], [2.0] * 2, rtol=1e-5)  # 2.25, bounded


def test_token_rejection_leaves_out_what_is_outside() -> None:
    found = _found(rollout_correction="token_reject", rollout_correction_threshold=2.0)
    assert found.masks[0, 0].tolist() == [True, False, False]
    assert found.masks[0, 1].tolist() == [True, True]
    assert dict(found.num_kept) == {(0, 0): 1, (0, 1): 2}
    assert found.metrics["rejected_tokens"] == pytest.approx(2 / 5)
    assert not found.weights


def test_sequence_rejection_leaves_out_whole_answers() -> None:
    found = _found(rollout_correction="sequence_reject", rollout_correction_threshold=2.0)
    assert dict(found.num_kept) == {(0, 0): 3, (0, 1): 0}
    assert found.metrics["masked_answers"] == 1


def test_truncated_answers_are_masked() -> None:
    found = _found(mask_truncated=True)
    assert dict(found.num_kept) == {(0, 1): 0}
    both = _found(mask_truncated=True, rollout_correction="token_reject")
    assert dict(both.num_kept) == {(0, 0): 1, (0, 1): 0}
    assert not _found().num_kept


def test_a_correction_needs_the_engines_log_probs() -> None:
    cfg = AlgorithmConfig(rollout_correction="token_truncate")
    row = replace(_row(), rollout_log_probs=())
    with pytest.raises(ValueError, match="p: no log-probabilities of the engine"):
        token_weights([row], {0}, _old(), cfg, lambda value: [value])


def test_the_kl_is_taken_off_the_reward() -> None:
    cfg = AlgorithmConfig(advantage="dr_grpo", kl_in="reward", kl_coef=0.1, kl_type="k1")
    ref = {key: value - 0.5 for key, value in _old().items()}  # k1: 0.5 a token
    [row] = apply_kl_penalty([_row()], {0}, _old(), ref, 0.1, cfg, lambda value: [value])
    rewards = np.array([1.0 - 0.1 * 1.5, 0.0 - 0.1 * 1.0])
    np.testing.assert_allclose(row.advantages, rewards - rewards.mean(), atol=1e-6)


@pytest.fixture
def rows(tiny_model: TinyModel, make_rows: Callable[..., list[Any]]) -> list[Any]:
    return make_rows(QwenVLInputs(tiny_model()), 3, 4)


def _gradient_step(worker: Any, rows: list[Any]) -> dict[str, torch.Tensor]:
    """How one update moved the weights."""
    before = dict(worker.iter_weights())
    worker.update(rows, 1)
    return {name: value - before[name] for name, value in worker.iter_weights()}


def test_masked_answers_are_as_if_they_were_not_there(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    """Same weights after an update with the truncated ones masked as without them."""
    cut = np.array([False, True, False, True])
    marked = [replace(row, is_truncated=cut) for row in rows]
    kept = [
        replace(
            row,
            responses=tuple(r for r, is_cut in zip(row.responses, cut, strict=True) if not is_cut),
            advantages=row.advantages[~cut],
        )
        for row in rows
    ]
    recipe = make_recipe(*GRPO, "algorithm.mask_truncated=true")
    found = _gradient_step(make_worker(recipe, tiny_model()), marked)
    expected = _gradient_step(make_worker(make_recipe(*GRPO), tiny_model()), kept)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-3)
    recipe = make_recipe(*GRPO, "algorithm.mask_truncated=true")
    worker = make_worker(recipe, tiny_model())
    everything = [replace(row, is_truncated=np.ones(4, bool)) for row in rows]
    metrics = worker.update(everything, 1)
    assert metrics["grad_norm"] == 0
    assert metrics["masked_answers"] == 12


def test_corrected_updates_and_the_kl_in_the_reward(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    settings = ("algorithm.kl_coef=0.1", "algorithm.kl_in=reward", "algorithm.kl_target=1.0e-6")
    correction = ("algorithm.kl_type=k1", "algorithm.rollout_correction=token_reject")
    recipe = make_recipe(*GRPO, *settings, *correction)
    worker = make_worker(recipe, tiny_model())
    rewards = np.array([1.0, 0.0, 0.5, 0.2], np.float32)
    rows = [
        replace(row, rewards=rewards, rollout_log_probs=tuple(v.copy() for v in values))
        for row, values in zip(rows, worker.log_probs(rows), strict=True)
    ]
    rows[1].rollout_log_probs[2][:] -= 5.0  # the learner's are far likelier: rejected
    metrics = worker.update(rows, 1)
    num_tokens = sum(len(r) for row in rows for r in row.responses)
    assert metrics["rejected_tokens"] == pytest.approx(len(rows[1].responses[2]) / num_tokens)
    assert metrics["kl_coef"] == 0.1
    assert worker.kl_coef < 0.1  # the KL was 0, below the target
    # No KL yet, so the advantages are those of the rewards: GRPO's.
    expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    kept = np.array([[len(r) for r in row.responses] for row in rows], float)
    kept[1, 2] = 0
    loss = -(expected * kept).sum() / kept.sum()
    assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert worker.update(rows, 2)["ref_kl"] != 0


def test_the_ids_of_a_bad_batch_are_left_in_the_run(
    make_worker: Any, make_recipe: MakeRecipe, tiny_model: TinyModel, rows: list[Any]
) -> None:
    recipe = make_recipe(*GRPO)
    worker = make_worker(recipe, tiny_model())
    rows[1] = replace(rows[1], row_id="bad-row")
    worker.encoder.encode(rows[1]).pixel_values[3, 5] = torch.nan
    with pytest.raises(LearnerError, match=r"Rollouts: bad-row/0, bad-row/1, .*not-finite-000001"):
        worker.update(rows, 1)
    content = json.loads((recipe.run_dir / "not-finite-000001.json").read_text())
    assert content["what"] == "loss"
    assert content["bad"] == [f"bad-row/{a}" for a in range(4)]
    assert content["mini_batch"][:5] == ["row-0/0", "row-0/1", "row-0/2", "row-0/3", "bad-row/0"]


def test_two_ranks_agree_with_one() -> None:
    """Each rank corrects its own rows; numbers and means are those of all."""
    rows = [_row(), replace(_row(), is_truncated=np.array([True, False]))]
    old = {**_old(), **{(1, a): value for (_, a), value in _old().items()}}
    cfg = AlgorithmConfig(
        rollout_correction="token_reject", mask_truncated=True, rollout_correction_threshold=2.0
    )
    alone = token_weights(rows, {0, 1}, old, cfg, lambda value: [value])
    sent: list[Any] = []

    def send(value: Any) -> list[Any]:
        sent.append(value)
        return [value]

    for rank in (0, 1):  # what each would send
        token_weights(rows, {rank}, old, cfg, send)
    found = token_weights(rows, {1}, old, cfg, lambda value: sent)
    assert dict(found.num_kept) == dict(alone.num_kept) == {
        (0, 0): 1, (0, 1): 0, (1, 0): 0, (1, 1): 2
    }  # fmt: skip
    assert found.metrics["masked_answers"] == alone.metrics["masked_answers"] == 2
    assert set(found.masks) == {(1, 0), (1, 1)}


def test_the_driver_hands_on_rewards_and_what_was_cut_off() -> None:
    statuses = (RolloutStatus.STOPPED, RolloutStatus.TRUNCATED)
    rollouts = tuple(
        Rollout(f"p/{g}", np.full(2, 9, np.int32), np.zeros(2, np.float32), "", status, 0)
        for g, status in enumerate(statuses)
    )
    rewards = np.array([0.5, 0.25], np.float32)
    row = row_of(RolloutGroup(Prompt("p", "c", "?", PLAN), rollouts, 3, rewards, {}, rewards))
    assert row.is_truncated.tolist() == [False, True]
    assert row.rewards.tolist() == [0.5, 0.25]

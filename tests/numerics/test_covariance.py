"""What clip_cov and kl_cov pick, by hand; what they do to it, against the losses that verl has."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actrep_ray.config import AlgorithmConfig, Recipe
from actrep_ray.learner.loss.algorithms import BatchCounts, policy_loss
from actrep_ray.learner.loss.covariance import pick_tokens
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import LearnerRow
from data_prep.video import FramePlan

PLAN = FramePlan("a.mp4", 1, (0, 1), 4.0, 32, 32)

# Two groups of two answers: log p of the tokens (mean -2 over the 8 of them), and advantages
# whose mean over TOKENS is 0.25.
NOW = {(0, 0): [-1.0, -3.0], (0, 1): [-2.0], (1, 0): [-0.5, -1.5, -4.0], (1, 1): [-2.5, -1.5]}
ADVANTAGES = {0: [1.0, -1.0], 1: [1.0, -1.0]}
# (log p + 2) (A - 0.25), by answer
COVARIANCES = {
    (0, 0): [0.75, -0.75],
    (0, 1): [0.0],
    (1, 0): [1.125, 0.375, -1.5],
    (1, 1): [0.625, -0.625],
}


def _rows() -> list[LearnerRow]:
    return [
        LearnerRow(
            row_id=f"row-{i}",
            question="?",
            plan=PLAN,
            num_prompt_tokens=3,
            responses=tuple(np.full(len(NOW[i, a]), 9, np.int32) for a in range(2)),
            advantages=np.array(ADVANTAGES[i], np.float32),
        )
        for i in range(2)
    ]


def _values(of: dict[tuple[int, int], list[float]]) -> dict[tuple[int, int], np.ndarray]:
    return {key: np.array(values, np.float32) for key, values in of.items()}


def _pick(
    cfg: AlgorithmConfig,
    own: tuple[int, ...] = (0, 1),
    old: dict[tuple[int, int], np.ndarray] | None = None,
    masks: dict[tuple[int, int], np.ndarray] | None = None,
    draw: tuple[int, int] = (0, 0),
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> dict[tuple[int, int], list[bool]]:
    now = _values(NOW)
    picked = pick_tokens(_rows(), own, now, old or now, masks or {}, cfg, draw, gather)
    return {key: value.tolist() for key, value in picked.items()}


def test_kl_cov_picks_the_highest_covariances() -> None:
    assert sum(sum(values) for values in NOW.values()) == -16
    found = _pick(AlgorithmConfig(loss="kl_cov", cov_fraction=0.38))  # 3 of 8
    assert found == {
        (0, 0): [True, False],
        (0, 1): [False],
        (1, 0): [True, False, False],
        (1, 1): [True, False],
    }


def test_what_does_not_count_is_neither_picked_nor_in_the_means() -> None:
    """Without the answer (1, 0), means are -2 and -0.2: covariances 1.2, -1.2, 0, 0.4, -0.4."""
    masks = {(1, 0): np.zeros(3, bool)}
    found = _pick(AlgorithmConfig(loss="kl_cov", cov_fraction=0.4), masks=masks)  # 2 of 5
    assert found[0, 0] == [True, False]
    assert found[1, 0] == [False, False, False]
    assert found[1, 1] == [True, False]
    nothing = {key: np.zeros(len(values), bool) for key, values in NOW.items()}
    picked = _pick(AlgorithmConfig(loss="kl_cov"), masks=nothing)
    assert not any(any(values) for values in picked.values())


def test_clip_cov_draws_within_its_range_from_what_is_not_clipped() -> None:
    """0.375, 0.625 and 0.75 are within; 1.125 is above, the others below."""
    cfg = AlgorithmConfig(loss="clip_cov", cov_fraction=0.99, clip_cov_range=(0.1, 1.0))
    found = _pick(cfg)
    expected = {key: [0.1 < c < 1.0 for c in row] for key, row in COVARIANCES.items()}
    assert found == expected
    old = _values(NOW)
    old[0, 0][0] -= 0.5  # a ratio of 1.65 with a positive advantage: cut already
    old[1, 1][0] -= 0.5  # with a negative one it is not
    assert _pick(cfg, old=old) == expected | {(0, 0): [False, False]}
    old[1, 1][0] += 1.0  # 0.61: cut
    assert _pick(cfg, old=old)[1, 1] == [False, False]


def test_the_draw_is_that_of_the_seed_and_the_optimiser_step() -> None:
    cfg = AlgorithmConfig(loss="clip_cov", cov_fraction=0.2, clip_cov_range=(0.1, 1.0))  # 1 of 3
    draws = [_pick(cfg, draw=(3, step)) for step in range(20)]
    assert all(sum(sum(values) for values in draw.values()) == 1 for draw in draws)
    candidates = {str(draw) for draw in draws}
    assert len(candidates) == 3
    assert [_pick(cfg, draw=(3, step)) for step in range(20)] == draws


@pytest.mark.parametrize("loss", ["clip_cov", "kl_cov"])
def test_two_ranks_pick_what_one_picks(loss: str) -> None:
    cfg = AlgorithmConfig(loss=loss, cov_fraction=0.38, clip_cov_range=(0.1, 1.2))
    sent: list[Any] = []

    def send(value: Any) -> list[Any]:
        sent.append(value)
        return [value]

    for rank in (1, 0):  # what each would send
        _pick(cfg, own=(rank,), gather=send)
    for rank in (0, 1):
        assert _pick(cfg, own=(rank,), gather=lambda _: sent) == _pick(cfg)


# ---------------------------------------------------------------- the losses, against verl's


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    log_probs = -torch.rand(4, 5, generator=generator, dtype=torch.float64) * 3
    old = log_probs + 0.4 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    advantages = torch.tensor([1.2, -0.7, 0.3, -2.0], dtype=torch.float64)
    mask = torch.arange(5)[None] < torch.tensor([5, 3, 1, 4])[:, None]
    return log_probs.requires_grad_(), old, advantages, mask


def _verls(cfg: AlgorithmConfig, weights: torch.Tensor | None) -> torch.Tensor:
    """The gradient by the function of that name in verl, which the project does not call."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import ActorConfig, PolicyLossConfig

    log_probs, old, advantages, mask = _batch()
    loss, _ = get_policy_loss_fn(cfg.loss)(
        old_log_prob=old,
        log_prob=log_probs,
        advantages=advantages[:, None].expand_as(log_probs),
        response_mask=mask.double(),
        loss_agg_mode=cfg.aggregation,
        config=ActorConfig(
            strategy="fsdp2",
            rollout_n=1,
            use_dynamic_bsz=True,
            clip_ratio=cfg.clip_high,
            clip_ratio_low=cfg.clip_low,
            clip_ratio_high=cfg.clip_high,
            policy_loss=PolicyLossConfig(
                loss_mode=cfg.loss,
                clip_cov_ratio=cfg.cov_fraction,
                clip_cov_lb=cfg.clip_cov_range[0],
                clip_cov_ub=cfg.clip_cov_range[1],
                kl_cov_ratio=cfg.cov_fraction,
                ppo_kl_coef=cfg.kl_cov_coef,
            ),
        ),
        rollout_is_weights=weights,
    )
    gradient: torch.Tensor = torch.autograd.grad(loss, log_probs)[0]
    return gradient


CASES: dict[str, dict[str, Any]] = {
    # All that qualify are picked, so that verl's own draw does not matter.
    "clip_cov": {"cov_fraction": 0.99, "clip_cov_range": [-0.3, 0.4]},
    "kl_cov": {"cov_fraction": 0.3, "kl_cov_coef": 0.7},
}


@pytest.mark.parametrize("is_weighed", [False, True])
@pytest.mark.parametrize("loss", CASES)
def test_loss_equals_verls_where_a_batch_is_not_cut(loss: str, is_weighed: bool) -> None:
    cfg = AlgorithmConfig(loss=loss, **CASES[loss])
    log_probs, old, advantages, mask = _batch()
    weights = torch.linspace(0.1, 2.0, 20, dtype=torch.float64).view(4, 5) if is_weighed else None
    lengths = mask.sum(1).tolist()
    now, before = (
        {(0, a): x[a, :n].detach().numpy() for a, n in enumerate(lengths)} for x in (log_probs, old)
    )
    row = replace(
        _rows()[0],
        responses=tuple(np.full(n, 9, np.int32) for n in lengths),
        advantages=advantages.numpy(),
    )
    found = pick_tokens([row], [0], now, before, {}, cfg, (0, 0), lambda value: [value])
    picked = torch.zeros(mask.shape, dtype=torch.bool)
    for (_, a), values in found.items():
        picked[a, : len(values)] = torch.from_numpy(values)
    assert 2 <= int(picked.sum()) <= 9
    counts = BatchCounts(int(mask.sum()), 4, 1)
    value, sums = policy_loss(log_probs, old, advantages, mask, cfg, counts, weights, picked)
    [gradient] = torch.autograd.grad(value, log_probs)
    torch.testing.assert_close(gradient, _verls(cfg, weights), atol=1e-12, rtol=1e-9)
    if loss == "clip_cov":
        is_cut = (gradient == 0) & mask
        assert (picked & mask & ~is_cut).sum() == 0
        assert sums["clip_fraction"] == pytest.approx(float(is_cut.sum()), abs=1e-5)


@pytest.mark.parametrize("loss", CASES)
def test_picks_do_not_depend_on_micro_batches(
    loss: str,
    make_worker: Any,
    make_recipe: Callable[..., Recipe],
    tiny_model: Callable[..., Path],
    make_rows: Callable[..., list[Any]],
) -> None:
    """Two updates of two passes, in one micro-batch and in one an answer: the same weights.

    Before, each micro-batch picked among its own tokens, and at least one.
    """
    settings = (
        "stage=grpo",
        "learner.lr=1e-3",
        "train.group_size=4",
        "train.prompts_per_step=3",
        "train.num_updates_per_batch=2",
        f"algorithm.loss={loss}",
        *(f"algorithm.{key}={value}" for key, value in CASES[loss].items()),
        "algorithm.cov_fraction=0.1",
    )
    rows = make_rows(QwenVLInputs(tiny_model()), 3, 4)
    moved, counted = [], []
    for tokens in (4096, 110):
        recipe = make_recipe(*settings, f"learner.micro_batch_tokens={tokens}")
        worker = make_worker(recipe, tiny_model())
        before = dict(worker.iter_weights())
        metrics = [worker.update(rows, step) for step in (1, 2)]
        moved.append({name: value - before[name] for name, value in worker.iter_weights()})
        counted.append([one["clip_fraction"] for one in metrics])
    whole, other = (torch.cat([v.flatten().double() for v in one.values()]) for one in moved)
    assert float((whole - other).norm() / whole.norm()) < 1e-3
    assert counted[0] == pytest.approx(counted[1], abs=1e-6)

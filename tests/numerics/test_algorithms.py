"""Advantages and losses against formulas written out here from the papers, to 1e-6."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actrep_ray.config import AlgorithmConfig
from actrep_ray.learner.algorithms import (
    BatchCounts,
    aggregate,
    compute_advantages,
    kl_to_reference,
    policy_loss,
)
from actrep_ray.types import Prompt, Rollout, RolloutGroup, RolloutStatus
from data_prep.video import FramePlan

PLAN = FramePlan("a.mp4", 1, (0, 1), 4.0, 32, 32)
LOW, HIGH, DUAL = 0.1, 0.3, 2.0


def _group(prompt_id: str, rewards: list[float], text: str = "same") -> RolloutGroup:
    rollouts = tuple(
        Rollout(
            rollout_id=f"{prompt_id}/{g}",
            token_ids=np.array([9], np.int32),
            rollout_log_probs=np.zeros(1, np.float32),
            text=text,
            status=RolloutStatus.STOPPED,
            policy_version=0,
        )
        for g in range(len(rewards))
    )
    prompt = Prompt(prompt_id, "clip", "How many times?", PLAN)
    return RolloutGroup(prompt, rollouts, 5, rewards=np.array(rewards, np.float32))


def _grpo(r: np.ndarray) -> np.ndarray:
    """arXiv 2402.03300: reward minus mean over (sample) standard deviation."""
    return (r - r.mean()) / (r.std(ddof=1) + 1e-6)


def _dr_grpo(r: np.ndarray) -> np.ndarray:
    """arXiv 2503.20783: without the standard deviation."""
    return r - r.mean()


def _rloo(r: np.ndarray) -> np.ndarray:
    """arXiv 2402.14740: reward minus the mean of the OTHER answers."""
    return np.array([r[i] - np.delete(r, i).mean() for i in range(len(r))])


ESTIMATORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "grpo": _grpo,
    "dr_grpo": _dr_grpo,
    "rloo": _rloo,
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_advantages(name: str) -> None:
    # Every group has the same question and texts: only prompt_id tells them apart.
    rewards = [[0.0, 1.0, 0.5, 0.25], [1.0, 0.0], [0.1, 0.1, 0.9]]
    groups = [_group(f"p{i}", r) for i, r in enumerate(rewards)]
    found = compute_advantages(groups, AlgorithmConfig(advantage=name))
    for group, r in zip(found, rewards, strict=True):
        expected = ESTIMATORS[name](np.array(r, np.float32).astype(np.float64))
        assert group.advantages.dtype == np.float32
        np.testing.assert_allclose(group.advantages, expected, atol=1e-6, rtol=1e-6)
    assert [g.prompt.prompt_id for g in found] == ["p0", "p1", "p2"]


def test_grpo_by_hand() -> None:
    [group] = compute_advantages([_group("p", [1.0, 0.0, 0.0, 0.0])], AlgorithmConfig())
    # mean 0.25, sample standard deviation 0.5
    np.testing.assert_allclose(group.advantages, [1.5, -0.5, -0.5, -0.5], atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    reward=st.floats(-10, 10, width=32),
    size=st.integers(2, 9),
    name=st.sampled_from(sorted(ESTIMATORS)),
)
def test_a_group_without_variance_gets_zeros(reward: float, size: int, name: str) -> None:
    cfg = AlgorithmConfig(advantage=name)
    [flat, _] = compute_advantages([_group("a", [reward] * size), _group("b", [0.0, 1.0])], cfg)
    assert flat.advantages.tolist() == [0.0] * size


def test_groups_that_cannot_be_weighed_are_refused() -> None:
    cfg = AlgorithmConfig()
    with pytest.raises(ValueError, match=r"group 'p' has 1 answers"):
        compute_advantages([_group("p", [1.0])], cfg)
    with pytest.raises(ValueError, match="'p' names more than one group"):
        compute_advantages([_group("p", [1.0, 0.0]), _group("p", [1.0, 0.0])], cfg)
    with pytest.raises(ValueError, match="expected finite"):
        compute_advantages([_group("p", [1.0, float("nan")])], cfg)
    assert compute_advantages([], cfg) == []


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    log_probs = -torch.rand(4, 5, generator=generator, dtype=torch.float64) * 3
    old = log_probs + 0.4 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    advantages = torch.tensor([1.2, -0.7, 0.3, -2.0], dtype=torch.float64)
    mask = torch.arange(5)[None] < torch.tensor([5, 3, 1, 4])[:, None]
    return log_probs.requires_grad_(), old, advantages, mask


def _vanilla(lp: torch.Tensor, old: torch.Tensor, a: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """PPO with two clip ranges; a negative advantage is bounded by the dual clip (1912.09729)."""
    ratio = (lp - old).exp()
    loss = torch.maximum(-a * ratio, -a * ratio.clamp(1 - LOW, 1 + HIGH))
    return torch.where(a < 0, torch.minimum(loss, -a * DUAL), loss)


def _gspo(lp: torch.Tensor, old: torch.Tensor, a: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """2507.18071: the ratio of whole sequences, by length; its gradient spread over tokens."""
    sequence = (((lp - old) * m).sum(1) / m.sum(1)).detach()[:, None]
    ratio = (sequence + lp - lp.detach()).exp()
    return torch.maximum(-a * ratio, -a * ratio.clamp(1 - LOW, 1 + HIGH))


def _cispo(lp: torch.Tensor, old: torch.Tensor, a: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """2506.13585: the clipped ratio is a constant weight of the log-probability."""
    return -(lp - old).exp().clamp(1 - LOW, 1 + HIGH).detach() * a * lp


LOSSES = {"vanilla": _vanilla, "gspo": _gspo, "cispo": _cispo}


def _aggregated(values: torch.Tensor, m: torch.Tensor, name: str, c: BatchCounts) -> torch.Tensor:
    if name == "token-mean":
        return (values * m).sum() / c.num_tokens * c.num_ranks
    per_answer = (values * m).sum(1)
    if name == "seq-mean-token-mean":
        per_answer = per_answer / m.sum(1)
    return per_answer.sum() / c.num_answers * c.num_ranks


AGGREGATIONS = ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient(loss: str, aggregation: str) -> None:
    cfg = AlgorithmConfig(
        loss=loss, aggregation=aggregation, clip_low=LOW, clip_high=HIGH, dual_clip=DUAL
    )
    counts = BatchCounts(num_tokens=40, num_answers=9, num_ranks=2)
    log_probs, old, advantages, mask = _batch()
    found, sums = policy_loss(log_probs, old, advantages, mask, cfg, counts)
    [gradient] = torch.autograd.grad(found, log_probs)
    token_losses = LOSSES[loss](log_probs, old, advantages[:, None], mask)
    expected = _aggregated(token_losses, mask, aggregation, counts)
    [expected_gradient] = torch.autograd.grad(expected, log_probs)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-6)
    assert sums["approx_kl"] == pytest.approx(
        float(((old - log_probs) * mask).detach().sum()), abs=1e-5
    )


def test_clip_fraction_counts_tokens_whose_gradient_is_cut() -> None:
    ratio = torch.tensor([[1.5, 1.0, 0.5, 1.5, 0.5]], dtype=torch.float64)
    old = torch.zeros(1, 5, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True, False]])
    counts = BatchCounts(4, 1, 1)
    cfg = AlgorithmConfig(clip_low=LOW, clip_high=HIGH)
    # For a positive advantage only ratios above 1.3 are cut: two of the four tokens that count.
    _, sums = policy_loss(ratio.log(), old, torch.tensor([1.0]).double(), mask, cfg, counts)
    assert sums["clip_fraction"] == pytest.approx(2.0, abs=1e-6)
    # For a negative one only ratios below 0.9: one.
    _, sums = policy_loss(ratio.log(), old, torch.tensor([-1.0]).double(), mask, cfg, counts)
    assert sums["clip_fraction"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_add_up(aggregation: str) -> None:
    """The sum over micro-batches of any sizes is the loss of the whole; not a mean of means."""
    cfg = AlgorithmConfig(aggregation=aggregation)
    log_probs, old, advantages, mask = _batch()
    counts = BatchCounts(int(mask.sum()), 4, 1)
    whole, _ = policy_loss(log_probs, old, advantages, mask, cfg, counts)
    parts = [
        policy_loss(log_probs[s], old[s], advantages[s], mask[s], cfg, counts)[0]
        for s in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(parts), whole, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kl_type", ["k1", "k2", "k3"])
def test_kl_estimators(kl_type: str) -> None:
    log_probs, reference, _, mask = _batch()
    difference = (log_probs - reference).detach()
    expected = {
        "k1": difference,
        "k2": difference.square() / 2,
        "k3": (-difference).exp() + difference - 1,
    }[kl_type]
    cfg = AlgorithmConfig(kl_type=kl_type)
    found = kl_to_reference(log_probs, reference, cfg)
    torch.testing.assert_close(found.detach(), expected, atol=1e-6, rtol=1e-6)
    share = aggregate(found, mask, cfg, BatchCounts(13, 4, 1)).detach()
    torch.testing.assert_close(share, (expected * mask).sum() / 13, atol=1e-9, rtol=1e-9)

"""Advantages and losses against formulas written out here from the papers, to 1e-6."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actrep_ray.config import AlgorithmConfig
from actrep_ray.learner.loss.algorithms import (
    BatchCounts,
    aggregate,
    compute_advantages,
    kl_to_reference,
    next_kl_coef,
    policy_loss,
)
from actrep_ray.records import Prompt, Rollout, RolloutGroup, RolloutStatus
from data_prep.video import FramePlan

PLAN = FramePlan("a.mp4", 1, (0, 1), 4.0, 32, 32)
LOW, HIGH, DUAL = 0.1, 0.3, 2.0


def _group(
    prompt_id: str,
    rewards: list[float],
    text: str = "same",
    lengths: list[int] | None = None,
    parts: dict[str, list[float]] | None = None,
) -> RolloutGroup:
    sizes = lengths or [1] * len(rewards)
    rollouts = tuple(
        Rollout(
            rollout_id=f"{prompt_id}/{g}",
            token_ids=np.full(sizes[g], 9, np.int32),
            rollout_log_probs=np.zeros(sizes[g], np.float32),
            text=text,
            status=RolloutStatus.STOPPED,
            policy_version=0,
        )
        for g in range(len(rewards))
    )
    prompt = Prompt(prompt_id, "clip", "How many times?", PLAN)
    arrays = {name: np.array(values, np.float32) for name, values in (parts or {}).items()}
    return RolloutGroup(prompt, rollouts, 5, np.array(rewards, np.float32), arrays)


def _grpo(r: np.ndarray) -> np.ndarray:
    """arXiv 2402.03300: reward minus mean over (sample) standard deviation."""
    advantages: np.ndarray = (r - r.mean()) / (r.std(ddof=1) + 1e-6)
    return advantages


def _dr_grpo(r: np.ndarray) -> np.ndarray:
    """arXiv 2503.20783: without the standard deviation."""
    advantages: np.ndarray = r - r.mean()
    return advantages


def _rloo(r: np.ndarray) -> np.ndarray:
    """arXiv 2402.14740: reward minus the mean of the OTHER answers."""
    return np.array([r[i] - np.delete(r, i).mean() for i in range(len(r))])


def _pass_at_k(r: np.ndarray) -> np.ndarray:
    """arXiv 2503.19595: only the best answer, by its lead over the second, over the deviation."""
    found, order = np.zeros(len(r)), np.argsort(-r, kind="stable")
    found[order[0]] = (r[order[0]] - r[order[1]]) / (r.std(ddof=1) + 1e-6)
    return found


def _raft(r: np.ndarray) -> np.ndarray:
    """arXiv 2304.06767, 2504.11343: rejection sampling; the group's best answers are learned."""
    return np.array(r == r.max(), np.float64)


ESTIMATORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "grpo": _grpo,
    "dr_grpo": _dr_grpo,
    "rloo": _rloo,
    "grpo_passk": _pass_at_k,
    "raft": _raft,
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_advantages(name: str) -> None:
    # Every group has the same question and texts: only prompt_id tells them apart.
    rewards = [[0.0, 1.0, 0.5, 0.25], [1.0, 0.0], [0.1, 0.1, 0.9], [0.7, 0.2, 0.7]]
    groups = [_group(f"p{i}", r) for i, r in enumerate(rewards)]
    found = compute_advantages(groups, AlgorithmConfig(advantage=name))
    for group, r in zip(found, rewards, strict=True):
        expected = ESTIMATORS[name](np.array(r, np.float32).astype(np.float64))
        assert group.advantages.dtype == np.float32
        np.testing.assert_allclose(group.advantages, expected, atol=1e-6, rtol=1e-6)
    assert [g.prompt.prompt_id for g in found] == ["p0", "p1", "p2", "p3"]


def test_opo_weighs_its_baseline_with_lengths() -> None:
    """arXiv 2505.23585: the baseline is sum(o_i r_i) / sum(o_i)."""
    groups = [_group("a", [1.0, 0.0], lengths=[1, 3]), _group("b", [0.5, 0.0], lengths=[4, 1])]
    first, second = compute_advantages(groups, AlgorithmConfig(advantage="opo"))
    np.testing.assert_allclose(first.advantages, [0.75, -0.25], atol=1e-6)
    np.testing.assert_allclose(second.advantages, [0.1, -0.4], atol=1e-6)


def test_reinforce_plus_plus_baseline_whitens_over_all_tokens() -> None:
    """arXiv 2501.03262: reward minus the group's mean, then over the batch's standard deviation."""
    groups = [_group("a", [1.0, 0.0], lengths=[1, 3]), _group("b", [0.5, 0.1], lengths=[2, 1])]
    cfg = AlgorithmConfig(advantage="reinforce_plus_plus_baseline")
    found = np.concatenate([g.advantages for g in compute_advantages(groups, cfg)])
    centred = np.array([0.5, -0.5, 0.2, -0.2])
    tokens = np.repeat(centred, [1, 3, 2, 1])
    expected = (centred - tokens.mean()) / tokens.std(ddof=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gdpo_normalises_each_reward_of_its_own() -> None:
    """arXiv 2601.05242; the second part would drown in the first if they were summed before."""
    parts = [
        {"count": [1.0, 0.0, 0.0], "format": [0.0, 0.0, 0.1], "none": [np.nan] * 3},
        {"count": [0.5, 0.0, 1.0], "format": [1.0, 1.0, 1.0], "none": [np.nan] * 3},
        {"count": [0.3, 0.3, 0.3], "format": [1.0, 1.0, 1.0], "none": [np.nan] * 3},
    ]
    totals = [[1.0, 0.0, 0.1], [1.5, 1.0, 2.0], [1.3, 1.3, 1.3]]
    groups = [_group(f"p{i}", totals[i], parts=parts[i]) for i in range(3)]
    weights = {"count": 2.0, "format": 1.0, "none": 1.0}
    found = compute_advantages(groups, AlgorithmConfig(advantage="gdpo"), weights)
    summed = [2 * _grpo(np.array(p["count"])) for p in parts[:2]] + [np.zeros(3)]
    summed[0] = summed[0] + _grpo(np.array(parts[0]["format"]))
    flat = np.concatenate(summed)
    expected = (flat - flat.mean()) / flat.std(ddof=1)
    values = np.concatenate([group.advantages for group in found])
    np.testing.assert_allclose(values[:6], expected[:6], atol=1e-4)
    assert found[2].advantages.tolist() == [0.0] * 3
    with pytest.raises(ValueError, match="no weights of the rewards"):
        compute_advantages(groups, AlgorithmConfig(advantage="gdpo"))


def test_a_group_that_could_not_be_scored_keeps_its_place() -> None:
    failed = replace(_group("b", [np.nan, np.nan]), failure="reward_raised")
    found = compute_advantages([_group("a", [1.0, 0.0]), failed], AlgorithmConfig())
    assert [g.prompt.prompt_id for g in found] == ["a", "b"]
    assert len(found[0].advantages) == 2
    assert len(found[1].advantages) == 0


def test_grpo_by_hand() -> None:
    [group] = compute_advantages([_group("p", [1.0, 0.0, 0.0, 0.0])], AlgorithmConfig())
    # mean 0.25, sample standard deviation 0.5
    np.testing.assert_allclose(group.advantages, [1.5, -0.5, -0.5, -0.5], atol=1e-5)


@settings(max_examples=30)
@given(
    reward=st.floats(-10, 10, width=32),
    size=st.integers(2, 9),
    name=st.sampled_from(sorted({*ESTIMATORS, "opo", "reinforce_plus_plus_baseline"})),
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
    if name == "seq-mean-token-sum-norm":
        per_answer = per_answer / c.max_answer_tokens
    if name == "seq-mean-token-mean":
        per_answer = per_answer / m.sum(1)
    return per_answer.sum() / c.num_answers * c.num_ranks


AGGREGATIONS = [
    "token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient(loss: str, aggregation: str) -> None:
    cfg = AlgorithmConfig(
        loss=loss, aggregation=aggregation, clip_low=LOW, clip_high=HIGH, dual_clip=DUAL
    )
    counts = BatchCounts(num_tokens=40, num_answers=9, num_ranks=2, max_answer_tokens=11)
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


def _sapo(lp: torch.Tensor, old: torch.Tensor, a: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """2511.20347: a sigmoid gate of the ratio in place of the clip; 4 / tau keeps its slope."""
    tau = torch.where(a > 0, 1.0, 1.05)
    return -torch.sigmoid(tau * ((lp - old).exp() - 1)) * 4 / tau * a


def _geo_mean(
    lp: torch.Tensor, old: torch.Tensor, a: torch.Tensor, m: torch.Tensor
) -> torch.Tensor:
    """2507.20673: the geometric mean of the clipped ratios of an answer's tokens."""
    log_ratio = lp - old
    clipped = torch.where(a > 0, log_ratio.clamp(max=HIGH), log_ratio.clamp(min=-LOW))
    mean = (clipped * m).sum(1, keepdim=True) / m.sum(1, keepdim=True)
    return (-a * mean.exp()).expand_as(lp)


@pytest.mark.parametrize(("name", "loss"), [("sapo", _sapo), ("geo_mean", _geo_mean)])
def test_losses_that_average_within_answers(name: str, loss: Callable[..., torch.Tensor]) -> None:
    cfg = AlgorithmConfig(
        loss=name, aggregation="seq-mean-token-mean", clip_low=LOW, clip_high=HIGH
    )
    counts = BatchCounts(num_tokens=40, num_answers=9, num_ranks=2)
    log_probs, old, advantages, mask = _batch()
    found, _ = policy_loss(log_probs, old, advantages, mask, cfg, counts)
    [gradient] = torch.autograd.grad(found, log_probs)
    values = loss(log_probs, old, advantages[:, None], mask)
    expected = _aggregated(values, mask, cfg.aggregation, counts)
    [expected_gradient] = torch.autograd.grad(expected, log_probs)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-6)
    parts = [
        policy_loss(log_probs[i], old[i], advantages[i], mask[i], cfg, counts)[0]
        for i in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), found)


def test_weights_scale_tokens_and_a_masked_batch_is_no_loss() -> None:
    cfg = AlgorithmConfig(clip_low=LOW, clip_high=HIGH)
    log_probs, old, advantages, mask = _batch()
    counts = BatchCounts(13, 4, 1)
    weights = torch.linspace(0.1, 2.0, 20, dtype=torch.float64).view(4, 5)
    found, _ = policy_loss(log_probs, old, advantages, mask, cfg, counts, weights)
    values = _vanilla(log_probs, old, advantages[:, None], mask)
    values = torch.where(advantages[:, None] < 0, torch.minimum(values, -advantages[:, None] * 3),
                         values)  # fmt: skip
    torch.testing.assert_close(found, (values * weights * mask).sum() / 13, atol=1e-6, rtol=1e-6)
    nothing, sums = policy_loss(log_probs, old, advantages, mask & False, cfg, counts)
    [gradient] = torch.autograd.grad(nothing, log_probs)
    assert float(nothing.detach()) == 0.0
    assert not gradient.any()
    assert sums == {"clip_fraction": 0.0, "approx_kl": 0.0}


def test_the_weight_of_the_kl_follows_its_target() -> None:
    cfg = AlgorithmConfig(kl_coef=0.1, kl_target=0.02, kl_horizon=100)
    # The error of the KL, cut at 0.2 on both sides, over the horizon.
    assert next_kl_coef(0.1, 0.5, 10, cfg) == pytest.approx(0.1 * (1 + 0.2 * 10 / 100))
    assert next_kl_coef(0.1, 0.021, 10, cfg) == pytest.approx(0.1 * (1 + 0.05 * 10 / 100))
    assert next_kl_coef(0.1, 0.0, 10, cfg) == pytest.approx(0.1 * (1 - 0.2 * 10 / 100))
    assert next_kl_coef(0.1, 0.5, 10, AlgorithmConfig(kl_coef=0.1)) == 0.1


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

"""Does the KL to the reference pull? Every accepted form against the gradient of the KL itself.

A policy over five tokens whose probabilities are sixteenths, and one group of 16 answers of one
token that holds each token as often as its probability says: the gradient over that group IS the
expected one, no sampling noise is left.
"""

import numpy as np
import pytest
import torch

from actrep_ray.config import AlgorithmConfig, ConfigError, load_recipe
from actrep_ray.learner.batch.packing import PackedBatch, collate, split_row
from actrep_ray.learner.loss.algorithms import kl_to_reference
from actrep_ray.learner.loss.correction import apply_kl_penalty
from actrep_ray.learner.loss.objective import PolicyTargets, count_batch, grpo_loss
from actrep_ray.models.qwen_vl import EncodedPrompt
from actrep_ray.records import LearnerRow
from data_prep.video import FramePlan

POLICY = np.array([8, 4, 2, 1, 1]) / 16
NEAR = np.array([7, 4, 2.5, 1.5, 1]) / 16
COEF = 0.5
TOKENS = np.repeat(np.arange(5), (POLICY * 16).astype(int))


def _row() -> LearnerRow:
    return LearnerRow(
        row_id="p",
        question="?",
        plan=FramePlan("a.mp4", 1, (0, 1), 2.0, 28, 28),
        num_prompt_tokens=4,
        responses=tuple(np.array([token], np.int32) for token in TOKENS),
        advantages=np.zeros(16, np.float32),
        rewards=np.zeros(16, np.float32),
    )


def _batch(row: LearnerRow) -> PackedBatch:
    prompt = EncodedPrompt(
        input_ids=torch.arange(4) + 1,
        position_ids=torch.arange(4).expand(3, -1),
        next_position=4,
        pixel_values=torch.zeros(4, 2),
        grid_thw=torch.tensor([[1, 2, 2]]),
    )
    return collate(split_row(0, "p", prompt, row.responses, budget=99, shares_prefix=True))


def _pull(cfg: AlgorithmConfig, reference: np.ndarray) -> torch.Tensor:
    """Gradient of the loss by the logits, where no answer is better than another."""
    logits = torch.tensor(np.log(POLICY), dtype=torch.float32, requires_grad=True)
    log_probs = logits.log_softmax(0)[torch.tensor(TOKENS)][:, None]
    row = _row()
    old = {(0, a): v for a, v in enumerate(log_probs.detach().numpy())}
    ref = {(0, a): np.log(reference[[t]]).astype(np.float32) for a, t in enumerate(TOKENS)}
    rows = [row]
    if cfg.kl_in == "reward":
        rows = apply_kl_penalty([row], {0}, old, ref, COEF, cfg, lambda value: [value])
    counts = count_batch(rows, [0], num_ranks=1, max_answer_tokens=1)
    targets = PolicyTargets(rows, old, ref, kl_coef=COEF)
    loss, _ = grpo_loss(_batch(row), log_probs, log_probs.detach(), targets, counts, cfg)
    [found] = torch.autograd.grad(loss, logits)
    return found


def _gradient_of_the_kl(reference: np.ndarray) -> torch.Tensor:
    logits = torch.tensor(np.log(POLICY), requires_grad=True)
    log_probs = logits.log_softmax(0)
    kl = (log_probs.exp() * (log_probs - torch.tensor(np.log(reference)))).sum()
    [found] = torch.autograd.grad(COEF * kl, logits)
    return found.float()


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
@pytest.mark.parametrize("kl_type", ["k1", "k2", "k3"])
def test_every_kl_that_a_recipe_may_ask_for_pulls(kl_type: str, kl_in: str) -> None:
    settings = [f"algorithm.kl_type={kl_type}", f"algorithm.kl_in={kl_in}", "algorithm.kl_coef=0.5"]
    settings += ["algorithm.advantage=dr_grpo"]
    if kl_in == "reward" and kl_type != "k1":
        with pytest.raises(ConfigError, match=r"hardly pulls the policy.*algorithm.kl_type=k1"):
            load_recipe(None, settings)
        return
    cfg = load_recipe(None, settings).algorithm
    expected = _gradient_of_the_kl(NEAR)
    found = _pull(cfg, NEAR)
    assert expected.norm() > 0.01
    if kl_type == "k3":  # that of the KL the other way round, the same to first order
        assert float(found @ expected / expected.square().sum()) == pytest.approx(1, abs=0.15)
        logits = torch.tensor(np.log(POLICY), requires_grad=True)
        other = -(torch.tensor(NEAR) * logits.log_softmax(0)).sum()
        [expected] = torch.autograd.grad(COEF * other, logits)
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kl_type", ["k2", "k3"])
def test_what_is_refused_does_not_pull(kl_type: str) -> None:
    """The refusal's reason: a share of the pull that vanishes near the reference (even below 0)."""
    cfg = AlgorithmConfig(advantage="dr_grpo", kl_in="reward", kl_coef=0.5, kl_type="k1")
    cfg = cfg.model_copy(update={"kl_type": kl_type})
    shares = []
    for step in (1.0, 0.1):
        reference = POLICY + step * (NEAR - POLICY)
        expected = _gradient_of_the_kl(reference)
        shares.append(float((_pull(cfg, reference) @ expected) / expected.square().sum()))
    assert abs(shares[0]) < 0.2
    assert abs(shares[1]) < 0.02


def test_k3_has_the_papers_value_and_gradient_wherever_a_float_can_hold_them() -> None:
    """arXiv 2402.03300, eq. 4, with r = reference / policy: r - log r - 1, slope 1 - r."""
    log_ratios = torch.tensor([-60.0, -25.0, -3.0, -0.1, 0.0, 0.5, 2.5, 2.6, 3.0, 8.0, 19.9])
    log_probs = (-log_ratios).requires_grad_()
    cfg = AlgorithmConfig(kl_type="k3")
    found = kl_to_reference(log_probs, torch.zeros_like(log_ratios), cfg)
    [gradient] = torch.autograd.grad(found.sum(), log_probs)
    exact = log_ratios.double()
    torch.testing.assert_close(
        found.detach().double(), exact.exp() - exact - 1, atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(gradient.double(), 1 - exact.exp(), atol=1e-6, rtol=1e-5)


def test_k3_stays_finite_where_the_policy_has_lost_a_token() -> None:
    """A token of probability 0 for the policy (log-probability -1e9): a slope, and no infinity."""
    log_probs = torch.tensor([-25.0, -100.0, -1e9], requires_grad=True)
    found = kl_to_reference(log_probs, torch.zeros(3), AlgorithmConfig(kl_type="k3"))
    [gradient] = torch.autograd.grad(found.sum(), log_probs)
    assert torch.isfinite(found).all()
    slope = 1 - torch.tensor(20.0).double().exp().float()
    torch.testing.assert_close(gradient, slope.expand(3), rtol=1e-6, atol=0)


def test_k1_is_still_the_log_ratio() -> None:
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    found = kl_to_reference(log_probs, torch.tensor([-1.5, -1.0]), AlgorithmConfig(kl_type="k1"))
    assert found.tolist() == [0.5, -1.0]

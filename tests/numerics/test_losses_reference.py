"""Each preset's loss and gradient on a frozen batch, against its paper's formula written out here.

The references are plain loops over answers and tokens, so that they can be read beside the papers:
A_i is the advantage of answer i, r_it the policy ratio of its token t, o_i its length.
"""

from collections.abc import Callable

import pytest
import torch

from actrep_ray.config import PRESETS, AlgorithmConfig
from actrep_ray.learner.loss.algorithms import BatchCounts, aggregate, kl_to_reference, policy_loss

LENGTHS = (5, 3, 1, 4)
ADVANTAGES = (1.2, -0.7, 0.3, -2.0)
MAX_ANSWER_TOKENS = 7
COUNTS = BatchCounts(sum(LENGTHS), len(LENGTHS), 1, MAX_ANSWER_TOKENS)

Reference = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def frozen_batch(preset: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs now, before and of the reference policy: float64 [4, 5].

    They lie as far apart as makes some ratios clip and others not, by each preset's range.
    """
    spread = {"gspo": 8e-4, "cispo": 1.5}.get(preset, 0.4)
    generator = torch.Generator().manual_seed(3)
    shape = (len(LENGTHS), max(LENGTHS))
    log_probs = -torch.rand(shape, generator=generator, dtype=torch.float64) * 3
    old = log_probs + spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    ref = log_probs + 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return log_probs.requires_grad_(), old, ref


def our_loss(
    cfg: AlgorithmConfig, log_probs: torch.Tensor, old: torch.Tensor, ref: torch.Tensor
) -> torch.Tensor:
    """As the learner puts it together."""
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    advantages = torch.tensor(ADVANTAGES, dtype=torch.float64)
    loss, _ = policy_loss(log_probs, old, advantages, mask, cfg, COUNTS)
    if cfg.kl_coef > 0:
        kl = kl_to_reference(log_probs, ref, cfg)
        loss = loss + cfg.kl_coef * aggregate(kl, mask, cfg, COUNTS)
    return loss


def _clipped(ratio: torch.Tensor, advantage: float, low: float, high: float) -> torch.Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def grpo(log_probs: torch.Tensor, old: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """2402.03300, eq. 3 and 4: 1/G sum_i 1/o_i sum_t [min(r A, clip(r) A) - beta D_KL]."""
    answers = []
    for i, (length, advantage) in enumerate(zip(LENGTHS, ADVANTAGES, strict=True)):
        terms = []
        for t in range(length):
            ratio = (log_probs[i, t] - old[i, t]).exp()
            to_ref = ref[i, t] - log_probs[i, t]
            kl = to_ref.exp() - to_ref - 1
            terms.append(_clipped(ratio, advantage, 0.2, 0.2) - 0.04 * kl)
        answers.append(torch.stack(terms).sum() / length)
    return -torch.stack(answers).mean()


def dr_grpo(log_probs: torch.Tensor, old: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """2503.20783: 1/G sum_i sum_t min(r A, clip(r) A), over a constant in place of o_i."""
    total = torch.zeros((), dtype=torch.float64)
    for i, (length, advantage) in enumerate(zip(LENGTHS, ADVANTAGES, strict=True)):
        for t in range(length):
            ratio = (log_probs[i, t] - old[i, t]).exp()
            total = total + _clipped(ratio, advantage, 0.2, 0.2)
    return -total / (len(LENGTHS) * MAX_ANSWER_TOKENS)


def dapo(log_probs: torch.Tensor, old: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """2503.14476, eq. 8: 1 / sum_i o_i, over all tokens; clip from 1 - 0.2 to 1 + 0.28."""
    total = torch.zeros((), dtype=torch.float64)
    for i, (length, advantage) in enumerate(zip(LENGTHS, ADVANTAGES, strict=True)):
        for t in range(length):
            ratio = (log_probs[i, t] - old[i, t]).exp()
            total = total + _clipped(ratio, advantage, 0.2, 0.28)
    return -total / sum(LENGTHS)


def gspo(log_probs: torch.Tensor, old: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """2507.18071, eq. 5 and 7: s_i = exp(mean_t log r_it), 1/G sum_i min(s A, clip(s) A)."""
    answers = []
    for i, (length, advantage) in enumerate(zip(LENGTHS, ADVANTAGES, strict=True)):
        ratio = (log_probs[i, :length] - old[i, :length]).mean().exp()
        answers.append(_clipped(ratio, advantage, 3e-4, 4e-4))
    return -torch.stack(answers).mean()


def cispo(log_probs: torch.Tensor, old: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """2506.13585, eq. 4 and 5: sg(min(r, 1 + eps_high)) A log pi, over all tokens."""
    total = torch.zeros((), dtype=torch.float64)
    for i, (length, advantage) in enumerate(zip(LENGTHS, ADVANTAGES, strict=True)):
        for t in range(length):
            ratio = (log_probs[i, t] - old[i, t]).exp().clamp(max=5.0).detach()
            total = total + ratio * advantage * log_probs[i, t]
    return -total / sum(LENGTHS)


REFERENCES: dict[str, Reference] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "cispo": cispo,
}


@pytest.mark.parametrize("preset", PRESETS)
def test_loss_and_gradient_of_a_preset(preset: str) -> None:
    log_probs, old, ref = frozen_batch(preset)
    found = our_loss(AlgorithmConfig(preset=preset), log_probs, old, ref)
    [gradient] = torch.autograd.grad(found, log_probs)
    expected = REFERENCES[preset](log_probs, old, ref)
    [expected_gradient] = torch.autograd.grad(expected, log_probs)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"cispo"}))
def test_clipping_cuts_some_gradients_and_leaves_others(preset: str) -> None:
    log_probs, old, ref = frozen_batch(preset)
    loss = our_loss(AlgorithmConfig(preset=preset, kl_coef=0.0), log_probs, old, ref)
    [gradient] = torch.autograd.grad(loss, log_probs)
    is_real = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    cut = int((gradient[is_real] == 0).sum())
    assert 0 < cut < int(is_real.sum())
    assert (gradient[~is_real] == 0).all()


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    log_probs, old, ref = frozen_batch("cispo")
    loss = our_loss(AlgorithmConfig(preset="cispo"), log_probs, old, ref)
    [gradient] = torch.autograd.grad(loss, log_probs)
    is_real = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    assert (gradient[is_real] != 0).all()
    assert ((log_probs - old).exp()[is_real] > 5).any()

"""The losses over explicit data, without a learner: hand-computed numbers, masks, divisors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actrep_ray.config import AlgorithmConfig
from actrep_ray.learner.batch.packing import PackedBatch, collate, split_row
from actrep_ray.learner.loss.algorithms import BatchCounts
from actrep_ray.learner.loss.correction import TokenWeights
from actrep_ray.learner.loss.objective import PolicyTargets, count_batch, grpo_loss, sft_loss
from actrep_ray.models.qwen_vl import EncodedPrompt
from actrep_ray.records import LearnerRow
from data_prep.video import FramePlan

LENGTHS = ((2, 1), (3,))
ADVANTAGES = ((1.0, -2.0), (0.5,))
COUNTS = BatchCounts(num_tokens=6, num_answers=3, num_ranks=2, max_answer_tokens=8)
CFG = AlgorithmConfig(aggregation="token-mean", kl_type="k3", kl_coef=0.1, entropy_coef=0.01)


def _rows() -> list[LearnerRow]:
    plan = FramePlan("a.mp4", 1, (0, 1), 2.0, 28, 28)
    return [
        LearnerRow(
            row_id=f"row-{i}",
            question="How many?",
            plan=plan,
            num_prompt_tokens=4,
            responses=tuple(np.full(n, 9, np.int32) for n in lengths),
            advantages=np.array(advantages, np.float32),
        )
        for i, (lengths, advantages) in enumerate(zip(LENGTHS, ADVANTAGES, strict=True))
    ]


def _batch(*numbers: int) -> PackedBatch:
    prompt = EncodedPrompt(
        input_ids=torch.arange(4) + 1,
        position_ids=torch.arange(4).expand(3, -1),
        next_position=4,
        pixel_values=torch.zeros(4, 2),
        grid_thw=torch.tensor([[1, 2, 2]]),
    )
    rows = _rows()
    return collate(
        [
            split_row(i, "r", prompt, rows[i].responses, budget=99, shares_prefix=True)[0]
            for i in numbers
        ]
    )


def _values(batch: PackedBatch, value_of: dict[int, float]) -> torch.Tensor:
    """A value for all tokens of the answers of each row, zeros on padding."""
    column = torch.tensor([value_of[i] for i, _ in batch.answers])[:, None]
    return column * batch.target_mask


def _token_values(value: float) -> dict[tuple[int, int], np.ndarray]:
    return {
        (i, a): np.full(n, value, np.float32)
        for i, lengths in enumerate(LENGTHS)
        for a, n in enumerate(lengths)
    }


def test_sft_by_hand() -> None:
    """6 tokens over all ranks, of which this micro-batch has 3, on one of 2 ranks."""
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]], requires_grad=True)
    loss, sums = sft_loss(log_probs, torch.tensor([[0.5, 0.5], [2.0, 0.0]]), COUNTS)
    assert float(loss.detach()) == pytest.approx(6 / 6 * 2)
    assert sums == {"loss": 6.0, "entropy": 3.0}
    loss.backward()
    assert log_probs.grad is not None
    assert torch.allclose(log_probs.grad, torch.full((2, 2), -2 / 6))


def test_sft_learns_no_token_that_is_masked() -> None:
    """The second of the first answer: 2 tokens are left of 3; the denominator is the caller's."""
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    loss, sums = sft_loss(log_probs, torch.tensor([[0.5, 0.5], [2.0, 0.0]]), COUNTS, mask)
    assert float(loss.detach()) == pytest.approx(4 / 6 * 2)
    assert sums == {"loss": 4.0, "entropy": 2.5}
    loss.backward()
    assert log_probs.grad is not None
    assert torch.allclose(log_probs.grad, torch.tensor([[-2 / 6, 0.0], [-2 / 6, 0.0]]))


def test_grpo_by_hand() -> None:
    """Ratio 1 where there are no old log-probabilities; k3 = e^d - d - 1 with d = ref - now."""
    batch = _batch(0, 1)
    log_probs = _values(batch, {0: -1.0, 1: -1.5}).requires_grad_()
    entropy = _values(batch, {0: 0.4, 1: 0.6})
    targets = PolicyTargets(_rows(), ref=_token_values(-1.2), kl_coef=0.1)
    loss, sums = grpo_loss(batch, log_probs, entropy, targets, COUNTS, CFG)
    policy = -(2 * 1.0 + 1 * -2.0 + 3 * 0.5) / 6
    kls = [np.exp(d) - d - 1 for d in (-0.2, 0.3)]
    kl = 3 * kls[0] + 3 * kls[1]
    entropies = 3 * 0.4 + 3 * 0.6
    expected = policy - 0.01 * entropies / 6 + 0.1 * kl / 6
    assert float(loss.detach()) == pytest.approx(2 * expected, rel=1e-5)
    assert sums["loss"] == pytest.approx(6 * policy, rel=1e-5)
    assert sums["entropy"] == pytest.approx(entropies, rel=1e-5)
    assert sums["ref_kl"] == pytest.approx(kl, rel=1e-4)
    assert sums["clip_fraction"] == 0
    assert sums["approx_kl"] == pytest.approx(0, abs=1e-7)


def test_tokens_with_a_credit_of_their_own_do_not_take_their_answers() -> None:
    """Row 0 has answers of 2 and 1 tokens with advantages 1 and -2, row 1 one of 3 with 0.5."""
    nan = np.nan
    credit = (np.array([nan, 3.0], np.float32), np.array([nan], np.float32))
    rows = _rows()
    rows[0] = replace(rows[0], credit=credit)
    log_probs = _values(batch := _batch(0, 1), {0: -1.0, 1: -1.5}).requires_grad_()
    cfg = AlgorithmConfig(aggregation="token-mean")
    loss, _ = grpo_loss(batch, log_probs, log_probs.detach(), PolicyTargets(rows), COUNTS, cfg)
    loss.backward()
    assert log_probs.grad is not None
    expected = -torch.tensor([[1.0, 3.0, 0.0], [-2.0, 0.0, 0.0], [0.5, 0.5, 0.5]]) / 6 * 2
    assert torch.allclose(log_probs.grad, expected)


def test_old_log_probs_make_the_ratio() -> None:
    batch = _batch(1)
    log_probs = _values(batch, {1: -1.0})
    targets = PolicyTargets(_rows(), old=_token_values(-1.1))
    cfg = AlgorithmConfig(aggregation="token-mean", clip_low=0.2, clip_high=0.2)
    loss, sums = grpo_loss(batch, log_probs, log_probs, targets, COUNTS, cfg)
    assert float(loss) == pytest.approx(-3 * 0.5 * np.exp(0.1) / 6 * 2, rel=1e-5)
    assert sums["approx_kl"] == pytest.approx(3 * -0.1, rel=1e-4)
    assert "ref_kl" not in sums


def test_micro_batches_add_up_to_the_mini_batch() -> None:
    targets = PolicyTargets(_rows(), old=_token_values(-1.3), ref=_token_values(-1.2), kl_coef=0.1)
    values = {0: -1.0, 1: -1.5}

    def of(*numbers: int) -> tuple[float, dict[str, float]]:
        batch = _batch(*numbers)
        log_probs = _values(batch, values)
        loss, sums = grpo_loss(batch, log_probs, -log_probs, targets, COUNTS, CFG)
        return float(loss), sums

    whole, parts = of(0, 1), (of(0), of(1))
    assert whole[0] == pytest.approx(parts[0][0] + parts[1][0], rel=1e-5)
    for key, value in whole[1].items():
        assert value == pytest.approx(parts[0][1][key] + parts[1][1][key], rel=1e-5), key


def test_what_is_masked_is_in_no_sum_and_no_divisor() -> None:
    masks = {(0, 0): np.zeros(2, bool), (1, 0): np.array([True, False, True])}
    weights = TokenWeights(masks=masks, num_kept={(0, 0): 0, (1, 0): 2})
    rows, batch = _rows(), _batch(0, 1)
    counts = count_batch(rows, [0, 1], num_ranks=1, max_answer_tokens=8, weights=weights)
    assert counts == BatchCounts(num_tokens=3, num_answers=2, num_ranks=1, max_answer_tokens=8)
    log_probs = _values(batch, {0: -1.0, 1: -1.5}).requires_grad_()
    targets = PolicyTargets(rows, weights=weights)
    cfg = AlgorithmConfig(aggregation="token-mean")
    loss, sums = grpo_loss(batch, log_probs, log_probs.detach(), targets, counts, cfg)
    assert float(loss.detach()) == pytest.approx(-(1 * -2.0 + 2 * 0.5) / 3, rel=1e-5)
    assert sums["entropy"] == pytest.approx(-1.0 - 2 * 1.5)
    loss.backward()
    assert log_probs.grad is not None
    assert ((log_probs.grad != 0).sum(dim=1)).tolist() == [0, 1, 2]


def test_counts_are_never_zero() -> None:
    rows = _rows()
    assert count_batch(rows, [0, 1], num_ranks=2, max_answer_tokens=8) == COUNTS
    weights = TokenWeights(num_kept={(1, 0): 0})
    none = count_batch(rows, [1], num_ranks=2, max_answer_tokens=8, weights=weights)
    assert (none.num_tokens, none.num_answers) == (1, 1)

"""Draws by key and position: the published generator, exact shares, nothing impossible."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actrep_ray.rollout.draws import answer_keys, draw, numbers

pytestmark = pytest.mark.lengthy

# The first outputs of SplitMix64 from two seeds, as Vigna's reference implementation gives them.
PUBLISHED = {
    0: (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F),
    1234567: (6457827717110365317, 3203168211198807973, 9817491932198370423),
}


def test_numbers_are_those_of_the_published_generator() -> None:
    for key, outputs in PUBLISHED.items():
        found = numbers([key] * 3, [0, 1, 2])
        assert found.tolist() == [(output >> 12) / 2**52 for output in outputs]


def test_a_number_depends_on_its_own_key_and_position_alone() -> None:
    keys, positions = answer_keys(3, "000001-0002-clip", 5), [7, 0, 1000, 3, 7]
    together = numbers(keys, positions)
    alone = torch.cat([numbers([k], [i]) for k, i in zip(keys, positions, strict=True)])
    assert torch.equal(together, alone)


def test_each_answer_has_a_key_of_its_own_whatever_the_size_of_the_group() -> None:
    assert answer_keys(0, "a", 8)[:3] == answer_keys(0, "a", 3)
    prompts = [f"{step:06d}-{i:04d}-clip" for step in range(20) for i in range(20)]
    keys = [key for seed in (0, 1) for p in prompts for key in answer_keys(seed, p, 8)]
    assert len(set(keys)) == len(keys) == 2 * 400 * 8
    assert all(0 <= key < 2**64 for key in keys)


def test_numbers_are_uniform_and_independent() -> None:
    """Kolmogorov-Smirnov, and correlations of neighbours in each direction."""
    keys = [key for i in range(100) for key in answer_keys(0, f"p-{i}", 8)]
    table = np.stack([numbers(keys, [position] * len(keys)) for position in range(64)], axis=1)
    flat, num = np.sort(table.ravel()), table.size
    assert flat[0] >= 0
    assert flat[-1] < 1
    distance = np.abs(flat - (np.arange(num) + 0.5) / num).max()
    assert distance < 1.63 / np.sqrt(num)  # the 1% point
    centred = (table - table.mean()) / table.std()
    groups = centred.reshape(100, 8, 64)
    for pair in (
        (centred[:, 1:], centred[:, :-1]),  # of positions
        (groups[:, 1:], groups[:, :-1]),  # of answers
        (groups[1:], groups[:-1]),  # of prompts
    ):
        correlation = float((pair[0] * pair[1]).mean())
        assert abs(correlation) < 3.3 / np.sqrt(pair[0].size)


def test_shares_are_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.125, 0.25, 0.125])
    grid = torch.arange(8, dtype=torch.float64) / 8
    tokens = draw(probabilities.expand(8, -1), grid)
    assert tokens.tolist() == [0, 0, 0, 0, 2, 3, 3, 4]


def test_the_ends_of_the_range_are_possible_tokens() -> None:
    probabilities = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]])
    lowest, highest = torch.tensor([0.0]), torch.tensor([1 - 2.0**-52], dtype=torch.float64)
    assert draw(probabilities, lowest).tolist() == [1]
    assert draw(probabilities, highest).tolist() == [3]


@given(
    st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=40),
    st.integers(0, 2**52 - 1),
    st.data(),
)
def test_the_token_is_where_the_number_falls(
    logits: list[float], number: int, data: st.DataObject
) -> None:
    forbidden = data.draw(st.sets(st.integers(0, len(logits) - 1), max_size=len(logits) - 1))
    row = torch.tensor([logits])
    row[:, list(forbidden)] = -torch.inf
    probabilities = row.softmax(dim=-1)
    u = number / 2**52
    [token] = draw(probabilities, torch.tensor([u], dtype=torch.float64)).tolist()
    assert probabilities[0, token] > 0
    exact = probabilities[0].to(torch.float64).numpy()
    wanted = u * exact.sum()
    below, above = exact[:token].sum(), exact[: token + 1].sum()
    assert below - 1e-13 <= wanted <= above + 1e-13


def test_a_row_with_nan_gets_a_token_of_the_vocabulary() -> None:
    probabilities = torch.full((1, 4), torch.nan)
    for u in (0.0, 0.5, 1 - 2.0**-52):
        assert 0 <= int(draw(probabilities, torch.tensor([u]))) < 4


@pytest.mark.parametrize("num_tokens", [500, 151_936])
def test_batches_change_no_draw(num_tokens: int) -> None:
    torch.manual_seed(0)
    probabilities = torch.randn(16, num_tokens).mul(4).softmax(dim=-1)
    drawn_by = numbers(answer_keys(0, "p", 16), [3] * 16)
    together = draw(probabilities, drawn_by)
    for i in range(16):
        assert draw(probabilities[i : i + 1], drawn_by[i : i + 1]).item() == together[i].item()

"""Packed rows give what one padded sequence for each answer gives: log-probs and gradients.

The reference is written out here: the stock model, its own attention, a two-dimensional mask, one
right-padded sequence for each answer, and logits of every token.
"""

from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

from actrep_ray.config import ConfigError
from actrep_ray.learner.batch.attention import (
    block_mask,
    flex_attention,
    prefix_mask,
    segment_attention,
    shared_prefix_attention,
)
from actrep_ray.learner.batch.packing import (
    BATCH_COST,
    PackedRow,
    collate,
    micro_batches,
    packed_length,
    split_row,
)
from actrep_ray.learner.output_layer import OutputLayer
from actrep_ray.learner.policy import Policy
from actrep_ray.learner.strategies.optimizer import freeze
from actrep_ray.models.qwen_vl import EncodedPrompt, QwenVLInputs, load_model
from data_prep.video import read_frames

Gradients = dict[str, torch.Tensor]


def _prompt(num_tokens: int, next_position: int = 100) -> EncodedPrompt:
    return EncodedPrompt(
        input_ids=torch.arange(num_tokens) + 1,
        position_ids=torch.arange(num_tokens).expand(3, -1),
        next_position=next_position,
        pixel_values=torch.zeros(4, 2),
        grid_thw=torch.tensor([[1, 2, 2]]),
    )


def test_a_packed_row_by_hand() -> None:
    answers = [np.array([11, 12, 13]), np.array([21]), np.array([31, 32])]
    [row] = split_row(7, "r", _prompt(3), answers, budget=100, shares_prefix=True)
    batch = collate([row])
    assert row.num_tokens == 3 + 2 + 0 + 1
    assert batch.input_ids.tolist() == [[1, 2, 3, 11, 12, 31]]
    assert batch.position_ids[0].tolist() == [[0, 1, 2, 100, 101, 100]]
    assert batch.predictors.tolist() == [[2, 3, 4], [2, 0, 0], [2, 5, 0]]
    assert batch.targets.tolist() == [[11, 12, 13], [21, 0, 0], [31, 32, 0]]
    assert batch.target_mask.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert batch.answers == ((7, 0), (7, 1), (7, 2))
    assert batch.layout is not None
    assert batch.layout.rows.tolist() == [0, 0, 0]
    assert batch.layout.tokens.tolist() == [[3, 4], [0, 0], [5, 0]]
    assert batch.layout.token_mask.tolist() == [[True, True], [False, False], [True, False]]
    assert batch.layout.mask[0, 0].int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_rows_of_one_answer_need_no_layout() -> None:
    rows = [split_row(i, "r", _prompt(3), [np.ones(2, int)], budget=9, shares_prefix=True)[0]
            for i in range(2)]  # fmt: skip
    assert collate(rows).layout is None


def test_an_answer_does_not_see_the_padding_of_a_short_prompt() -> None:
    mask = prefix_mask(torch.tensor([1, 3]), torch.tensor([[True, True], [True, False]]))
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]
    assert mask[1, 0].int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


class _Layer(torch.nn.Module):
    num_key_value_groups = 2
    is_causal = True


@pytest.mark.parametrize("lengths", [[[4, 1, 3], [2, 5]], [[1, 1], [1]]], ids=["ragged", "ones"])
def test_attention_equals_a_masked_product(lengths: list[list[int]]) -> None:
    """Against one L x L product under the mask that says who sees whom."""
    rows = [
        split_row(i, "r", _prompt(3 + i), [np.ones(n, int) for n in sizes], budget=99,
                  shares_prefix=True)[0]
        for i, sizes in enumerate(lengths)
    ]  # fmt: skip
    batch = collate(rows)
    length = batch.input_ids.shape[1]
    owner = torch.full((2, length), -1)  # 0 the prompt, 1.. the answers, -1 padding
    for b, sizes in enumerate(lengths):
        owner[b, : 3 + b] = 0
        start = 3 + b
        for number, size in enumerate(sizes, start=1):
            owner[b, start : start + size - 1] = number
            start += size - 1
    q, k = owner[:, :, None], owner[:, None, :]
    mask = ((q == k) | ((k == 0) & (q > 0))).tril()[:, None]
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, length, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, length, 8, generator=generator)
    found, _ = shared_prefix_attention(_Layer(), query, key, value, None, layout=batch.layout)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), attn_mask=mask
    ).transpose(1, 2)
    torch.testing.assert_close(found[owner >= 0], expected[owner >= 0])
    assert batch.layout is not None
    blocks = block_mask(batch.layout, *batch.input_ids.shape)
    found, _ = flex_attention(_Layer(), query, key, value, None, layout=blocks)
    torch.testing.assert_close(found[owner >= 0], expected[owner >= 0])


@given(
    rows=st.lists(
        st.tuples(st.integers(1, 400), st.lists(st.integers(1, 300), min_size=2, max_size=5)),
        min_size=1,
        max_size=2,
    )
)
@settings(max_examples=25, deadline=None)
def test_blocks_of_the_mask_are_those_of_the_whole_mask(
    rows: list[tuple[int, list[int]]],
) -> None:
    """Against PyTorch, which fills the L x L mask and looks."""
    packed = [
        split_row(i, "r", _prompt(size), [np.ones(n + 1, int) for n in answers], budget=9999,
                  shares_prefix=True)[0]
        for i, (size, answers) in enumerate(rows)
    ]  # fmt: skip
    batch = collate(packed)
    assert batch.layout is not None
    num_rows, length = batch.input_ids.shape
    found = block_mask(batch.layout, num_rows, length)
    expected = create_block_mask(found.mask_mod, num_rows, None, length, length, device="cpu")
    assert found.shape == expected.shape
    for name in ("kv", "full_kv", "q", "full_q"):
        numbers = [getattr(mask, f"{name}_num_blocks") for mask in (found, expected)]
        assert torch.equal(*numbers)
        is_used = torch.arange(numbers[0].shape[-1]) < numbers[0][..., None]
        blocks = [getattr(mask, f"{name}_indices")[is_used] for mask in (found, expected)]
        assert torch.equal(*blocks)


class _Largest(TorchDispatchMode):
    """Notes the most numbers of a tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.numel = max(self.numel, made.numel())
        return made


def test_a_mask_of_blocks_takes_no_square_of_the_row() -> None:
    answers = [np.ones(501, int)] * 8
    [row] = split_row(0, "r", _prompt(4192), answers, budget=9999, shares_prefix=True)
    batch = collate([row])
    assert batch.layout is not None
    make: Any = _Largest
    with make() as seen:
        block_mask(batch.layout, *batch.input_ids.shape)
    assert row.num_tokens == 8192
    assert 0 < seen.numel <= 8192  # PyTorch's own makes tensors of 8192 x 8192


def test_gradients_of_the_output_layer_add_up_in_float32() -> None:
    """64 chunks; against float64 from the same bfloat16 numbers."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(32, 40, bias=False, dtype=torch.bfloat16)
    hidden = (torch.rand(64, 16, 32, generator=generator)).bfloat16()
    wanted = torch.zeros(40, 32, dtype=torch.float64)
    for chunk in hidden:
        wanted += chunk.double().sum(0).expand(40, -1)

    def error(call: Callable[[torch.Tensor], torch.Tensor]) -> float:
        layer.weight.grad = None
        torch.stack([call(chunk).float().sum() for chunk in hidden]).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.dtype == torch.bfloat16
        return float(((layer.weight.grad - wanted) / wanted).abs().max())

    output_layer = OutputLayer(layer)
    assert torch.equal(output_layer(hidden[0]), layer(hidden[0]))
    assert error(layer) > 0.02
    assert error(OutputLayer(layer)) < 2**-8 * 1.2  # one rounding to 8 bits
    with torch.no_grad():
        assert torch.equal(OutputLayer(layer)(hidden[0]), layer(hidden[0]))


def test_segments_of_any_length() -> None:
    """Against one call for each segment."""
    q, k, v = torch.randn(3, 1, 2, 12, 8, generator=torch.Generator().manual_seed(0))
    for bounds in ([0, 4, 8, 12], [0, 3, 4, 7, 12], [0, 12], [0, 5, 5, 12]):
        found, _ = segment_attention(
            _Layer(), q, k, v, None, cu_seq_lens_q=torch.tensor(bounds), scaling=0.3
        )
        expected = [
            torch.nn.functional.scaled_dot_product_attention(
                q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], scale=0.3
            ).transpose(1, 2)
            for a, b in pairwise(bounds)
            if a < b
        ]
        torch.testing.assert_close(found, torch.cat(expected, dim=1))


def test_values_are_laid_out_as_the_targets() -> None:
    answers = [np.array([11, 12, 13]), np.array([21])]
    batch = collate(split_row(0, "r", _prompt(2), answers, budget=99, shares_prefix=True))
    values = batch.padded([np.array([1.0, 2.0, 3.0]), np.array([4.0])])
    assert values.tolist() == [[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]]


def test_a_group_above_the_budget_is_cut_into_rows_that_fit() -> None:
    answers = [np.ones(5, int)] * 5
    rows = split_row(0, "r", _prompt(10), answers, budget=20, shares_prefix=True)
    assert [row.answers for row in rows] == [(0, 1), (2, 3), (4,)]
    assert [row.num_tokens for row in rows] == [18, 18, 14]


def test_an_answer_that_cannot_fit_is_refused_with_the_key_to_change() -> None:
    answers = [np.ones(2, int), np.ones(30, int)]
    with pytest.raises(
        ConfigError, match=r"row-3: prompt and answer 1 .* 39 .*micro_batch_tokens=20"
    ):
        split_row(0, "row-3", _prompt(10), answers, budget=20, shares_prefix=True)
    with pytest.raises(ValueError, match="answer 0 has no tokens"):
        split_row(0, "r", _prompt(10), [np.ones(0, int)], budget=20, shares_prefix=True)


@settings(max_examples=50)
@given(
    prompts=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    budget=st.integers(110, 600),
    shares_prefix=st.booleans(),
)
def test_every_answer_is_in_one_micro_batch_within_the_budget(
    prompts: list[int], lengths: list[int], budget: int, shares_prefix: bool
) -> None:
    answers = [np.ones(n, int) for n in lengths]
    rows = [
        row
        for number, size in enumerate(prompts)
        for row in split_row(
            number, "r", _prompt(size), answers, budget=budget, shares_prefix=shares_prefix
        )
    ]
    batches = micro_batches(rows, budget)
    computed = [len(b) * max(row.num_tokens for row in b) for b in batches]
    assert all(size <= budget for size in computed)
    padding = sum(computed) - sum(row.num_tokens for row in rows)
    assert padding <= (len(rows) - len(batches)) * budget * BATCH_COST
    found = sorted((row.row, a) for b in batches for row in b for a in row.answers)
    assert found == [(r, a) for r in range(len(prompts)) for a in range(len(lengths))]


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9), budget=st.integers(60, 400))
def test_micro_batches_compute_least(lengths: list[int], budget: int) -> None:
    """Against every way to cut the sorted rows."""
    rows = [PackedRow(i, _prompt(n), (0,), (torch.ones(1, dtype=torch.long),))
            for i, n in enumerate(lengths)]  # fmt: skip
    ordered = sorted(lengths, reverse=True)

    def cost(groups: list[list[int]]) -> float:
        return sum(len(g) * max(g) for g in groups) + len(groups) * budget * BATCH_COST

    every = []
    for cuts in product([False, True], repeat=len(ordered) - 1):
        groups = [[ordered[0]]]
        for length, is_cut in zip(ordered[1:], cuts, strict=True):
            groups.append([length]) if is_cut else groups[-1].append(length)
        if all(len(g) * max(g) <= budget for g in groups):
            every.append(cost(groups))
    found = [[row.num_tokens for row in batch] for batch in micro_batches(rows, budget)]
    assert [n for group in found for n in group] == ordered
    assert cost(found) == pytest.approx(min(every))


def test_packed_length_leaves_out_last_tokens() -> None:
    assert packed_length(10, [3, 1, 4]) == 10 + 2 + 0 + 3


def _encoded(inputs: QwenVLInputs, rows: list[Any]) -> list[EncodedPrompt]:
    return [inputs.encode(row.question, row.plan, read_frames(row.plan)) for row in rows]


def _packed(
    model: Any, inputs: QwenVLInputs, rows: list[Any], weights: list[Any], *, shares_prefix: bool
) -> tuple[list[torch.Tensor], Gradients]:
    policy = Policy(model, inputs.visual_token_ids)
    pieces = [
        piece
        for i, (row, prompt) in enumerate(zip(rows, _encoded(inputs, rows), strict=True))
        for piece in split_row(
            i, row.row_id, prompt, row.responses, budget=10_000, shares_prefix=shares_prefix
        )
    ]
    batch = collate(pieces)
    log_probs, _ = policy(batch, temperature=1.0)
    (log_probs * batch.padded([weights[i][a] for i, a in batch.answers])).sum().backward()
    values = [log_probs[k][batch.target_mask[k]].detach() for k in range(len(batch.answers))]
    order = sorted(range(len(values)), key=lambda k: batch.answers[k])
    return [values[k] for k in order], _gradients(model)


def _padded(
    model: Any, inputs: QwenVLInputs, rows: list[Any], weights: list[Any]
) -> tuple[list[torch.Tensor], Gradients]:
    values = []
    for row, prompt, weight in zip(rows, _encoded(inputs, rows), weights, strict=True):
        longest = max(len(r) for r in row.responses)
        size, start = len(row.responses), len(prompt.input_ids)
        ids = torch.zeros(size, start + longest, dtype=torch.long)
        mask = torch.zeros(size, start + longest, dtype=torch.long)
        for g, response in enumerate(row.responses):
            end = start + len(response)
            ids[g, :end] = torch.cat([prompt.input_ids, torch.from_numpy(response).long()])
            mask[g, :end] = 1
        after = prompt.next_position + torch.arange(longest)
        positions = torch.cat([prompt.position_ids, after.expand(3, -1)], dim=1)
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions[:, None].expand(-1, size, -1),
            pixel_values_videos=prompt.pixel_values.repeat(size, 1),
            video_grid_thw=prompt.grid_thw.repeat(size, 1),
            use_cache=False,
        ).logits
        never = torch.zeros(logits.shape[-1], dtype=torch.bool)
        never[list(inputs.visual_token_ids)] = True
        log_all = logits.masked_fill(never, -torch.inf).log_softmax(dim=-1)
        for g, response in enumerate(row.responses):
            targets = torch.from_numpy(response).long()[:, None]
            value = log_all[g, start - 1 : start - 1 + len(response)].gather(1, targets)[:, 0]
            (value * torch.from_numpy(weight[g])).sum().backward(retain_graph=True)
            values.append(value.detach())
    return values, _gradients(model)


def _gradients(model: Any) -> Gradients:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _relative(found: Gradients, expected: Gradients) -> float:
    assert found.keys() == expected.keys()
    whole = torch.cat([g.flatten() for g in expected.values()]).double()
    other = torch.cat([found[name].flatten() for name in expected]).double()
    assert whole.norm() > 1e-2
    return float((whole - other).norm() / whole.norm())


@pytest.mark.parametrize("frozen", [(), ("vision_tower",)], ids=["vision-trained", "vision-frozen"])
@pytest.mark.parametrize("group_size", [2, 8])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen2_vl"])
def test_packed_equals_padded(
    family: str,
    group_size: int,
    frozen: tuple[str, ...],
    tiny_model: Callable[..., Path],
    make_rows: Callable[..., list[Any]],
) -> None:
    inputs = QwenVLInputs(tiny_model(family))
    rows = make_rows(inputs, 2, group_size)
    rng = np.random.default_rng(1)
    weights = [[rng.normal(size=len(r)).astype(np.float32) for r in row.responses] for row in rows]

    def fresh() -> Any:
        model = load_model(tiny_model(family), dtype="float32")
        freeze(model, frozen)
        return model

    expected, expected_gradients = _padded(fresh(), inputs, rows, weights)
    for shares_prefix in (True, False):
        found, gradients = _packed(fresh(), inputs, rows, weights, shares_prefix=shares_prefix)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        assert _relative(gradients, expected_gradients) < 1e-5
        has_vision = any(".visual.blocks." in name for name in gradients)
        assert has_vision == (not frozen)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunks_and_entropy(
    temperature: float,
    tiny_model: Callable[..., Path],
    make_rows: Callable[..., list[Any]],
) -> None:
    """The same numbers in chunks of 3 tokens; entropy as -sum(p log p); no visual token."""
    inputs = QwenVLInputs(tiny_model())
    [row] = make_rows(inputs, 1, 3)
    [prompt] = _encoded(inputs, [row])
    batch = collate(split_row(0, "r", prompt, row.responses, budget=9999, shares_prefix=True))
    model = load_model(tiny_model(), dtype="float32")
    results = []
    for chunk_tokens in (10_000, 3):
        size = chunk_tokens * model.config.get_text_config().vocab_size
        policy = Policy(model, inputs.visual_token_ids, chunk_logits=size)
        model.zero_grad()
        log_probs, entropy = policy(batch, temperature=temperature, with_entropy_grad=True)
        (log_probs.sum() + entropy.square().sum()).backward()
        results.append((log_probs.detach(), entropy.detach(), _gradients(model)))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    assert _relative(results[0][2], results[1][2]) < 1e-5

    allowed = [i for i in range(model.lm_head.out_features) if i not in inputs.visual_token_ids]
    with torch.no_grad():
        hidden = model.model(
            input_ids=prompt.input_ids[None],
            position_ids=prompt.position_ids[:, None],
            pixel_values_videos=prompt.pixel_values,
            video_grid_thw=prompt.grid_thw,
        ).last_hidden_state[0, -1]
        p = (model.lm_head(hidden)[allowed] / temperature).softmax(dim=-1)
    expected = float(-(p * p.log()).sum())
    assert float(results[0][1][0, 0]) == pytest.approx(expected, rel=1e-5)

"""Kernels of attention that exist on a GPU only, against PyTorch's SDPA: outputs and gradients."""

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from actrep_ray.learner.batch.attention import (
    block_mask,
    flash_attention,
    flex_attention,
    shared_prefix_attention,
)
from actrep_ray.learner.batch.packing import collate, split_row
from actrep_ray.models.qwen_vl import EncodedPrompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LENGTHS = [[40, 1, 130, 7], [90, 12]]


class _Layer(torch.nn.Module):
    num_key_value_groups = 2
    is_causal = True


def _prompt(num_tokens: int) -> EncodedPrompt:
    return EncodedPrompt(
        input_ids=torch.arange(num_tokens) + 1,
        position_ids=torch.arange(num_tokens).expand(3, -1),
        next_position=num_tokens,
        pixel_values=torch.zeros(4, 2),
        grid_thw=torch.tensor([[1, 2, 2]]),
    )


def _heads(length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(2, 4, length, 64), (2, 2, length, 64), (2, 2, length, 64)]
    return [
        torch.randn(shape, generator=generator, device="cuda", dtype=dtype, requires_grad=True)
        for shape in shapes
    ]


def test_flex_equals_sdpa_on_packed_rows() -> None:
    rows = [
        split_row(
            i, "r", _prompt(200 + 37 * i), [np.ones(n, int) for n in n_], budget=9999,
            shares_prefix=True,
        )[0]
        for i, n_ in enumerate(LENGTHS)
    ]  # fmt: skip
    batch = collate(rows).to(torch.device("cuda"))
    assert batch.layout is not None
    is_real = torch.zeros(batch.input_ids.shape, dtype=torch.bool, device="cuda")
    for b, row in enumerate(rows):
        is_real[b, : row.num_tokens] = True
    blocks = block_mask(batch.layout, *batch.input_ids.shape)
    results = []
    pairs: list[tuple[Any, Any]] = [
        (shared_prefix_attention, batch.layout),
        (flex_attention, blocks),
    ]
    for function, layout in pairs:
        heads = _heads(batch.input_ids.shape[1], torch.float32)
        output, _ = function(_Layer(), *heads, None, layout=layout)
        seen = output[is_real]
        gradients = torch.autograd.grad(seen.square().sum(), heads)
        results.append((seen, *gradients))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)  # TF32 products


@pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is None, reason="flash-attn is not installed"
)
def test_flash_equals_sdpa_on_plain_rows() -> None:
    results = []
    functions: list[Any] = [shared_prefix_attention, flash_attention]
    for function in functions:
        heads = _heads(300, torch.bfloat16)
        output, _ = function(_Layer(), *heads, None)
        results.append((output, *torch.autograd.grad(output.float().square().sum(), heads)))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, atol=3e-2, rtol=3e-2)

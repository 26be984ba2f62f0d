"""Attention that computes only what packed rows and frames need.

`shared_prefix_attention` is for the decoder. In place of one L x L product with a mask, of which
most is masked, a packed row of a prompt (P tokens) and G answers (R each) costs two products::

    the prompt with itself, causally                              P * P
    each answer with the prompt and itself, G as a batch          G * R * (P + R)

through PyTorch's SDPA, on CPU and GPU. `flex_attention` (GPU) computes the same in one call over
the row, skipping blocks of the mask that are empty. `flash_attention` (GPU, flash-attn) is for
rows of one answer: its kernels know causal attention and no other mask.

`segment_attention` is for the vision tower: transformers' own path without flash-attention makes
one call for each frame (or window); here all of one length are one batch.

They are registered under names of transformers' attention interface, which is how a model that
knows nothing of packing calls them.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

_DECODERS = {
    "sdpa": "actrep_shared_prefix",
    "flex": "actrep_flex",
    "flash_attention_2": "actrep_flash",
}
# transformers hands segment bounds (in place of one call for each frame) to names with "flash".
_VISION = "actrep_segments_not_flash"
_BLOCK = 128  # of queries and keys, FlexAttention's own


@dataclass(frozen=True)
class PrefixLayout:
    """Where prompts and answers lie in B packed rows of L tokens; A answers of at most S tokens.

    Attributes:
        rows: int64 [A], row of each answer.
        tokens: int64 [A, S], index in the flat [B * L] of each answer's tokens; 0 on padding.
        token_mask: bool [A, S], False on padding.
        mask: bool [A, 1, S, P + S], which of the prompt (P, the longest) and of its own tokens an
            answer's token sees.
    """

    rows: torch.Tensor
    tokens: torch.Tensor
    token_mask: torch.Tensor
    mask: torch.Tensor

    @property
    def num_prefix_tokens(self) -> int:
        """P, tokens of the longest prompt."""
        return self.mask.shape[-1] - self.tokens.shape[1]

    def to(self, device: torch.device) -> "PrefixLayout":
        """The same layout on a device."""
        return PrefixLayout(
            **{name: value.to(device, non_blocking=True) for name, value in vars(self).items()}
        )


def prefix_mask(prefix_lengths: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
    """What each answer's tokens see: the prompt, and their own answer causally.

    Args:
        prefix_lengths: int64 [A], tokens of each answer's prompt.
        token_mask: bool [A, S], False on padding.

    Returns:
        bool [A, 1, S, P + S]; a padding token sees itself, so that no row is empty.
    """
    num_answers, size = token_mask.shape
    longest = int(prefix_lengths.max())
    sees_prompt = (torch.arange(longest) < prefix_lengths[:, None])[:, None].expand(-1, size, -1)
    causal = torch.ones(size, size, dtype=torch.bool).tril().expand(num_answers, -1, -1)
    return torch.cat([sees_prompt, causal], dim=2)[:, None]


def use_packed_attention(model: nn.Module, choice: str = "sdpa") -> None:
    """Let a model's decoder and vision tower attend by the functions of this module.

    Args:
        model: The Hugging Face model.
        choice: Of the decoder: `learner.attention`.
    """
    decoders = (shared_prefix_attention, flex_attention, flash_attention)
    for name, function in zip(_DECODERS.values(), decoders, strict=True):
        AttentionInterface.register(name, function)
    AttentionInterface.register(_VISION, segment_attention)
    for module in model.modules():
        if type(module).__name__.endswith("VisionAttention"):
            _set_attention(module, _VISION)
        elif type(module).__name__.endswith("TextModel"):
            _set_attention(module, _DECODERS[choice])


def shared_prefix_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: PrefixLayout | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of packed rows, or of plain ones where there is no layout.

    Args:
        module: The attention layer; it knows how many queries share a key.
        query: [B, heads, L, head_dim]
        key: [B, key_heads, L, head_dim]; so is `value`.
        attention_mask: None.
        layout: Of the packed rows; None: every row is one causal sequence.
        scaling: Of the products; one over the root of head_dim if None.
        options: Further keywords of transformers' interface.

    Returns:
        [B, L, heads, head_dim]; of no meaning on padding
    """
    assert attention_mask is None, "the layout says who sees whom"
    if layout is None:
        output: torch.Tensor = sdpa_attention_forward(
            module, query, key, value, None, scaling=scaling, **options
        )[0]
        return output, None
    groups = module.num_key_value_groups
    assert isinstance(groups, int)
    end = layout.num_prefix_tokens
    prompt = functional.scaled_dot_product_attention(
        query[:, :, :end],
        repeat_kv(key[:, :, :end], groups),
        repeat_kv(value[:, :, :end], groups),
        is_causal=True,
        scale=scaling,
    ).transpose(1, 2)
    size = query.shape[2]
    output = functional.pad(prompt, (0, 0, 0, 0, 0, size - end)).contiguous()
    answers = functional.scaled_dot_product_attention(
        _answers(query, layout),
        repeat_kv(_with_prompt(key, layout), groups),
        repeat_kv(_with_prompt(value, layout), groups),
        attn_mask=layout.mask,
        scale=scaling,
    ).transpose(1, 2)
    indices = layout.tokens[layout.token_mask]
    flat = output.flatten(0, 1).index_copy(0, indices, answers[layout.token_mask])
    return flat.view_as(output), None


def flex_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: BlockMask | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The same as `shared_prefix_attention` by FlexAttention; `layout` is of `block_mask`.

    PyTorch has no backward pass of it on a CPU; there it is for tests.
    """
    if layout is None:
        return shared_prefix_attention(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    assert attention_mask is None, "the layout says who sees whom"
    output = _flex(query.device.type)(
        query, key, value, block_mask=layout, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2), None


def block_mask(layout: PrefixLayout, num_rows: int, length: int) -> BlockMask:
    """Who sees whom in packed rows, as FlexAttention wants it.

    Args:
        layout: Of rows on their device.
        num_rows: B.
        length: L, tokens of a row.
    """
    device = layout.tokens.device
    answers = torch.zeros(num_rows * length, dtype=torch.int32, device=device)  # 0: the prompt
    numbers = torch.arange(1, len(layout.rows) + 1, dtype=torch.int32, device=device)
    numbers = numbers[:, None].expand_as(layout.tokens)
    answers[layout.tokens[layout.token_mask]] = numbers[layout.token_mask]
    answers = answers.view(num_rows, length)

    def sees(
        row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        seen = answers[row, key]
        return (key <= query) & ((seen == 0) | (seen == answers[row, query]))

    partial, full = _visible_blocks(functional.pad(answers, (0, -length % _BLOCK), value=-1))
    return BlockMask.from_kv_blocks(
        *_ordered(partial),
        *_ordered(full),
        BLOCK_SIZE=_BLOCK,
        mask_mod=sees,
        seq_lengths=(length, length),
    )


def _visible_blocks(answers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of the mask of which some, and of which all products are needed.

    PyTorch's own `create_block_mask` finds them by filling the whole L x L mask. Here they follow
    from what each block of tokens holds: answers lie one behind the other, so a block holds a range
    of them.

    Args:
        answers: int32 [B, n * _BLOCK], number of each token's answer, rising; 0: the prompt, or
            padding, which nobody looks at; -1: behind the row.

    Returns:
        bool [B, 1, n, n] twice, [..., i, j] of queries in block i and keys in block j.
    """
    blocks = answers.unflatten(1, (-1, _BLOCK))  # [B, n, _BLOCK]
    is_answer, highest = blocks > 0, torch.iinfo(blocks.dtype).max
    first = torch.where(is_answer, blocks, highest).amin(-1)  # [B, n]; the highest if none
    last = torch.where(is_answer, blocks, 0).amax(-1)
    has_prompt, is_prompt = (blocks == 0).any(-1), (blocks == 0).all(-1)
    is_whole = (blocks >= 0).all(-1)
    is_one_answer = is_answer.all(-1) & (first == last)
    shares = first[:, :, None] <= last[:, None, :]
    some = has_prompt[:, None, :] | shares
    same = is_one_answer[:, :, None] & (last[:, None, :] == last[:, :, None])
    same &= (is_whole & ((first == last) | is_prompt))[:, None, :]
    every = is_whole[:, :, None] & (is_prompt[:, None, :] | same)
    number = torch.arange(blocks.shape[1], device=blocks.device)
    is_before = number[None, :] < number[:, None]  # keys before all queries
    is_diagonal = torch.eye(len(number), dtype=torch.bool, device=blocks.device)
    full = (every & is_before)[:, None]
    return ((some & is_before) | is_diagonal)[:, None] & ~full, full


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks each block of queries needs, and which, those first: int32."""
    numbers = blocks.sum(-1, dtype=torch.int32)
    indices = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
    return numbers, indices.to(torch.int32)


def flash_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: PrefixLayout | None = None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of rows of one answer by flash-attn's kernels; see the SDPA function."""
    assert layout is None, "config.check_attention refuses packed rows"
    assert attention_mask is None, "rows are padded at their end, where nothing looks"
    from flash_attn import flash_attn_func

    heads = [x.transpose(1, 2) for x in (query, key, value)]
    return flash_attn_func(*heads, softmax_scale=scaling, causal=True), None


@cache
def _flex(device_type: str) -> Any:
    """Compiled where that is what makes it fast; not compiled it is a plain masked product."""
    return torch.compile(flex.flex_attention) if device_type == "cuda" else flex.flex_attention


def _answers(x: torch.Tensor, layout: PrefixLayout) -> torch.Tensor:
    """[B, heads, L, head_dim] to [A, heads, S, head_dim], the answers' tokens."""
    flat = x.transpose(1, 2).flatten(0, 1)
    chosen = flat.index_select(0, layout.tokens.flatten())
    answers: torch.Tensor = chosen.unflatten(0, layout.tokens.shape)
    return answers.transpose(1, 2)


def _with_prompt(x: torch.Tensor, layout: PrefixLayout) -> torch.Tensor:
    """[B, heads, L, head_dim] to [A, heads, P + S, head_dim], each answer behind its prompt."""
    prompts = x[:, :, : layout.num_prefix_tokens].index_select(0, layout.rows)
    return torch.cat([prompts, _answers(x, layout)], dim=2)


def segment_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Full attention inside each segment of one long sequence.

    Args:
        module: Not used; part of transformers' interface, as are further keywords.
        query: [1, heads, S, head_dim]; so are `key` and `value`.
        attention_mask: None.
        cu_seq_lens_q: int [num_segments + 1], bounds of the segments.
        scaling: Of the products; one over the root of head_dim if None.

    Returns:
        [1, S, heads, head_dim]
    """
    assert attention_mask is None, "segments know no mask"
    bounds = torch.as_tensor(cu_seq_lens_q).tolist()
    starts_of: dict[int, list[int]] = {}
    for start, end in pairwise(bounds):
        starts_of.setdefault(end - start, []).append(start)
    if len(starts_of) == 1:
        length = next(iter(starts_of))
        q, k, v = (_split(x, length) for x in (query, key, value))
        return _merge(functional.scaled_dot_product_attention(q, k, v, scale=scaling)), None
    output = torch.empty_like(query.transpose(1, 2))
    for length, starts in starts_of.items():
        if length == 0:
            continue
        offsets = torch.arange(length, device=query.device)
        chosen = (torch.tensor(starts, device=query.device)[:, None] + offsets).flatten()
        q, k, v = (_split(x[:, :, chosen], length) for x in (query, key, value))
        mixed = _merge(functional.scaled_dot_product_attention(q, k, v, scale=scaling))
        output = output.index_copy(1, chosen, mixed)
    return output, None


def _set_attention(module: nn.Module, name: str) -> None:
    config: Any = module.config  # of transformers, which carries no types
    config._attn_implementation = name


def _split(x: torch.Tensor, length: int) -> torch.Tensor:
    """[1, heads, n * length, head_dim] to [n, heads, length, head_dim]."""
    rows: torch.Tensor = x[0].unflatten(1, (-1, length))
    return rows.transpose(0, 1)


def _merge(x: torch.Tensor) -> torch.Tensor:
    """[n, heads, length, head_dim] to [1, n * length, heads, head_dim]."""
    return x.transpose(1, 2).flatten(0, 1)[None]

"""The policy: packed rows in, log-probabilities and entropies of the answers' tokens out.

The output layer sees only the hidden states that predict an answer's token, in chunks, so the
full vocabulary never exists for prompts, padding or visual tokens.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from actrep_ray.learner.packing import PackedBatch

_CHUNK_LOGITS = 1 << 26  # 256 MiB in float32
# As a logit: probability exactly 0, and the entropy and its gradient stay finite (-inf: NaN).
_NEVER = -1e9
# transformers hands segment bounds (in place of one call for each frame) to names with "flash".
_VISION_ATTENTION = "actrep_segments_not_flash"


class Policy(nn.Module):
    """A Qwen-VL model that scores answers.

    Args:
        model: The Hugging Face model.
        suppressed_ids: Tokens that the engine never samples; they get probability 0 here too.
    """

    def __init__(self, model: nn.Module, suppressed_ids: tuple[int, ...]) -> None:
        super().__init__()
        self.model: Any = model
        self.suppressed_ids = suppressed_ids
        batch_vision_attention(model)

    def forward(
        self, batch: PackedBatch, *, temperature: float, with_entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of each target and entropy of its distribution.

        Args:
            batch: Rows on this module's device.
            temperature: Divides the logits.
            with_entropy_grad: Whether the entropy is part of the loss.

        Returns:
            Two float32 [A, T]; zeros on padding.
        """
        hidden = self.model.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            pixel_values_videos=batch.pixel_values,
            video_grid_thw=batch.grid_thw,
            use_cache=False,
        ).last_hidden_state  # [B, L, H]
        mask = batch.target_mask
        chosen, targets = hidden.flatten(0, 1)[batch.predictors[mask]], batch.targets[mask]
        size = max(1, _CHUNK_LOGITS // self.model.config.get_text_config().vocab_size)
        log_probs, entropies = [], []
        for chunk, wanted in zip(chosen.split(size), targets.split(size), strict=True):
            arguments = chunk, wanted, temperature, with_entropy_grad
            # Above one chunk, logits are recomputed in backward rather than all kept.
            if len(chosen) > size and torch.is_grad_enabled():
                log_prob, entropy = checkpoint(self._score, *arguments, use_reentrant=False)
            else:
                log_prob, entropy = self._score(*arguments)
            log_probs.append(log_prob)
            entropies.append(entropy)
        return _spread(torch.cat(log_probs), mask), _spread(torch.cat(entropies), mask)

    def _score(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        with_entropy_grad: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy, float32 [N] each, from hidden states [N, H]."""
        logits = self.model.lm_head(hidden).float()  # [N, V]
        if temperature != 1.0:
            logits = logits / temperature
        never = torch.tensor(self.suppressed_ids, device=logits.device)
        logits = logits.index_fill(1, never, _NEVER)
        log_all = logits.log_softmax(dim=-1)
        log_prob = log_all.gather(1, targets[:, None])[:, 0]
        spread = log_all if with_entropy_grad else log_all.detach()
        entropy = -(spread.exp() * spread).sum(dim=-1)
        return log_prob, entropy


def _spread(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Put values [N] where the mask [A, T] is True, zeros elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def batch_vision_attention(model: nn.Module) -> None:
    """Let the vision tower attend within all frames (or windows) of equal length in one call.

    transformers' own path without flash-attention makes one call for each of them.
    """
    AttentionInterface.register(_VISION_ATTENTION, segment_attention)
    for module in model.modules():
        if type(module).__name__.endswith("VisionAttention") or type(module).__name__ == (
            "VisionAttention"
        ):
            module.config._attn_implementation = _VISION_ATTENTION


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
        parts = [_split(x, length) for x in (query, key, value)]
        return _merge(functional.scaled_dot_product_attention(*parts, scale=scaling)), None
    output = torch.empty_like(query.transpose(1, 2))
    for length, starts in starts_of.items():
        if length == 0:
            continue
        offsets = torch.arange(length, device=query.device)
        chosen = (torch.tensor(starts, device=query.device)[:, None] + offsets).flatten()
        parts = [_split(x[:, :, chosen], length) for x in (query, key, value)]
        mixed = _merge(functional.scaled_dot_product_attention(*parts, scale=scaling))
        output = output.index_copy(1, chosen, mixed)
    return output, None


def _split(x: torch.Tensor, length: int) -> torch.Tensor:
    """[1, heads, n * length, head_dim] to [n, heads, length, head_dim]."""
    return x[0].unflatten(1, (-1, length)).transpose(0, 1)


def _merge(x: torch.Tensor) -> torch.Tensor:
    """[n, heads, length, head_dim] to [1, n * length, heads, head_dim]."""
    return x.transpose(1, 2).flatten(0, 1)[None]

"""The policy: packed rows in, log-probabilities and entropies of the answers' tokens out.

The output layer sees only the hidden states that predict an answer's token, in chunks, so the
full vocabulary never exists for prompts, padding or visual tokens.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from actrep_ray.learner.batch.attention import PrefixLayout, block_mask, use_packed_attention
from actrep_ray.learner.batch.packing import PackedBatch
from actrep_ray.learner.output_layer import OutputLayer
from actrep_ray.models.tower import FrozenTower

CHUNK_LOGITS = 1 << 26  # 256 MiB in float32
# As a logit: probability exactly 0, and the entropy and its gradient stay finite (-inf: NaN).
_NEVER = -1e9


class Policy(nn.Module):
    """A Qwen-VL model that scores answers.

    Args:
        model: The Hugging Face model.
        suppressed_ids: Tokens that the engine never samples; they get probability 0 here too.
        attention: `learner.attention`.
        chunk_logits: Most logits that exist at once, of all tokens together.
        tower: Of the model, if batches hold its features in place of pixels.
    """

    def __init__(
        self,
        model: nn.Module,
        suppressed_ids: tuple[int, ...],
        attention: str = "sdpa",
        chunk_logits: int = CHUNK_LOGITS,
        tower: FrozenTower | None = None,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.model: Any = model
        self.suppressed_ids = suppressed_ids
        self.attention = attention
        self.chunk_logits = chunk_logits
        use_packed_attention(model, attention)

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
        layout: PrefixLayout | BlockMask | None = batch.layout
        if batch.layout is not None and self.attention == "flex":
            layout = block_mask(batch.layout, *batch.input_ids.shape)
        has_clips = len(batch.grid_thw) > 0
        with self._visual_input(batch) as pixels:
            hidden = self.model.model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                layout=layout,
                pixel_values_videos=pixels if has_clips else None,
                video_grid_thw=batch.grid_thw if has_clips else None,
                use_cache=False,
            ).last_hidden_state  # [B, L, H]
        mask = batch.target_mask
        chosen, targets = hidden.flatten(0, 1)[batch.predictors[mask]], batch.targets[mask]
        size = max(1, self.chunk_logits // self.model.config.get_text_config().vocab_size)
        output_layer = OutputLayer(self.model.lm_head)
        log_probs, entropies = [], []
        for chunk, wanted in zip(chosen.split(size), targets.split(size), strict=True):
            arguments = output_layer, chunk, wanted, temperature, with_entropy_grad
            # Above one chunk, logits are recomputed in backward rather than all kept.
            if len(chosen) > size and torch.is_grad_enabled():
                log_prob, entropy = checkpoint(self._score, *arguments, use_reentrant=False)
            else:
                log_prob, entropy = self._score(*arguments)
            log_probs.append(log_prob)
            entropies.append(entropy)
        return _spread(torch.cat(log_probs), mask), _spread(torch.cat(entropies), mask)

    def _visual_input(self, batch: PackedBatch) -> AbstractContextManager[torch.Tensor]:
        """What the model is given as pixels: them, or what stands for features."""
        if batch.features is None:
            return nullcontext(batch.pixel_values)
        assert self.tower is not None, "features without the tower that they are of"
        return self.tower.showing(batch.features)

    def _score(
        self,
        output_layer: OutputLayer,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        with_entropy_grad: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy, float32 [N] each, from hidden states [N, H]."""
        logits = output_layer(hidden).float()  # [N, V]
        if temperature != 1.0:
            logits = logits / temperature
        logits = logits + self._suppression(logits)
        log_all = logits.log_softmax(dim=-1)
        log_prob = log_all.gather(1, targets[:, None])[:, 0]
        spread = log_all if with_entropy_grad else log_all.detach()
        entropy = -(spread.exp() * spread).sum(dim=-1)
        return log_prob, entropy

    def _suppression(self, logits: torch.Tensor) -> torch.Tensor:
        """What is added to logits: `_NEVER` for tokens that are not sampled, else 0. [V]"""
        never = torch.tensor(self.suppressed_ids, device=logits.device)
        return logits.new_zeros(logits.shape[1]).index_fill(0, never, _NEVER)


def _spread(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Put values [N] where the mask [A, T] is True, zeros elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)

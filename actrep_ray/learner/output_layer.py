"""The output layer's gradient, summed in float32 over the chunks that it sees.

A weight in bfloat16 that is used once for each chunk of tokens gets one gradient a chunk, and
autograd adds them up in bfloat16, whose 8 bits lose what is small beside the sum so far. Here the
chunks use a stand-in of the weight whose gradients are float32; their sum is rounded once.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class OutputLayer:
    """A model's output layer, for several chunks of one forward pass.

    Args:
        layer: `lm_head`. Where its weight is float32, not here whole (ZeRO-3), or no plain linear
            layer's, it is called as it is.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        weight = layer.weight if type(layer) is nn.Linear and layer.bias is None else None
        is_narrow = weight is not None and weight.dtype != torch.float32 and weight.numel() > 0
        self._sum: torch.Tensor | None = None
        if is_narrow and torch.is_grad_enabled() and weight is not None and weight.requires_grad:
            function: Any = _Sum  # whose `apply` torch leaves untyped
            self._sum = function.apply(weight)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [N, V] of hidden states [N, H]."""
        if self._sum is None:
            logits: torch.Tensor = self._layer(hidden)
            return logits
        weight: Any = self._layer.weight
        function: Any = _Use
        return functional.linear(hidden, function.apply(self._sum, weight.detach()))


class _Sum(torch.autograd.Function):
    """A float32 tensor of a weight's shape, without memory, that only gathers gradients."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        ctx.dtype = weight.dtype
        return torch.zeros((), device=weight.device).expand(weight.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].to(ctx.dtype)


class _Use(torch.autograd.Function):
    """The weight itself; its gradient goes to the sum."""

    @staticmethod
    def forward(ctx: Any, summed: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0].float(), None

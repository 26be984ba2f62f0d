"""What a way of splitting a model over ranks must do; `factory.make_strategy` makes one.

    forward ─► loss ─► backward  (once for each micro-batch; gradients add up, averaged over ranks)
                          └─► step  (norm, clip, AdamW; nothing if the norm is not finite)

A loss is therefore given as its contribution to the whole batch's loss times the number of ranks.

Words: a parameter is split into shards, one a rank; the whole is what all shards make; the master
is the float32 weight that the optimiser steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from actrep_ray.learner.batch.packing import PackedBatch


@dataclass(frozen=True)
class Moments:
    """AdamW's state of one parameter, whole, float32, in the parameter's shape.

    Attributes:
        step: Optimiser steps taken.
        exp_avg: Mean of gradients.
        exp_avg_sq: Mean of their squares.
    """

    step: float
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor


class Strategy(ABC):
    """A policy split over ranks, with its optimiser. Every rank makes the same calls."""

    @abstractmethod
    def forward(
        self, batch: PackedBatch, *, temperature: float, with_entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies, as `Policy.forward` gives them."""

    @abstractmethod
    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add a micro-batch's gradient; `is_last`: the step comes next."""

    @abstractmethod
    def step(self, lr_factor: float) -> float:
        """Clip and take an optimiser step; gradients are gone afterwards.

        Args:
            lr_factor: Fraction of every parameter group's peak learning rate.

        Returns:
            The gradient's norm before clipping; if it is not finite, nothing was changed.
        """

    @abstractmethod
    def reshard(self) -> None:
        """Free whole copies that scoring has left in the place of parameters.

        To be called before the model's parameters are asked for their optimiser's state.
        """

    @abstractmethod
    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, whole gradient) after the last backward and before the step."""

    @abstractmethod
    def num_elements(self, parameter: torch.Tensor) -> int:
        """How many numbers the whole of a parameter holds."""

    @abstractmethod
    def whole(self, parameter: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The whole of a parameter as the model computes with it, on this rank's device.

        Args:
            parameter: One of the model's.
            dtype: What it will be cast to: shards are, before they travel, if they are larger.
        """

    @abstractmethod
    def whole_master(self, parameter: torch.Tensor) -> torch.Tensor:
        """The whole of a parameter as the optimiser keeps it: float32."""

    @abstractmethod
    def set_master(self, parameter: torch.Tensor, whole: torch.Tensor) -> None:
        """Give a parameter a value, here and in the optimiser."""

    @abstractmethod
    def write_master(self, parameter: torch.Tensor, whole: torch.Tensor) -> None:
        """Give a parameter a value where the optimiser keeps it, and there alone."""

    @abstractmethod
    def local_shards(self) -> list[torch.Tensor]:
        """This rank's shards of all weights that the optimiser keeps, float32, no copies.

        Changing one in place changes the weight; always the same tensors in the same order.
        """

    @abstractmethod
    def moments(self, parameter: torch.Tensor) -> Moments | None:
        """AdamW's state of a parameter; None before its first step."""

    @abstractmethod
    def set_moments(self, parameter: torch.Tensor, moments: Moments) -> None:
        """Give the optimiser its state of a parameter."""

"""What a way of splitting a model over ranks must do; `fsdp.Fsdp2` and `deepspeed.Zero` do it.

    forward ─► loss ─► backward  (once for each micro-batch; gradients add up, averaged over ranks)
                          └─► step  (norm, clip, AdamW; nothing if the norm is not finite)

A loss is therefore given as its share of the whole batch's loss times the number of ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.distributed.device_mesh import DeviceMesh

from actrep_ray.config import Recipe
from actrep_ray.learner.batch.packing import PackedBatch
from actrep_ray.learner.policy import Policy


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


class Strategy(Protocol):
    """A policy split over ranks, with its optimiser. Every rank makes the same calls."""

    def forward(
        self, batch: PackedBatch, *, temperature: float, with_entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies, as `Policy.forward` gives them."""
        ...

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add a micro-batch's gradient; `is_last`: the step comes next."""
        ...

    def step(self, lr_factor: float) -> float:
        """Clip and take an optimiser step; gradients are gone afterwards.

        Args:
            lr_factor: Share of every group's peak learning rate.

        Returns:
            The gradient's norm before clipping; if it is not finite, nothing was changed.
        """
        ...

    def reshard(self) -> None:
        """Free whole copies that scoring has left in the place of parameters.

        To be called before the model's parameters are asked for their optimiser's state.
        """
        ...

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, whole gradient) after the last backward and before the step."""
        ...

    def whole(self, parameter: torch.Tensor) -> torch.Tensor:
        """The whole of a parameter as the model computes with it, on this rank's device."""
        ...

    def whole_master(self, parameter: torch.Tensor) -> torch.Tensor:
        """The whole of a parameter as the optimiser keeps it: float32."""
        ...

    def set_master(self, parameter: torch.Tensor, whole: torch.Tensor) -> None:
        """Give a parameter a value, here and in the optimiser."""
        ...

    def write_master(self, parameter: torch.Tensor, whole: torch.Tensor) -> None:
        """Give a parameter a value where the optimiser keeps it, and there alone."""
        ...

    def shares(self) -> list[torch.Tensor]:
        """This rank's shares of all that the optimiser keeps, float32: to be changed in place."""
        ...

    def moments(self, parameter: torch.Tensor) -> Moments | None:
        """AdamW's state of a parameter; None before its first step."""
        ...

    def set_moments(self, parameter: torch.Tensor, moments: Moments) -> None:
        """Go on from a saved state."""
        ...


def make_strategy(policy: Policy, mesh: DeviceMesh, recipe: Recipe) -> Strategy:
    """Move a policy to the device of a mesh and split it over its ranks, in place.

    FSDP2 moves one layer at a time and keeps its share: the whole need not fit the device.
    DeepSpeed moves all of it once, in the dtype of computation.
    """
    if recipe.learner.strategy == "deepspeed":
        from actrep_ray.learner.strategies.deepspeed import Zero

        return Zero(policy, mesh, recipe)
    from actrep_ray.learner.strategies.fsdp import Fsdp2

    return Fsdp2(policy, mesh, recipe)

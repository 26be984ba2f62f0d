"""FSDP2: weights split over ranks, layer by layer; also with one rank, so that one path exists."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from actrep_ray.config import Recipe
from actrep_ray.learner.batch.packing import PackedBatch
from actrep_ray.learner.policy import Policy
from actrep_ray.learner.strategies.base import Moments, Strategy
from actrep_ray.learner.strategies.optimizer import make_optimizer, set_learning_rates
from actrep_ray.models.loading import Source, receive
from actrep_ray.models.torch_names import dtype_named


class Fsdp2(Strategy):
    """`learner.strategy: fsdp2`; see `Strategy`."""

    def __init__(
        self, policy: Policy, mesh: DeviceMesh, recipe: Recipe, source: Source | None = None
    ) -> None:
        self._policy = policy
        shard(policy, mesh, recipe, source)
        self._optimizer = make_optimizer(policy.model, recipe.learner)
        self._max_norm = recipe.learner.max_grad_norm

    def forward(
        self, batch: PackedBatch, *, temperature: float, with_entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Policy.forward`."""
        found: tuple[torch.Tensor, torch.Tensor] = self._policy(
            batch, temperature=temperature, with_entropy_grad=with_entropy_grad
        )
        return found

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Add a micro-batch's gradient."""
        loss.backward()

    def step(self, lr_factor: float) -> float:
        """Clip and step; the norm is that before clipping."""
        parameters = [p for p in self._policy.model.parameters() if p.grad is not None]
        norm = full_tensor(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
        if math.isfinite(float(norm)):
            torch.nn.utils.clip_grads_with_norm_(parameters, self._max_norm, norm)
            set_learning_rates(self._optimizer, lr_factor)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def reshard(self) -> None:
        """A forward pass without a backward leaves them where a layer is not freed at once."""
        for module in self._policy.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, whole gradient) of every parameter that has one."""
        for name, parameter in self._policy.model.named_parameters():
            if parameter.grad is not None:
                yield name, full_tensor(parameter.grad)

    def num_elements(self, parameter: torch.Tensor) -> int:
        """How many numbers the whole of a parameter holds."""
        return parameter.numel()

    def whole(self, parameter: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The whole of a parameter, float32 if it is trained and no `dtype` is asked for."""
        shard = parameter.detach()
        is_smaller = dtype is not None and dtype.itemsize < shard.dtype.itemsize
        return full_tensor(shard.to(dtype) if is_smaller else shard)

    def whole_master(self, parameter: torch.Tensor) -> torch.Tensor:
        """The whole of a parameter; it is its own master."""
        return self.whole(parameter)

    def set_master(self, parameter: torch.Tensor, whole: torch.Tensor) -> None:
        """Copy this rank's shard of a value."""
        with torch.no_grad():
            parameter.copy_(_split_like(whole, parameter))

    def write_master(self, parameter: torch.Tensor, whole: torch.Tensor) -> None:
        """As `set_master`: a parameter is its own master."""
        self.set_master(parameter, whole)

    def local_shards(self) -> list[torch.Tensor]:
        """This rank's shards of the trained parameters."""
        self.reshard()
        groups = self._optimizer.param_groups
        return [p.detach().to_local() for group in groups for p in group["params"]]

    def moments(self, parameter: torch.Tensor) -> Moments | None:
        """AdamW's state of a parameter."""
        state: dict[str, Any] = self._optimizer.state.get(parameter, {})
        if not state:
            return None
        return Moments(
            float(state["step"]), full_tensor(state["exp_avg"]), full_tensor(state["exp_avg_sq"])
        )

    def set_moments(self, parameter: torch.Tensor, moments: Moments) -> None:
        """Keep this rank's shard of the state."""
        self._optimizer.state[parameter] = {
            # Fused AdamW counts steps where the parameter lies.
            "step": torch.tensor(moments.step, device=parameter.device),
            "exp_avg": _split_like(moments.exp_avg, parameter),
            "exp_avg_sq": _split_like(moments.exp_avg_sq, parameter),
        }


def shard(policy: Policy, mesh: DeviceMesh, recipe: Recipe, source: Source | None) -> None:
    """Move a policy's weights from rank 0's files to a mesh and split them, layer by layer.

    Each decoder layer and vision block is gathered on its own when it is needed; the rest is one
    group. Trained weights and their gradients stay float32; a lower `model.dtype` is for computing
    only, and gradients are summed over ranks in `learner.reduce_dtype`.
    """
    cfg, dtype = recipe.learner, dtype_named(recipe.model.dtype)
    reduce_dtype = dtype_named(cfg.reduce_dtype)
    precision = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=None if dtype == reduce_dtype == torch.float32 else reduce_dtype,
    )
    offload = OffloadPolicy()
    if cfg.offload == "all":
        offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    # One rank holds everything already: nothing to free after a layer has run.
    reshard = mesh.size() > 1 and cfg.reshard_after_forward
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": precision, "offload_policy": offload}
    for module in units(policy):
        receive(module, mesh, source)
        fully_shard(module, reshard_after_forward=reshard, **options)
    receive(policy, mesh, source)
    if policy.tower is not None:  # whole on every rank: each computes what it lacks, alone
        policy.tower.to(torch.device(mesh.device_type))
        options["ignored_params"] = set(policy.tower.parameters())
    fully_shard(policy, reshard_after_forward=False, **options)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a possibly split tensor; every rank must take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _split_like(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a whole tensor, split as another one is."""
    if not isinstance(like, DTensor):
        return full.to(like.device)
    local = full.to(like.device)
    return distribute_tensor(local, like.device_mesh, like.placements, src_data_rank=None)


def units(policy: Policy) -> Iterator[nn.Module]:
    """The layers that are gathered on their own: what transformers forbids to split.

    Not the blocks of a tower that stays whole.
    """
    whole = set(policy.tower.parameters()) if policy.tower is not None else set()
    names = set(policy.model._no_split_modules or ())
    for module in policy.model.modules():
        names |= set(getattr(module, "_no_split_modules", None) or ())
    for module in policy.model.modules():
        is_unit = type(module).__name__ in names and not isinstance(module, FSDPModule)
        if is_unit and whole.isdisjoint(module.parameters()):
            yield module

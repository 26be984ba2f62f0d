"""FSDP2: weights split over ranks, layer by layer; also with one rank, so that one path exists."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from actrep_ray.learner.policy import Policy


def shard(policy: Policy, mesh: DeviceMesh, *, dtype: torch.dtype) -> None:
    """Split a policy's weights over a mesh in place.

    Each decoder layer and vision block is gathered on its own when it is needed; the rest is one
    group. Weights, gradients and their sums stay float32; a lower `dtype` is for computing only.
    """
    low = dtype != torch.float32
    precision = MixedPrecisionPolicy(
        param_dtype=dtype if low else None, reduce_dtype=torch.float32 if low else None
    )
    # One rank holds everything already: nothing to free after a layer has run.
    reshard = mesh.size() > 1
    for module in _units(policy):
        fully_shard(module, mesh=mesh, mp_policy=precision, reshard_after_forward=reshard)
    fully_shard(policy, mesh=mesh, mp_policy=precision, reshard_after_forward=False)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a possibly split tensor; every rank must take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split_like(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's share of a whole tensor, split as another one is."""
    if not isinstance(like, DTensor):
        return full.to(like.device)
    local = full.to(like.device)
    return distribute_tensor(local, like.device_mesh, like.placements, src_data_rank=None)


def full_weights(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the Hugging Face model, copy of the whole weight on the CPU), one after another.

    A tied output layer is left out. Every rank must take part.
    """
    for name, parameter in policy.model.named_parameters():
        yield name, full_tensor(parameter.detach()).to("cpu", copy=True)


def _units(policy: Policy) -> Iterator[nn.Module]:
    """The layers that are gathered on their own: what transformers forbids to split."""
    names = set(policy.model._no_split_modules or ())
    for module in policy.model.modules():
        names |= set(getattr(module, "_no_split_modules", None) or ())
    for module in policy.model.modules():
        if type(module).__name__ in names and not isinstance(module, FSDPModule):
            yield module

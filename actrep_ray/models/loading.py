"""Loading a model that ranks will split: rank 0 reads it, the others are told.

    rank 0   files ─► whole model in CPU memory ─┐ a unit (one layer) at a time,
    others   a model without memory ◄────────────┴ broadcast, then split and freed

A model of 72B parameters is 274 GiB in float32; read by every rank, it would have to fit into a
node's memory as many times as the node has GPUs. So it is there once, on the node of rank 0, and
elsewhere a layer at a time. `load` makes the model, `receive` fills a unit just before FSDP2 splits
it. DeepSpeed splits by itself and wants the whole model everywhere.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from actrep_ray.models.families import read_family
from actrep_ray.models.qwen_vl import load_model
from actrep_ray.models.torch_names import dtype_named


def load(path: str | Path, *, dtype: str, is_reader: bool) -> PreTrainedModel:
    """A checkpoint's model: whole if `is_reader`, else its parameters take no memory (meta).

    Buffers are computed from the config and are real on all ranks.
    """
    if is_reader:
        return load_model(path, dtype=dtype)
    read_family(path)
    config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(
            config,
            dtype=dtype_named(dtype),
            attn_implementation="sdpa",
            trust_remote_code=False,
        )
    model.tie_weights()  # each parameter became one of its own above
    return model.eval()


def receive(module: nn.Module, mesh: DeviceMesh) -> None:
    """Give a module's parameters the values that rank 0 has; every rank must take part.

    Parameters that are split already are left alone, and so are those that hold values.
    """
    if mesh.size() == 1:
        return
    parameters = [p for p in module.parameters() if not isinstance(p, DTensor)]
    _check_alike(parameters, mesh)
    filled: dict[int, nn.Parameter] = {}
    for parameter in parameters:
        if parameter.is_meta:
            value = torch.empty(parameter.shape, dtype=parameter.dtype, device=mesh.device_type)
            filled[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
        else:
            value = parameter.detach().to(mesh.device_type, copy=dist.get_rank() != 0)
        assert value.is_contiguous(), "another layout would be filled aside"
        dist.broadcast(value, src=0, group=mesh.get_group())
    for owner in module.modules():  # a tied parameter has more than one
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in filled:
                owner.register_parameter(name, filled[id(parameter)])


def _check_alike(parameters: Sequence[nn.Parameter], mesh: DeviceMesh) -> None:
    """Ranks that do not expect the same would wait for each other until the deadline."""
    mine = [(tuple(parameter.shape), str(parameter.dtype)) for parameter in parameters]
    found: list[Any] = [None] * mesh.size()
    dist.all_gather_object(found, mine, group=mesh.get_group())
    assert all(one == found[0] for one in found), f"ranks hold different parameters: {found}"

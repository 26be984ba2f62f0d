"""Loading a model that ranks will split: nobody holds more of it than a layer beside its share.

    all      a model without memory (meta)
    rank 0   files ─► a weight at a time ─┐ a unit (one layer) at a time,
    others   ◄────────────────────────────┴ broadcast, then split and freed

A model of 72B parameters is 274 GiB in float32. `load` makes the model, `Source` reads its files,
`receive` fills a unit just before it is split. One rank alone holds everything in any case, and
lets transformers read.
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
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Transpose,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from actrep_ray.config import ConfigError
from actrep_ray.models.families import read_family
from actrep_ray.models.layout import check_experts
from actrep_ray.models.qwen_vl import load_model
from actrep_ray.models.tensor_files import TensorFiles
from actrep_ray.models.torch_names import dtype_named


class Source:
    """A checkpoint's weights, read one by one as transformers would load them.

    Args:
        path: The checkpoint.
        model: Made by `load`, before anything is added to it.

    Raises:
        ConfigError: naming a weight of the model that the checkpoint does not have, or that is
            made of several of its tensors.
        DataError: naming a file that cannot be read.
    """

    def __init__(self, path: Path, model: PreTrainedModel) -> None:
        self._files = TensorFiles(path, "model")
        keys = _file_names(path, model, self._files)
        named = dict(model.named_parameters())
        if lacking := sorted(named.keys() - keys.keys()):
            raise ConfigError(f"{path}: no weight {lacking[0]!r} in it, which the model has")
        # By identity, with the parameter so that it stays: names change with adapters.
        self._keys = {id(parameter): (keys[name], parameter) for name, parameter in named.items()}

    def read(self, parameter: nn.Parameter) -> torch.Tensor:
        """A parameter's value, on the CPU, in the dtype of the file."""
        value = self._files.get(self._keys[id(parameter)][0])
        if value.shape != parameter.shape and value.ndim == 3:  # experts, see `layout`
            value = value.transpose(1, 2)
        if value.shape != parameter.shape:
            key = self._keys[id(parameter)][0]
            raise ConfigError(
                f"{key}: shape {list(value.shape)} in the checkpoint, its config says "
                f"{list(parameter.shape)}"
            )
        return value

    def first_row(self, parameter: nn.Parameter) -> torch.Tensor:
        """The first row of a matrix; the rest of it is not read."""
        return self._files.first_row(self._keys[id(parameter)][0])


def load(path: str | Path, *, dtype: str, is_split: bool) -> PreTrainedModel:
    """A checkpoint's model: whole, or if ranks split it, without memory for its parameters (meta).

    Buffers are computed from the config and are real.
    """
    if not is_split:
        return load_model(path, dtype=dtype)
    read_family(path)
    config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    check_experts(config, path)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(
            config,
            dtype=dtype_named(dtype),
            attn_implementation="sdpa",
            trust_remote_code=False,
        )
    model.tie_weights()  # each parameter became one of its own above
    return model.eval()


def receive(module: nn.Module, mesh: DeviceMesh, source: Source | None) -> None:
    """Give a module's parameters the values of a checkpoint; every rank must take part.

    Parameters that are split already are left alone. Those that are not of the checkpoint hold
    values, and take rank 0's.

    Args:
        module: Some or all of the model.
        mesh: The ranks.
        source: On rank 0 of several; it reads for all.
    """
    if mesh.size() == 1:
        return
    parameters = [p for p in module.parameters() if not _is_split(p)]
    _check_alike(parameters, mesh)
    filled: dict[int, nn.Parameter] = {}
    for parameter in parameters:
        if parameter.is_meta:
            value = torch.empty(parameter.shape, dtype=parameter.dtype, device=mesh.device_type)
            filled[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
            if source is not None:
                value.copy_(source.read(parameter))
        else:
            value = parameter.detach().to(mesh.device_type, copy=dist.get_rank() != 0)
        assert value.is_contiguous(), "another layout would be filled aside"
        dist.broadcast(value, src=0, group=mesh.get_group())
    for owner in module.modules():  # a tied parameter has more than one
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in filled:
                owner.register_parameter(name, filled[id(parameter)])


def _is_split(parameter: nn.Parameter) -> bool:
    """By FSDP2, or by DeepSpeed."""
    return isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")


def _file_names(path: Path, model: PreTrainedModel, files: TensorFiles) -> dict[str, str]:
    """Name in a checkpoint's files of each weight of a model, by the rules of transformers."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {p: one for one in converters for p in one.source_patterns}
    state = model.state_dict()
    found: dict[str, str] = {}
    for key in sorted(files.names):
        name, pattern = rename_source_key(
            key, renamings, converters, model.base_model_prefix, state
        )
        if name not in state and key in state:
            name, pattern = key, None
        if name not in state:
            continue  # as a tied output layer that is there all the same
        operations: Sequence[Any] = by_pattern[pattern].operations if pattern is not None else ()
        if name in found or not all(isinstance(one, Transpose) for one in operations):
            raise ConfigError(
                f"{path}: {name} is made of several tensors of the checkpoint, which ranks cannot "
                "read one by one: train it with learner.num_workers=1"
            )
        found[name] = key
    return found


def _check_alike(parameters: Sequence[nn.Parameter], mesh: DeviceMesh) -> None:
    """Ranks that do not expect the same would wait for each other until the deadline."""
    mine = [(tuple(parameter.shape), str(parameter.dtype)) for parameter in parameters]
    found: list[Any] = [None] * mesh.size()
    dist.all_gather_object(found, mine, group=mesh.get_group())
    assert all(one == found[0] for one in found), f"ranks hold different parameters: {found}"

"""Weights that a vLLM model computes with, under the names and in the layout of a checkpoint.

vLLM joins some weights of a checkpoint (query, key and value; gate and up; the experts of a layer)
and packs most of them on a CPU. A joined one is cut out of what it was put into. One that is packed
is read by what the layer makes of unit vectors, which is exact: a number times one, plus zeros.

Only of a model that one worker holds alone: with tensor parallelism those that are not split.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from vllm._custom_ops import cpu_prepack_moe_weight
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)

_JOINED = (  # of the checkpoint, of vLLM, and which of the outputs
    (".q_proj.", ".qkv_proj.", 0),
    (".k_proj.", ".qkv_proj.", 1),
    (".v_proj.", ".qkv_proj.", 2),
    (".gate_proj.", ".gate_up_proj.", 0),
    (".up_proj.", ".gate_up_proj.", 1),
)
_EXPERTS = (
    (".experts.gate_up_proj", ".experts.routed_experts", "w13_weight"),
    (".experts.down_proj", ".experts.routed_experts", "w2_weight"),
)


def packed_experts(model: torch.nn.Module) -> list[RoutedExperts]:
    """Layers of experts that vLLM packs for a CPU, which it does at the first load alone."""
    return [
        module
        for module in model.modules()
        if isinstance(module, RoutedExperts)
        and getattr(module.quant_method, "unquantized_backend", None) is UnquantizedMoeBackend.CPU
    ]


def pack_again(layer: RoutedExperts) -> None:
    """Pack experts whose weights have just been replaced by unpacked ones."""
    layer.quant_method.moe_kernel.fused_experts.process_weights_after_loading(layer)


@torch.no_grad()
def stale_experts(model: Any, weights: Sequence[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of those experts that are packed and are not what the given ones are when packed.

    Args:
        model: vLLM's.
        weights: Experts of a checkpoint by their names there, in the engine's dtype.
    """
    modules, stale = dict(model.named_modules(remove_duplicate=False)), []
    for name, weight in weights:
        mapped = model.hf_to_vllm_mapper.apply_list([name])
        for old, new, parameter in _EXPERTS:
            layer = modules.get(mapped[0].replace(old, new)) if mapped[0].endswith(old) else None
            if layer is None or not packed_experts(layer):
                continue
            isa = layer.quant_method.moe_kernel.fused_experts.isa
            packed = cpu_prepack_moe_weight(weight.transpose(1, 2).contiguous(), isa)
            if not torch.equal(packed, getattr(layer, parameter)):
                stale.append(name)
    return stale


def weights_in_use(
    model: Any, shapes: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, weight) of those that can be read whole; that of a tied output layer as well.

    Args:
        model: vLLM's.
        shapes: Of weights of a checkpoint, by their names there.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, shape in shapes.items():
        mapped = model.hf_to_vllm_mapper.apply_list([name])
        found = [_read(modules, one) for one in mapped]
        layers = [modules.get(one.rpartition(".")[0]) for one in mapped]
        found += [_whole(head, "weight") for layer in layers for head in _tied(modules, layer)]
        for weight in found:
            if weight is not None and tuple(weight.shape) == tuple(shape):
                yield name, weight


def _read(modules: Mapping[str, Any], name: str) -> torch.Tensor | None:
    for old, new, parameter in _EXPERTS:
        if name.endswith(old):
            layer = modules.get(name.replace(old, new))
            if layer is None or packed_experts(layer):
                return None  # see `stale_experts`
            experts: torch.Tensor = getattr(layer, parameter)  # [experts, out, in]
            return experts.transpose(1, 2)
    for old, new, index in _JOINED:
        owner, _, parameter = name.replace(old, new).rpartition(".")
        layer = modules.get(owner)
        if old in name and layer is not None:
            return _output(layer, _whole(layer, parameter), index)
    owner, _, parameter = name.rpartition(".")
    layer = modules.get(owner)
    return None if layer is None else _whole(layer, parameter)


def _tied(modules: Mapping[str, Any], layer: Any) -> list[Any]:
    """Output layers that share the weight of a token embedding."""
    if not isinstance(layer, VocabParallelEmbedding) or isinstance(layer, ParallelLMHead):
        return []
    heads = {id(m): m for m in modules.values() if isinstance(m, ParallelLMHead)}
    return [head for head in heads.values() if head.weight is layer.weight]


def _output(layer: Any, weight: torch.Tensor | None, index: int) -> torch.Tensor | None:
    """The rows of one of the outputs that were joined; None where they are split over workers."""
    if weight is None or weight.shape[0] != sum(layer.output_sizes):
        return None
    pieces: Sequence[torch.Tensor] = weight.split(list(layer.output_sizes))
    return pieces[index]


def _whole(layer: Any, parameter: str) -> torch.Tensor | None:
    weight: torch.Tensor | None = getattr(layer, parameter, None)
    if not isinstance(weight, torch.Tensor):
        return None
    if parameter == "weight" and hasattr(layer, "cpu_linear"):  # a packed copy of it is in use
        is_linear = isinstance(layer, LinearBase)
        width = _width(layer) if is_linear else weight.shape[1]
        units = torch.eye(width, dtype=layer.params_dtype if is_linear else weight.dtype)
        outputs: torch.Tensor = layer.quant_method.apply(layer, units, None)
        weight = outputs.T
    num_rows: int | None = getattr(layer, "org_vocab_size", None)  # the rest is padding
    return weight[:num_rows]


def _width(layer: LinearBase) -> int:
    """Inputs of a linear layer in this worker; one that all workers hold whole has them all."""
    width: int = getattr(layer, "input_size_per_partition", layer.input_size)
    return width

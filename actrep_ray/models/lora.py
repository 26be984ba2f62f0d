"""LoRA adapters through peft, injected into the model itself, which keeps its class and names.

A layer `NAME` of the checkpoint becomes `NAME.base_layer` beside `NAME.lora_A.default` and
`NAME.lora_B.default`. `merged_weights` gives the ordinary weights back, `adapter_weights` those of
peft's own format.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from actrep_ray.config import ConfigError, LoraConfig
from actrep_ray.models.qwen_vl import component_of

if TYPE_CHECKING:  # peft takes a second to load, and many engines never get an adapter
    from peft import LoraConfig as PeftConfig

    from actrep_ray.models.loading import Source

_ADAPTER = "default"
_BASE = ".base_layer."

Whole = Callable[[torch.Tensor], torch.Tensor]
"""Gives the whole of a parameter that is split over ranks; every rank must call it."""


def add_adapters(model: nn.Module, cfg: LoraConfig) -> None:
    """Put adapters beside the linear layers that a recipe names, and freeze all other weights.

    The adapters' output is zero at first (B is zero), so the model computes what it did.

    Raises:
        ConfigError: if no layer has one of the names.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.rpartition(".")[2] in cfg.target_modules
        and component_of(name) in cfg.components
    ]
    if not names:
        raise ConfigError(
            f"model.lora.target_modules={list(cfg.target_modules)}: no such linear layer in "
            f"{', '.join(cfg.components)}"
        )
    from peft import inject_adapter_in_model

    with _seemingly_on_cpu([model.get_submodule(name) for name in names]):
        inject_adapter_in_model(_peft_config(cfg, names), model, _ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def is_adapter(parameter_name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return ".lora_A." in parameter_name or ".lora_B." in parameter_name


def check_adapter(weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that are not those of an adapter alone.

    Raises:
        ValueError: naming the first other one.
    """
    others = sorted(name for name in weights if not is_adapter(name))
    if others or not weights:
        raise ValueError(
            f"{others[0] if others else 'no weight'}: expected adapters alone, since "
            "model.lora.send=adapter"
        )


def adapter_weights(model: nn.Module, whole: Whole) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the model, whole weight) of the adapters, one after another."""
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            yield name, whole(parameter)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The base model for a while: adapters count nothing."""
    layers = list(_layers(model).values())
    for layer in layers:
        layer.set_scale(_ADAPTER, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_scale(_ADAPTER, 1.0)


def set_dropout(model: nn.Module, is_on: bool) -> None:
    """Drop inputs of adapters, or not; only the adapters' dropout is touched."""
    for layer in _layers(model).values():
        layer.lora_dropout.train(is_on)


def merged_weights(
    model: nn.Module, whole: Whole, exact: Whole
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name without adapters, whole weight with its adapter added), one after another.

    Weight + scale * B @ A, summed in float32. Without adapters: the weights as they are.

    Args:
        model: With or without adapters.
        whole: Of weights, which may round them.
        exact: Of adapters, in float32.
    """
    layers = _layers(model)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            continue
        weight = whole(parameter)
        layer_name, is_adapted, last = name.partition(_BASE)
        if is_adapted and last == "weight":
            layer = layers[layer_name]
            a, b = (exact(m[_ADAPTER].weight).float() for m in (layer.lora_A, layer.lora_B))
            weight = (weight.float() + (b @ a) * layer.scaling[_ADAPTER]).to(weight.dtype)
        yield name.replace(_BASE, "."), weight


def adapter_files(
    cfg: LoraConfig, weights: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], bytes]:
    """Adapters as peft keeps them: `adapter_model.safetensors` and `adapter_config.json`.

    Args:
        cfg: What the adapters were made by.
        weights: Whole adapter weights by their names in the model.
    """
    named = {
        f"base_model.model.{name.replace(f'.{_ADAPTER}.', '.')}": w.contiguous()
        for name, w in weights.items()
    }
    layers = {name.partition(".lora_")[0] for name in weights}
    with TemporaryDirectory() as folder:
        _peft_config(cfg, sorted(layers)).save_pretrained(folder)
        content = json.loads(Path(folder, "adapter_config.json").read_bytes())
    # peft writes sets in any order; a file that is written twice should be the same twice.
    content["target_modules"] = sorted(content["target_modules"])
    return named, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def save_adapter(folder: Path, cfg: LoraConfig, weights: dict[str, torch.Tensor]) -> None:
    """Write `adapter_files` to a folder, which is made."""
    folder.mkdir(exist_ok=True)
    named, config = adapter_files(cfg, weights)
    save_file(named, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_bytes(config)


def base_fingerprint(model: nn.Module, source: "Source | None") -> int:
    """CRC-32 of the first row of each adapted layer: tells whether a base is the one of before.

    Call it before the weights are split over ranks.

    Args:
        model: With adapters.
        source: Values of the weights where the model has none yet.
    """
    value = 0
    for layer in _layers(model).values():
        weight = layer.get_base_layer().weight
        row = weight.detach()[0] if source is None else source.first_row(weight)
        value = zlib.crc32(row.float().cpu().contiguous().numpy().data, value)
    return value


@contextmanager
def _seemingly_on_cpu(layers: list[Any]) -> Iterator[None]:
    """Show peft layers without memory (meta) as on the CPU: it would put their adapters there too,
    and the adapters' start would be lost.
    """
    weights = [layer.weight for layer in layers]
    for layer, weight in zip(layers, weights, strict=True):
        if weight.is_meta:
            layer.weight = nn.Parameter(torch.empty(0, dtype=weight.dtype))
    try:
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight = weight


def _layers(model: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


def _peft_config(cfg: LoraConfig, names: list[str]) -> "PeftConfig":
    from peft import LoraConfig as PeftConfig

    return PeftConfig(
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        lora_dropout=cfg.dropout,
        target_modules=names,
        bias="none",
    )

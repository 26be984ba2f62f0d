"""Weights in the layout of the published checkpoints, which is what engines read.

transformers changes some weights when it loads a checkpoint, and changes them back when it saves
one. Not so the experts of Qwen3-VL-MoE: it transposes them where their shape is not the model's
own (`Transpose(check_dims=True)`), and when it saves them their shape is. They are transposed here.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Transpose,
    WeightConverter,
    revert_weight_conversion,
)

from actrep_ray.config import ConfigError


def published(model: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by the names and in the shapes of a published checkpoint.

    Args:
        model: Whose they are.
        weights: Some of its whole weights by its own names; all that are made into one weight of
            the checkpoint are among them.
    """
    turned = _turned_on_loading(model)
    return {
        name: weight.transpose(1, 2).contiguous() if turned and turned.search(name) else weight
        for name, weight in revert_weight_conversion(model, dict(weights)).items()
    }


def as_computed(model: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The reverse for weights under the model's own names: experts as transformers has them."""
    turned = _turned_on_loading(model)
    return {
        name: weight.transpose(1, 2) if turned and turned.search(name) else weight
        for name, weight in weights.items()
    }


def save(model: Any, folder: Path) -> None:
    """`save_pretrained` of a model on one device, in the layout of a published checkpoint."""
    weights = published(model, model.state_dict())
    if set(model._tied_weights_keys or ()) and model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    model.save_pretrained(folder, state_dict=weights, save_original_format=False)


def check_experts(config: Any, path: str | Path) -> None:
    """Refuse experts whose shapes do not tell whether they are transposed.

    Raises:
        ConfigError: naming the config and the sizes.
    """
    text = config.get_text_config()
    hidden, width = text.hidden_size, getattr(text, "moe_intermediate_size", 0)
    if getattr(text, "num_experts", 0) and hidden in (width, 2 * width):
        raise ConfigError(
            f"{path}: hidden_size={hidden} and moe_intermediate_size={width}: experts look the "
            "same transposed, so transformers would read them wrongly; expected other sizes"
        )


def _turned_on_loading(model: Any) -> re.Pattern[str] | None:
    """Names of weights that transformers transposes on loading and not on saving."""
    patterns = [
        pattern
        for conversion in get_model_conversion_mapping(model, add_legacy=False)
        if isinstance(conversion, WeightConverter)
        for operation in conversion.operations
        if isinstance(operation, Transpose) and operation.check_dims
        for pattern in conversion.target_patterns
    ]
    return re.compile("|".join(patterns)) if patterns else None

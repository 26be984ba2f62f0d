"""Sizes of a Qwen-VL model from its config alone: no weights, no network.

The model is built on the meta device by transformers' own code, so its parameters are counted, not
estimated. Configs of the published variants ship with the package (`assets/configs/NAME.json`), so
that a recipe can be planned before anything is downloaded; they hold what sizes depend on and are
not for loading a model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from actrep_ray.models.published import find_config
from actrep_ray.models.qwen_vl import component_of

COMPONENTS = ("vision_tower", "merger", "language_model")


@dataclass(frozen=True)
class Architecture:
    """What memory and FLOPs depend on.

    Attributes:
        name: Of the shipped config or of the folder.
        family: `model_type`.
        num_parameters: By component (`COMPONENTS`). A tied output counts once.
        layer_parameters: Of one decoder layer.
        block_parameters: Of one vision block.
        root_parameters: By component, outside of layers and blocks: embedding, output, merger.
        active_parameters: That one text token passes through (less than all in a MoE), without the
            embedding table.
        linear_shapes: (in, out) of the linear layers of one decoder layer by last name.
        linear_widths: By component and last name, in + out of all linear layers, summed: what an
            adapter of rank 1 beside each of them has of parameters.
        hidden: Width of the decoder.
        intermediate: Width of its MLP; of all experts that one token uses, in a MoE.
        expert_width: Width of one expert; of the whole MLP where there are no experts.
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_key_heads: Key and value heads.
        head_dim: Width of a head.
        has_head_norm: Whether queries and keys are normalised (Qwen3).
        num_experts: 0 if dense.
        vocab: Tokens.
        max_positions: Longest sequence that the model was made for.
        vision_hidden: Width of the vision tower.
        vision_intermediate: Width of its MLP.
        num_vision_heads: Its heads.
        num_blocks: Vision blocks.
        patch_size: Pixels.
        merge_size: Patches of one visual token along each side.
        temporal_patch_size: Frames of one patch.
        num_deepstack: Extra outputs of the vision tower that enter the decoder.
    """

    name: str
    family: str
    num_parameters: Mapping[str, int]
    layer_parameters: int
    block_parameters: int
    root_parameters: Mapping[str, int]
    active_parameters: int
    linear_shapes: Mapping[str, tuple[int, int]]
    linear_widths: Mapping[str, Mapping[str, int]]
    hidden: int
    intermediate: int
    expert_width: int
    num_layers: int
    num_heads: int
    num_key_heads: int
    head_dim: int
    has_head_norm: bool
    num_experts: int
    vocab: int
    max_positions: int
    vision_hidden: int
    vision_intermediate: int
    num_vision_heads: int
    num_blocks: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    num_deepstack: int

    @property
    def total_parameters(self) -> int:
        """Number of all parameters."""
        return sum(self.num_parameters.values())

    @property
    def frame_factor(self) -> int:
        """Sides of a frame are multiples of this, pixels."""
        return self.patch_size * self.merge_size

    @property
    def patch_dim(self) -> int:
        """Values of one patch as the vision tower reads it."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    def kv_bytes_per_token(self, value_bytes: int = 2) -> int:
        """Keys and values of one token in all layers, bytes."""
        return 2 * self.num_layers * self.num_key_heads * self.head_dim * value_bytes

    def num_visual_tokens(self, num_frames: int, height: int, width: int) -> int:
        """Tokens of a video as the decoder reads it; frames are counted in pairs."""
        pairs = -(-num_frames // self.temporal_patch_size)
        return pairs * (height // self.frame_factor) * (width // self.frame_factor)


def read_architecture(model_path: str) -> Architecture:
    """Sizes of the model that `model.path` means; see `find_config`.

    Raises:
        ConfigError: if there is no such model.
    """
    name, config = find_config(model_path)
    return _measure(name, json.dumps(config, sort_keys=True))


def build_config(config: Mapping[str, Any]) -> Any:
    """transformers' config object of a config's values."""
    from transformers import AutoConfig

    values = dict(config)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def build_on_meta(config: Any) -> Any:
    """The model of a config with parameters that have shapes and no memory."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@lru_cache(maxsize=32)
def _measure(name: str, config_json: str) -> Architecture:
    from torch import nn

    config = build_config(json.loads(config_json))
    model = build_on_meta(config)
    text, vision = config.get_text_config(), config.vision_config
    units = [m for m in model.modules() if type(m).__name__ in model._no_split_modules]
    layers = [m for m in units if type(m).__name__.endswith("DecoderLayer")]
    blocks = [m for m in units if m not in layers]
    inside = {id(p) for unit in units for p in unit.parameters()}
    components, roots = dict.fromkeys(COMPONENTS, 0), dict.fromkeys(COMPONENTS, 0)
    for parameter_name, parameter in model.named_parameters():
        components[component_of(parameter_name)] += parameter.numel()
        if id(parameter) not in inside:
            roots[component_of(parameter_name)] += parameter.numel()
    num_experts = int(getattr(text, "num_experts", 0) or 0)
    experts_used = int(getattr(text, "num_experts_per_tok", 0) or 0)
    width = text.moe_intermediate_size if num_experts else text.intermediate_size
    table = text.vocab_size * text.hidden_size
    idle = len(layers) * (num_experts - experts_used) * 3 * text.hidden_size * width
    is_tied = bool(text.tie_word_embeddings or config.tie_word_embeddings)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    block = blocks[0]
    widths = [m.out_features for m in block.mlp.modules() if isinstance(m, nn.Linear)]
    return Architecture(
        name=name,
        family=config.model_type,
        num_parameters=components,
        layer_parameters=max(_size(layer) for layer in layers),
        block_parameters=_size(block),
        root_parameters=roots,
        active_parameters=components["language_model"] - idle - (0 if is_tied else table),
        linear_shapes={
            name.rsplit(".", 1)[-1]: (m.in_features, m.out_features)
            for name, m in layers[0].named_modules()
            if isinstance(m, nn.Linear)
        },
        linear_widths=_linear_widths(model),
        hidden=text.hidden_size,
        intermediate=width * experts_used if num_experts else width,
        expert_width=width,
        num_layers=len(layers),
        num_heads=text.num_attention_heads,
        num_key_heads=text.num_key_value_heads,
        head_dim=head_dim,
        has_head_norm=config.model_type.startswith("qwen3"),
        num_experts=num_experts,
        vocab=text.vocab_size,
        max_positions=text.max_position_embeddings,
        vision_hidden=block.attn.proj.out_features,
        vision_intermediate=max(widths),
        num_vision_heads=vision.num_heads,
        num_blocks=len(blocks),
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        num_deepstack=len(getattr(vision, "deepstack_visual_indexes", None) or ()),
    )


def _linear_widths(model: Any) -> dict[str, dict[str, int]]:
    from torch import nn

    widths: dict[str, dict[str, int]] = {component: {} for component in COMPONENTS}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            of, last = widths[component_of(name)], name.rpartition(".")[2]
            of[last] = of.get(last, 0) + module.in_features + module.out_features
    return widths


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

"""The families of Qwen-VL, told by a checkpoint's config and by the names of its tensors.

Imports neither torch nor transformers, so that a wrong checkpoint is told before they are loaded.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from actrep_ray.config import ConfigError, is_hub_name
from actrep_ray.models.weights_files import tensor_names
from data_prep.files import read_object

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")

# Layers of the MLP in a block of the vision tower, by which the families differ.
_VISION_LAYERS = {"fc1": "qwen2_vl", "gate_proj": "qwen2_5_vl", "linear_fc1": "qwen3_vl"}


def how_to_get(path: str) -> str:
    """What makes or fetches a model that is missing, as the end of a message; else nothing."""
    if is_hub_name(path):
        return (
            f"; it is not in the local hub cache either, get it with: hf download {path} (or with "
            "--download, where the command has it)"
        )
    family = Path(path).name.removeprefix("tiny-")
    if f"tiny-{family}" == Path(path).name and family in FAMILIES:
        return f"; make it with: actrep prepare tiny-model --family {family} --out {path}"
    return ""


def read_family(path: str | Path) -> str:
    """`model_type` of a checkpoint folder.

    Raises:
        ConfigError: if the folder is no checkpoint of a known family, or its weights are of another
            one than its config says.
        DataError: if its config is not JSON.
    """
    config = Path(path) / "config.json"
    if not config.is_file():
        raise ConfigError(f"{path}: not a model checkpoint (no config.json in it)")
    family = read_object(config, "the config of a model").get("model_type")
    if family not in FAMILIES:
        raise ConfigError(f"{config}: model_type={family!r}, expected one of {', '.join(FAMILIES)}")
    of_weights = family_of_names(tensor_names(Path(path)))
    if of_weights not in (None, family):
        raise ConfigError(
            f"{config}: model_type={family!r}, but the weights beside it are of {of_weights}: put "
            "config.json and *.safetensors of one checkpoint into the folder"
        )
    return str(family)


def max_distinct_fps(config: Mapping[str, Any]) -> float | None:
    """Frame rate up to which each temporal patch has a position of its own; None: at any rate.

    Qwen2.5-VL gives a patch the whole number at or below `tokens_per_second` times its time; the
    other families number patches, or write times as text.

    Args:
        config: Of a checkpoint.
    """
    if config.get("model_type") != "qwen2_5_vl":
        return None
    vision = config.get("vision_config", {})
    rate = float(vision.get("tokens_per_second", 1.0))  # as `QwenVLInputs` reads it
    return rate * float(vision.get("temporal_patch_size", 2))


def family_of_names(names: Iterable[str]) -> str | None:
    """The family that has tensors of these names; None where no name tells."""
    found, has_experts = None, False
    for name in names:
        parts = name.split(".")
        if "visual" in parts and "blocks" in parts and "mlp" in parts:
            layer = parts[parts.index("mlp") + 1 :][:1]
            found = found or _VISION_LAYERS.get("".join(layer))
        has_experts = has_experts or "experts" in parts
    return "qwen3_vl_moe" if found == "qwen3_vl" and has_experts else found

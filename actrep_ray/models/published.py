"""Configs of the published Qwen-VL models, shipped with the package, and those of folders.

Imports neither torch nor transformers.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from actrep_ray.config import ConfigError
from actrep_ray.models.families import FAMILIES, how_to_get
from data_prep.files import read_object


def shipped_names() -> list[str]:
    """Models whose config ships with the package."""
    return sorted(path.name.removesuffix(".json") for path in _configs().iterdir())


def find_config(model_path: str) -> tuple[str, dict[str, Any]]:
    """(name, config) of a model folder, or of a published model by the last part of its name.

    `models/Qwen3-VL-4B-Instruct` and `Qwen/Qwen3-VL-4B-Instruct` both mean the published one if no
    such folder exists.

    Raises:
        ConfigError: if it is neither.
        DataError: if the folder's config is not JSON.
    """
    path = Path(model_path)
    if (path / "config.json").is_file():
        config = read_object(path / "config.json", "the config of a model")
    else:
        shipped = {name.lower(): name for name in shipped_names()}
        name = shipped.get(Path(model_path).name.lower())
        if name is None:
            raise ConfigError(
                f"model.path={model_path!r}: no such folder, and not the name of a known model "
                f"({', '.join(shipped.values())}){how_to_get(model_path)}"
            )
        config = json.loads((_configs() / f"{name}.json").read_text(encoding="utf-8"))
        path = Path(name)
    if config.get("model_type") not in FAMILIES:
        raise ConfigError(
            f"model.path={model_path!r}: model_type={config.get('model_type')!r}, expected one of "
            f"{', '.join(FAMILIES)}"
        )
    return path.name, config


def _configs() -> Any:
    return files("actrep_ray") / "models" / "assets" / "configs"

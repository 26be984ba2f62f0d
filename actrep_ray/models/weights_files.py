"""Files of weights, looked at without loading them."""

import json
from pathlib import Path
from typing import Any

from actrep_ray.config import ConfigError

_MAX_HEADER_BYTES = 100 * 2**20


def check_weights(folder: Path) -> None:
    """Refuse weights that are missing, cut short or not safetensors, from their headers alone.

    Raises:
        ConfigError: naming the folder or file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder}: not a model checkpoint (no *.safetensors in it)")
    for path in files:
        size, header = _read_header(path)
        try:
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name[0] != "_"]
            expected = 8 + size + max(ends, default=0)
        except (LookupError, TypeError) as error:
            raise ConfigError(f"{path}: not a safetensors file") from error
        if path.stat().st_size != expected:
            raise ConfigError(
                f"{path}: holds {path.stat().st_size} bytes, its header says {expected}: cut short?"
            )


def tensor_names(folder: Path) -> set[str]:
    """Names of the tensors in a folder's weights, from their headers alone.

    Raises:
        ConfigError: naming a file that is not safetensors.
    """
    files = sorted(folder.glob("*.safetensors"))
    return {name for path in files for name in _read_header(path)[1] if name != "__metadata__"}


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Length of a header in bytes, and what it says of each tensor."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(size, _MAX_HEADER_BYTES)))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not a safetensors file") from error
    if not isinstance(header, dict):
        raise ConfigError(f"{path}: not a safetensors file")
    return size, header

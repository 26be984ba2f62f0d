"""Files of weights, looked at without loading them."""

import json
from pathlib import Path

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
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(min(size, _MAX_HEADER_BYTES)))
                entries = [entry for name, entry in header.items() if name[0] != "_"]
                ends = [entry["data_offsets"][1] for entry in entries]
            except (ValueError, AttributeError, LookupError, TypeError) as error:
                raise ConfigError(f"{path}: not a safetensors file") from error
        expected = 8 + size + max(ends, default=0)
        if path.stat().st_size != expected:
            raise ConfigError(
                f"{path}: holds {path.stat().st_size} bytes, its header says {expected}: cut short?"
            )

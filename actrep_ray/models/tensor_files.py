"""Whole tensors in safetensors files, read one at a time.

    STEM.safetensors                     all of them, or
    STEM-00001-of-00002.safetensors      some of them each, and
    STEM.safetensors.index.json          {"metadata": {...}, "weight_map": {name: file}}

That is how Hugging Face splits a model, and how the learner's state is split too.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from data_prep.files import DataError, read_object


class TensorFiles:
    """The tensors of one stem in a folder; none is held in memory.

    Args:
        folder: Where the files are.
        stem: What their names begin with.

    Attributes:
        names: Of all tensors.

    Raises:
        DataError: if a file is missing or cannot be read, naming it.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            self._files = _files_of(index)
        else:
            path = folder / f"{stem}.safetensors"
            self._files = dict.fromkeys(_names_in(path), path)
        self.names = self._files.keys()

    def get(self, name: str) -> torch.Tensor:
        """A tensor, on the CPU; its pages of the file are let go with it."""
        with safe_open(self._files[name], framework="pt") as file:
            found: torch.Tensor = file.get_tensor(name)
            return found

    def first_row(self, name: str) -> torch.Tensor:
        """The first row of a tensor; the rest of it is not read."""
        with safe_open(self._files[name], framework="pt") as file:
            found: torch.Tensor = file.get_slice(name)[:1][0]
            return found


def are_there(folder: Path, stem: str) -> bool:
    """Whether a folder has tensors of a stem."""
    names = (f"{stem}.safetensors", f"{stem}.safetensors.index.json")
    return any((folder / name).is_file() for name in names)


def shard_name(stem: str, number: int, count: int) -> str:
    """Name of file `number` (from 0) of `count`."""
    if count == 1:
        return f"{stem}.safetensors"
    return f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"


def index_of(stem: str, sizes: Sequence[Mapping[str, int]]) -> bytes:
    """The index of several files.

    Args:
        stem: What their names begin with.
        sizes: Bytes of each tensor by name, of each file.
    """
    files = {
        name: shard_name(stem, number, len(sizes))
        for number, names in enumerate(sizes)
        for name in names
    }
    total = sum(size for names in sizes for size in names.values())
    content = {"metadata": {"total_size": total}, "weight_map": files}
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _files_of(index: Path) -> dict[str, Path]:
    """File of each tensor that an index names."""
    found = read_object(index, "an index of tensors").get("weight_map")
    names = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise DataError(f"{index}: weight_map, expected names of files beside it")
    assert isinstance(found, dict)
    for path in sorted({index.parent / name for name in found.values()}):
        missing = sorted(name for name in found if index.parent / found[name] == path)
        if lacking := sorted(set(missing) - set(_names_in(path))):
            raise DataError(f"{path}: {lacking[0]!r} is not in it, though {index.name} says so")
    return {name: index.parent / file for name, file in found.items()}


def _names_in(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path}: no such file, expected saved tensors")
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: {error}") from error

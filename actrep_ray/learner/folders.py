"""Folders that are complete or absent, and the files of a Hugging Face model."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from transformers import GenerationConfig

from actrep_ray.learner.saving import Snapshot
from actrep_ray.models.layout import published
from data_prep import files

_MAX_FILE = "50GB"  # as transformers splits what it saves

_PROCESSOR_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)


@contextmanager
def complete_folder(folder: Path, *, is_writer: bool = True) -> Iterator[Path]:
    """A folder to write into that appears under its name when everything is written.

    A folder that exists is written into directly: who made it answers for it.

    Args:
        folder: The name to appear.
        is_writer: False for ranks that only take part; nothing is made or renamed by them.
    """
    if not is_writer or folder.is_dir():
        yield folder
        return
    with files.complete_folder(folder) as partial:
        yield partial


def read_processor_files(source: Path) -> dict[str, bytes]:
    """Tokenizer, processor, chat template and generation settings of a checkpoint, by name."""
    return {
        name: (source / name).read_bytes() for name in _PROCESSOR_FILES if (source / name).is_file()
    }


def model_folder(
    model: Any, weights: dict[str, torch.Tensor], others: Mapping[str, bytes]
) -> Snapshot:
    """The files that `save_pretrained` would write of a model, to be written later.

    Args:
        model: Its config and generation settings are taken now.
        weights: Whole weights by the model's names, each once.
        others: Files that lie beside them; they stand where the model has one of the same name.
    """
    config = model.config
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        # Those of the source are kept as they are, which transformers may refuse to write.
        GenerationConfig.from_model_config(config).save_pretrained(folder)
        own = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    named = published(model, weights)
    split = split_torch_state_dict_into_shards(
        named, filename_pattern="model{suffix}.safetensors", max_shard_size=_MAX_FILE
    )
    found = Snapshot(contents={**own, **others})
    for name, keys in split.filename_to_tensors.items():
        found.tensors[name] = {key: named[key].contiguous() for key in keys}
        found.metadata[name] = {"format": "pt"}
    if split.is_sharded:
        index = {
            "metadata": {"total_parameters": model.num_parameters(), **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        found.contents["model.safetensors.index.json"] = text.encode()
    return found

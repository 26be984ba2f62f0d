"""The files of a Hugging Face model beside its weights."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import GenerationConfig

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


def read_processor_files(source: Path) -> dict[str, bytes]:
    """Tokenizer, processor, chat template and generation settings of a checkpoint, by name."""
    return {
        name: (source / name).read_bytes() for name in _PROCESSOR_FILES if (source / name).is_file()
    }


def model_settings(model: Any) -> dict[str, bytes]:
    """What `save_pretrained` would write of a model beside its weights, by name."""
    config = model.config
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        # Those of the source are kept as they are, which transformers may refuse to write.
        GenerationConfig.from_model_config(config).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

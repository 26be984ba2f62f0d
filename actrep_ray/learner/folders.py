"""Folders that are complete or absent, and the files of a model that are not its weights."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep import files

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


def copy_processor_files(source: Path, target: Path) -> None:
    """Copy tokenizer, processor, chat template and generation settings of a checkpoint."""
    for name in _PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)

"""Where an answer begins and ends, by a checkpoint's own files and never by its name.

It begins where the chat template says so. That of the Qwen3-VL-Thinking models writes the tag of
the reasoning itself, and the model's first token comes behind it::

    ...<|im_end|>
    <|im_start|>assistant
    <think>                  <- written by the template, and part of the answer all the same

What was opened in this way is put before the text of what the model wrote, once, and left out of
what SFT has it write: nobody else has to know. A block that the template closes as well (`<think>`,
nothing, `</think>`: how thinking is switched off) is over before the answer, and no part of it.

It ends at any of several tokens: the tokenizer's, and those of generation_config.json (published
models name `<|im_end|>` and `<|endoftext|>`).
"""

import re
from pathlib import Path
from typing import Any

from actrep_ray.config import ConfigError
from data_prep.files import DataError, read_object

_HEADER = "<|im_start|>assistant\n"  # of an answer in the chat templates of all families
_CLOSED = re.compile(r".*</[a-z]+>", re.DOTALL)


def opened_in(prompt: str, path: str | Path) -> str:
    """What of the answer a rendered prompt holds, for example "<think>\\n"; often nothing.

    Args:
        prompt: Up to where the model goes on.
        path: Folder of the checkpoint, for the message.

    Raises:
        ConfigError: if the template does not begin an answer as those of Qwen-VL do.
    """
    _, header, opened = prompt.rpartition(_HEADER)
    if not header:
        raise ConfigError(
            f"{path}: its chat template ends a prompt with {prompt[-40:]!r}, expected the line "
            f"{_HEADER.rstrip()!r} where an answer begins"
        )
    return _CLOSED.sub("", opened).lstrip()


def check_opened(opened: str, dialect: str, path: str | Path) -> None:
    """Refuse a template that opens an answer in another way than the recipe has it written.

    Raises:
        ConfigError: naming the checkpoint, what it opens and `data.dialect`.
    """
    if opened and not opened.startswith(f"<{dialect}>"):
        raise ConfigError(
            f"data.dialect={dialect}: the chat template of {path} begins an answer with "
            f"{opened.strip()!r}, expected nothing or <{dialect}>; change data.dialect or the "
            "template"
        )


def after_opened(text: str, opened: str) -> str:
    """What of a whole answer is left to write behind what the template opened.

    Raises:
        DataError: if the answer begins otherwise.
    """
    if not opened:
        return text
    text = text.lstrip()  # the template has written what comes first
    if text.startswith(opened):
        return text.removeprefix(opened)
    tag = opened.rstrip()
    if not text.startswith(tag):
        raise DataError(
            f"the answer {text[:40]!r} does not begin with {tag!r}, as the chat template of the "
            "model does"
        )
    return text.removeprefix(tag).lstrip()


def read_end_ids(path: str | Path, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's, which SFT teaches, and then any others.

    Raises:
        DataError: if generation_config.json cannot be read, or names something else than tokens.
    """
    file, named = Path(path) / "generation_config.json", None
    if file.is_file():
        named = read_object(file, "the generation settings of a model").get("eos_token_id")
    others = named if isinstance(named, list) else [] if named is None else [named]
    for one in others:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < len(tokenizer):
            raise DataError(
                f"{file}: eos_token_id={named!r}, expected tokens from 0 to {len(tokenizer) - 1}"
            )
    return tuple(dict.fromkeys([int(tokenizer.eos_token_id), *others]))

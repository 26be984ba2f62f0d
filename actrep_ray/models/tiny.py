"""A small Qwen-VL checkpoint for laptops and tests: an ordinary Hugging Face folder.

About 1.5 million parameters, its own byte-level BPE and chat template, the processors of the real
family. Nothing else in the project knows that a checkpoint is small.

The tokenizer is a BPE whose pre-tokens cut a time into whole seconds and tenths, each with what
stands before or after it (`<3` `.2 seconds>`, ` 3` `.2`, `-4` `.0s`), and keep `rep1:` together;
its corpus holds each of them, so that each costs one token. With a token for every time, 1,200 in
all, a model of this size did not learn in 2,000 steps to look a moment up. Text that the tokenizer
has never seen falls back to bytes.
"""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from actrep_ray.config import ConfigError
from actrep_ray.models import layout
from actrep_ray.models.architecture import build_config
from data_prep.cot import wording
from data_prep.files import complete_folder
from data_prep.synthetic.motions import MOTIONS

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")

_MAX_TIME_S = 30
MAX_COUNT = 60
_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_PRE_TOKEN = (
    r"<[0-9]+(?=\.[0-9] seconds>)|\.[0-9] seconds>"  # a timestamp of Qwen3-VL's prompt
    r"|rep[0-9]+:|</?[a-z]+>\n?"
    r"|[ -]?[0-9]+(?=\.[0-9])|\.[0-9](?:s\n)?"  # a bound of a cycle: ` 0.5`, `-1.2s`
    r"| ?[A-Za-z]+(?:[:.,?!]\n?)?| ?[0-9]+\n?|\n+|\s+|[^\sA-Za-z0-9]"
)
# How whole seconds and tenths are spelled as tokens: Ġ is a space and Ċ a line's end.
_SECONDS = ("<{}", "Ġ{}", "-{}")
_TENTHS = (".{}Ġseconds>", ".{}", ".{}sĊ")
# How a number of repetitions is spelled: its label in a list, the total, the answer.
NUMBER_FORMS = ("rep{}:", " {}\n", "{}")
# What a description of motion says: a zone, a direction, and the segments of a clip.
ZONES = ("a", "b", "c", "d", "e", "f", "g", "h")  # from the rest pose to the furthest point
MOTION_WORDS = ("still", "out", "back", *ZONES)

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_base_model(
    folder: str | Path, *, family: str = "qwen3_vl", overwrite: bool = False
) -> Path:
    """Write the shipped base: pretrained on describing motion, never on counting.

    Args:
        folder: Where to; it is whole or not there.
        family: Of the model.
        overwrite: Whether a folder that is there gives way.

    Raises:
        ConfigError: if no base of that family is shipped.
    """
    source = base_model_folder(family)
    with complete_folder(folder, replaces=overwrite) as partial:
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            copy = partial / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return Path(folder)


def base_model_folder(family: str = "qwen3_vl") -> Path:
    """Folder of the shipped base of a family.

    Raises:
        ConfigError: if no base of that family is shipped.
    """
    source = Path(str(files("actrep_ray") / "models" / "assets" / f"tiny_{family}"))
    if not source.is_dir():
        raise ConfigError(
            f"family={family!r}: no pretrained base is shipped, only qwen3_vl has one; "
            "random weights can be written for every family"
        )
    return source


def write_tiny_model(
    folder: str | Path,
    *,
    family: str = "qwen3_vl",
    seed: int = 0,
    tied: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint with random weights.

    Args:
        folder: Where to; it is whole or not there.
        family: One of `FAMILIES`.
        seed: Seed of the weights.
        tied: Whether the output layer shares the weights of the token embedding.
        overwrite: Whether a folder that is there gives way.

    Raises:
        ConfigError: if the family is not known.
    """
    if family not in FAMILIES:
        raise ConfigError(f"family={family!r}, expected one of {', '.join(FAMILIES)}")
    folder = Path(folder)
    tokenizer = build_tokenizer()
    config = _config(family, tokenizer, tied)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        _shape_time_embeddings(model, tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with complete_folder(folder, replaces=overwrite) as partial:
        layout.save(model, partial)
        _processor(config, tokenizer).save_pretrained(partial)
    return folder


def write_random_model(
    folder: str | Path,
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Path:
    """Write a checkpoint of any sizes with random weights and the small tokenizer.

    It can answer nothing, but steps of it cost what steps of the real one do.

    Args:
        folder: Where to.
        config: Values of a `config.json`; the ids of its visual tokens become the tokenizer's.
        dtype: Of the weights.
        device: Where they are drawn.
    """
    tokenizer = build_tokenizer()
    built = build_config({**config, **_visual_token_ids(tokenizer)})
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(built, dtype=dtype)
    model.generation_config.eos_token_id = tokenizer.eos_token_id  # not the published tokenizer's
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with complete_folder(folder) as partial:
        layout.save(model, partial)
        _processor(built, tokenizer).save_pretrained(partial)
    return Path(folder)


def _shape_time_embeddings(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let tokens of one number of seconds, or of tenths, start out alike, and near ones similar.

    A large model has seen digits billions of times. Here sines of the number, in half of the random
    embedding, tell from the start which tokens of prompts and answers belong together.
    """
    weight = model.get_input_embeddings().weight.data
    half, std = weight.shape[1] // 2, float(weight.std())
    wavelengths = 2 * 30 ** torch.linspace(0, 1, half // 2)
    for forms, numbers, first in ((_SECONDS, _MAX_TIME_S + 1, 0), (_TENTHS, 10, half)):
        for number in range(numbers):
            phase = 2 * torch.pi * number / wavelengths
            waves = torch.cat([phase.sin(), phase.cos()]) * 2 * std
            for form in forms:
                token = tokenizer.convert_tokens_to_ids(form.format(number))
                weight[token, first : first + half] = waves


def shape_number_embeddings(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let the tokens of one number of repetitions be alike, and those of near numbers similar.

    As with times: sines of the number, here in half of the dimensions of a random basis. What the
    embeddings hold in the other half stays.
    """
    weight = model.get_input_embeddings().weight.data
    half, std = weight.shape[1] // 2, float(weight.std())
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(2 * half, half, generator=generator))[0].T  # [H / 2, H]
    wavelengths = 2 * 30 ** torch.linspace(0, 1, half // 2)
    for number in range(MAX_COUNT + 1):
        phase = 2 * torch.pi * number / wavelengths
        waves = torch.cat([phase.sin(), phase.cos()]) * 2 * std @ basis
        for form in NUMBER_FORMS:
            (token,) = tokenizer.encode(form.format(number))
            weight[token] += waves - weight[token] @ basis.T @ basis


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The small tokenizer; the same one each time."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_TOKEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(_SPECIAL[3:]),
        model_max_length=8192,
        chat_template=_CHAT_TEMPLATE,
    )


def _corpus() -> Iterator[str]:
    """Texts whose pre-tokens become whole tokens."""
    for tenth in range(_MAX_TIME_S * 10 + 1):
        time = f"{tenth / 10:.1f}"
        yield from (f"<{time} seconds>", f" {time}", f"-{time}s\n", f"-{time}")
    for count in range(MAX_COUNT + 1):
        yield from (f"rep{count}:", f"{count}", f" {count}\n")
    for action in MOTIONS:
        observation, definition = wording(action)
        yield f"<think>\n{observation}\nOne repetition: {definition}\n</think>\n<answer>"
        yield action.replace("_", " ")
    yield "Check: the repetitions follow each other in order\nTotal: </answer>"
    yield "Check: no motion is repeated\n<thinking>\n</thinking>\n"
    yield "How many times is the action repeated? List each repetition.\n"
    yield "Where is the moving part at each time? Describe how it moves. "
    yield "user\nassistant\nsystem\nThe video shows a one full from start to end."
    for word in MOTION_WORDS:
        yield f"{word} {word} {word}\n"


def _config(family: str, tokenizer: PreTrainedTokenizerFast, tied: bool) -> Any:
    """The family's own configuration with small numbers."""
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": tied,
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sections: dict[str, Any] = {"mrope_section": [8, 4, 4], "rope_type": "default"}
    vision: dict[str, Any] = {"depth": 2, "num_heads": 4, "spatial_merge_size": 2}
    if family == "qwen3_vl_moe":  # not square, so that a transposed expert shows
        text |= {
            "hidden_size": 64,
            "moe_intermediate_size": 96,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,  # transformers always does; vLLM asks
        }
    if family.startswith("qwen3_vl"):
        text |= {"head_dim": 32}
        sections["mrope_interleaved"] = True
        # Patches of 8 x 8, merged 4 x 4: a frame of 32 x 32 is one token, as with the family's own
        # 16 and 2, but the tower sees 16 patches of it and not 4.
        vision |= {
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 96,
            "out_hidden_size": text["hidden_size"],
            "patch_size": 8,
            "spatial_merge_size": 4,
            "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [1],
        }
    elif family == "qwen2_5_vl":
        vision |= {
            "hidden_size": 64,
            "intermediate_size": 192,
            "out_hidden_size": 128,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        }
    else:
        vision |= {"embed_dim": 64, "hidden_size": 128, "mlp_ratio": 3, "patch_size": 14}
    text["rope_parameters"] = {"rope_theta": 10000.0, **sections}
    return AutoConfig.for_model(
        family,
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=tied,
        **_visual_token_ids(tokenizer),
    )


def _visual_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """As a config names them."""
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {key: int(tokenizer.convert_tokens_to_ids(token)) for key, token in names.items()}


def _processor(config: Any, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The family's processor for the patches of a model."""
    family, vision = config.model_type, config.vision_config
    patch = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    image = Qwen2VLImageProcessor(**patch)
    if family.startswith("qwen3_vl"):
        video = Qwen3VLVideoProcessor(**patch)
        return Qwen3VLProcessor(image, tokenizer, video, chat_template=_CHAT_TEMPLATE)
    cls = Qwen2_5_VLProcessor if family == "qwen2_5_vl" else Qwen2VLProcessor
    return cls(image, tokenizer, Qwen2VLVideoProcessor(**patch), chat_template=_CHAT_TEMPLATE)


def num_parameters(folder: str | Path) -> int:
    """Parameters in a checkpoint's safetensors, counted from the file's header."""
    path = Path(folder) / "model.safetensors"
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(int(torch.Size(shape).numel()) for shape in shapes)

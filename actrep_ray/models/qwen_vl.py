"""Qwen-VL checkpoints of three families, told apart by `model_type` in config.json.

Owns everything in which the families differ: how a clip becomes tokens and pixels, which position
each token has, and what the components of the model are called. Rollout and learner both go through
here, so they cannot disagree.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from actrep_ray.config import ConfigError, VideoConfig
from actrep_ray.models.answers import after_opened, check_opened, opened_in, read_end_ids
from actrep_ray.models.families import read_family
from actrep_ray.models.layout import check_experts
from actrep_ray.models.row_plans import plan_row
from actrep_ray.models.torch_names import dtype_named
from data_prep.files import read_object
from data_prep.rows import Row
from data_prep.video import FileState, FramePlan


@dataclass(frozen=True)
class EncodedPrompt:
    """A clip (or an image), images before it, and a question as the model reads them.

    To a Qwen-VL model an image is a video of one temporal patch: the same tower computes the same
    features, and of its placeholder tokens it reads the places alone. So those of an image are
    `video_pad_id` here, and one batch holds both kinds, with one pass through the tower.

    Attributes:
        input_ids: int64 [P], one token for each merged visual patch.
        position_ids: int64 [3, P], (time, height, width) of multimodal RoPE.
        next_position: Position of the first token of an answer.
        pixel_values: float32 [num_patches, patch_dim]; [0, 0] without a clip
        grid_thw: int64 [N, 3], patches in time, height and width before merging, of all that is
            shown, in order; [0, 3] likewise
        features: [taps, num_patches, width], what a frozen tower makes of the pixels, which are
            left out then; see `tower`
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    next_position: int
    pixel_values: torch.Tensor
    grid_thw: torch.Tensor
    features: torch.Tensor | None = None


class QwenVLInputs:
    """Turns clips and questions into what a Qwen-VL checkpoint reads, and its tokens into answers.

    Args:
        path: Folder of the checkpoint.

    Attributes:
        opened: What the chat template writes of the answer before the model does; see `answers`.
        end_ids: Tokens that end an answer; the first is the one that SFT teaches.
        visual_token_ids: Tokens that no answer may hold.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.family = read_family(path)
        try:
            self.processor: Any = AutoProcessor.from_pretrained(str(path))
        except (OSError, ValueError) as error:  # transformers' words for files it lacks
            raise ConfigError(f"{path}: its processor cannot be read ({error})") from error
        if not self.processor.chat_template:
            raise ConfigError(f"{path}: no chat template in its processor or tokenizer")
        self.tokenizer: Any = self.processor.tokenizer
        config = read_object(Path(path) / "config.json", "the config of a model")
        self._tokens_per_second = float(config["vision_config"].get("tokens_per_second", 1.0))
        self.merge_size = int(self.processor.video_processor.merge_size)
        self.patch_size = int(self.processor.video_processor.patch_size)
        self.temporal_patch_size = int(self.processor.video_processor.temporal_patch_size)
        ids = self.tokenizer.convert_tokens_to_ids
        self.video_pad_id = int(ids("<|video_pad|>"))
        self.image_pad_id = int(ids("<|image_pad|>"))
        self.end_ids = read_end_ids(path, self.tokenizer)
        self.opened = opened_in(self.prompt_text(""), path)
        self.visual_token_ids = tuple(
            int(ids(token))
            for token in ("<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>")
        )

    @property
    def factor(self) -> int:
        """Height and width of a frame are multiples of this, pixels."""
        return self.patch_size * self.merge_size

    def patch_fingerprint(self) -> str:
        """Names how frames and images become pixels of patches: the hash of what noise becomes.

        So it holds for code and settings alike, those left out that say which frames are shown and
        at what size: a plan does.
        """
        height, width = self.factor, 2 * self.factor
        frames = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)
        given: dict[str, Any] = {"do_resize": False, "return_tensors": "pt"}
        image = self.processor.image_processor([Image.fromarray(frames[0])], **given)
        video = self.processor.video_processor([frames], do_sample_frames=False, **given)
        pixels = image["pixel_values"], video["pixel_values_videos"]
        return hashlib.sha256(b"".join(one.numpy().tobytes() for one in pixels)).hexdigest()

    def plan(self, clip: Row, video: VideoConfig, state: FileState | None = None) -> FramePlan:
        """The frames that this model is shown of a row, and the images that come before them.

        `state`: see `plan_frames`. Images before it are planned as they are now.
        """
        return plan_row(clip, video, self.factor, state)

    def prompt_text(
        self,
        question: str,
        *,
        shown: Literal["video", "image"] | None = "video",
        num_before: int = 0,
    ) -> str:
        """The chat prompt, up to where the answer begins.

        Args:
            question: Its text.
            shown: What its last placeholder is for; None: there is none.
            num_before: Placeholders of images before it.
        """
        placeholders = [{"type": "image"}] * num_before + ([{"type": shown}] if shown else [])
        content = [*placeholders, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        text: str = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return text

    def text_of(self, question: str, plan: FramePlan) -> str:
        """The chat prompt of a question about all that a plan shows."""
        shown: Literal["video", "image"] = "image" if plan.is_image else "video"
        return self.prompt_text(question, shown=shown, num_before=len(plan.before))

    def encode(self, question: str, plan: FramePlan, *frames: np.ndarray) -> EncodedPrompt:
        """Tokens, positions and pixels of a clip (or an image) and a question.

        Args:
            question: Text asked about the clip.
            plan: The plan that the frames were read by.
            frames: uint8 [T, H, W, 3] of each of `plan.shown`.
        """
        given: dict[str, Any] = {"text": [self.text_of(question, plan)], "do_resize": False}
        pairs = list(zip(plan.shown, frames, strict=True))
        if plan.num_images:
            given["images"] = [Image.fromarray(one[0]) for shown, one in pairs if shown.is_image]
        if not plan.is_image:
            given["videos"] = [frames[-1]]
            given["video_metadata"] = [video_metadata(plan)]
            given["do_sample_frames"] = False
        inputs = self.processor(**given, return_tensors="pt")
        input_ids = inputs["input_ids"][0]
        input_ids[input_ids == self.image_pad_id] = self.video_pad_id
        # Images come before the video, so theirs are the first of the patches.
        keys = [end for end in ("", "_videos") if f"pixel_values{end}" in inputs]
        pixel_values = torch.cat([inputs[f"pixel_values{end}"] for end in keys])
        grids = {"": "image_grid_thw", "_videos": "video_grid_thw"}
        grid_thw = torch.cat([inputs[grids[end]] for end in keys])
        positions, next_position = self.positions(input_ids, grid_thw, plan)
        return EncodedPrompt(
            input_ids=input_ids,
            position_ids=positions,
            next_position=next_position,
            pixel_values=pixel_values,
            grid_thw=grid_thw,
        )

    def encode_text(self, question: str) -> EncodedPrompt:
        """Tokens and positions of a question without a clip."""
        text = self.prompt_text(question, shown=None)
        ids = torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        positions = torch.arange(len(ids)).expand(3, -1)
        none = torch.zeros(0, 3, dtype=torch.long)
        return EncodedPrompt(ids, positions, len(ids), torch.zeros(0, 0), none)

    def encode_spans(
        self, text: str, spans: Sequence[tuple[int, int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `encode_answer`, and which of its tokens lie in some spans of the text: bool [R].

        Args:
            text: A whole answer.
            spans: (first character, the one after) of each; a token that overlaps one lies in it.
        """
        ids = self.encode_answer(text)
        rest = after_opened(text, self.opened)
        encoded = self.tokenizer(rest, add_special_tokens=False, return_offsets_mapping=True)
        bounds = np.array(encoded["offset_mapping"]).reshape(-1, 2) + len(text) - len(rest)
        lies_in = np.zeros(len(ids), bool)
        for first, end in spans:
            lies_in[:-1] |= (bounds[:, 0] < end) & (bounds[:, 1] > first)
        return ids, lies_in

    def encode_answer(self, text: str) -> np.ndarray:
        """Tokens that a model has to write for a whole answer, the end token included: int32 [R].

        Raises:
            DataError: if the answer does not begin with what the chat template opened.
        """
        rest = after_opened(text, self.opened)
        ids = self.tokenizer(rest, add_special_tokens=False)["input_ids"]
        return np.array([*ids, self.end_ids[0]], dtype=np.int32)

    def decode_answer(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """The whole answer whose tokens a model wrote, without the token that ended it.

        Other special tokens that were sampled are part of the text: an answer that holds one must
        not look as if it did not.
        """
        written = token_ids[:-1] if self.has_ended(token_ids) else token_ids
        text: str = self.tokenizer.decode(list(written), skip_special_tokens=False)
        return self.opened + text

    def token_bounds(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The characters of `decode_answer` that each token writes, (first, end): int64 [R, 2].

        Where several tokens write one character, it is the last one's.
        """
        ids = list(token_ids)
        pieces = self.tokenizer.batch_decode([[one] for one in ids], skip_special_tokens=False)
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        if any("\ufffd" in piece for piece in pieces):  # a character in pieces: decode as a whole
            decode = self.tokenizer.decode
            texts = (decode(ids[: n + 1], skip_special_tokens=False) for n in range(len(ids)))
            ends = np.array([len(text.rstrip("\ufffd")) for text in texts], np.int64)
        ends += len(self.opened)
        return np.stack([np.concatenate([[len(self.opened)], ends[:-1]]), ends], axis=1)

    def has_ended(self, token_ids: Sequence[int] | np.ndarray) -> bool:
        """Whether the last token of an answer ended it."""
        return len(token_ids) > 0 and int(token_ids[-1]) in self.end_ids

    def check_dialect(self, dialect: str) -> None:
        """Refuse a dialect of answers that the chat template contradicts.

        Raises:
            ConfigError: naming the checkpoint, what its template opens and `data.dialect`.
        """
        check_opened(self.opened, dialect, self.path)

    def positions(
        self, input_ids: torch.Tensor, grid_thw: torch.Tensor, plan: FramePlan
    ) -> tuple[torch.Tensor, int]:
        """Multimodal RoPE positions int64 [3, P], and the position that follows them.

        The positions are those of vLLM, which differ from transformers' in Qwen2.5-VL: there the
        seconds of a temporal patch are cut to an integer, here they are not.
        """
        time_step = 1.0  # images before a clip are one patch: theirs does not matter
        if self.family == "qwen2_5_vl":
            time_step = self._tokens_per_second * self.temporal_patch_size / plan.fps
        is_visual = (input_ids == self.video_pad_id).numpy()
        blocks: list[tuple[int, int, int]] = []
        for time, height, width in grid_thw.tolist():
            block = (height // self.merge_size, width // self.merge_size)
            if self.family.startswith("qwen3_vl"):  # one for each patch, timestamps between
                blocks += [(1, *block)] * time
            else:
                blocks.append((time, *block))
        return mrope_positions(is_visual, blocks, time_step)


def video_metadata(plan: FramePlan) -> dict[str, Any]:
    """What the processors of transformers and vLLM want to know of frames sampled already."""
    return {
        "fps": plan.fps,
        "frames_indices": list(range(plan.num_frames)),
        "total_num_frames": plan.num_frames,
        "duration": plan.num_frames / plan.fps,
        "width": plan.width,
        "height": plan.height,
        "video_backend": "pyav",
    }


def mrope_positions(
    is_visual: np.ndarray, blocks: Sequence[tuple[int, int, int]], time_step: float
) -> tuple[torch.Tensor, int]:
    """Positions of text and visual blocks: text counts on, a block spans a (t, h, w) grid.

    After a block, text goes on at the block's largest position + 1.

    Args:
        is_visual: bool [P], which tokens are visual.
        blocks: (t, h, w) of each block in order, in merged patches.
        time_step: Position step of one temporal patch; products are cut to integers.

    Returns:
        int64 [3, P], and the position of the token that follows.

    Example: two text tokens, a block of (1, 1, 2), one text token
        time   0 1 | 2 2 | 4
        height 0 1 | 2 2 | 4
        width  0 1 | 2 3 | 4
    """
    positions = np.zeros((3, len(is_visual)), dtype=np.int64)
    next_position, token, remaining = 0, 0, list(blocks)
    while token < len(is_visual):
        if not is_visual[token]:
            positions[:, token] = next_position
            token, next_position = token + 1, next_position + 1
            continue
        assert remaining, "more visual tokens than the grid has"
        grid = np.indices(remaining.pop(0)).reshape(3, -1)
        grid[0] = (grid[0] * time_step).astype(np.int64)
        end = token + grid.shape[1]
        assert is_visual[token:end].all(), "fewer visual tokens than the grid has"
        positions[:, token:end] = grid + next_position
        token, next_position = end, int(positions[:, token:end].max()) + 1
    assert not remaining, "fewer visual blocks than the grid has"
    return torch.from_numpy(positions), next_position


def load_model(path: str | Path, *, dtype: str, attention: str = "sdpa") -> PreTrainedModel:
    """The checkpoint's model on the CPU, in training dtype, from safetensors only."""
    read_family(path)
    check_experts(AutoConfig.from_pretrained(str(path), trust_remote_code=False), path)
    model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(
        str(path),
        dtype=dtype_named(dtype),
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=False,
    )
    return model


def component_of(parameter_name: str) -> str:
    """Which component a parameter belongs to: `vision_tower`, `merger` or `language_model`."""
    if ".visual." in f".{parameter_name}":
        return "merger" if "merger" in parameter_name else "vision_tower"
    return "language_model"

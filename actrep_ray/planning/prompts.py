"""How many tokens a clip and its question come to."""

import math
from dataclasses import dataclass

from actrep_ray.config import Recipe
from actrep_ray.models.architecture import Architecture
from data_prep.rows import Row
from data_prep.schema import Clip
from data_prep.video import fit_size, plan_times

_TEMPLATE_TOKENS = 24  # chat template around the question
_TIMESTAMP_TOKENS = 11  # `<12.5 seconds>` and the marks around each temporal patch of Qwen3-VL


@dataclass(frozen=True)
class PromptSize:
    """A clip and its question in tokens.

    Attributes:
        num_visual: Visual tokens.
        num_text: All others, estimated: the tokenizer need not be here.
        is_of_data: Whether the data holds such a clip, or only the video settings allow it.
    """

    num_visual: int
    num_text: int
    is_of_data: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.num_visual + self.num_text


def largest_prompt(recipe: Recipe, model: Architecture) -> PromptSize:
    """The longest prompt that the video settings allow."""
    video = recipe.video
    cells = max(1, video.max_pixels // model.frame_factor**2)
    pairs = -(-video.max_frames // model.temporal_patch_size)
    return prompt_size(recipe, model, num_visual=pairs * cells, num_pairs=pairs)


def prompt_size(
    recipe: Recipe,
    model: Architecture,
    *,
    num_visual: int,
    num_pairs: int,
    is_of_data: bool = False,
) -> PromptSize:
    """A prompt of so many visual tokens in so many temporal patches; text is estimated."""
    text = _TEMPLATE_TOKENS + math.ceil(len(recipe.data.question) / 3.5)
    if model.family.startswith("qwen3_vl"):
        text += num_pairs * _TIMESTAMP_TOKENS
    return PromptSize(num_visual, text, is_of_data)


def clip_size(clip: Row, recipe: Recipe, model: Architecture) -> PromptSize:
    """Tokens of a row and the images before it from metadata alone; no file need be here."""
    video, num_frames = recipe.video, 1
    if isinstance(clip, Clip):
        times_s, _ = plan_times(
            clip, fps=video.fps, min_frames=video.min_frames, max_frames=video.max_frames
        )
        num_frames = len(times_s)
    pairs, tokens = -(-num_frames // model.temporal_patch_size), 0
    for num, shown in ((num_frames, clip), *((1, image) for image in clip.images)):
        height, width = fit_size(
            shown.height,
            shown.width,
            factor=model.frame_factor,
            min_pixels=video.min_pixels,
            max_pixels=video.max_pixels,
        )
        tokens += model.num_visual_tokens(num, height, width)
    return prompt_size(recipe, model, num_visual=tokens, num_pairs=pairs, is_of_data=True)

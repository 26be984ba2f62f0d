"""Prompts encoded once: the same clip comes back for every epoch, update and reference pass.

With a frozen vision tower that is what the tower makes of the pixels, and not they, so a clip
passes through the tower once as long as it is kept, here or in the node's `feature_store`.
"""

from collections import OrderedDict
from dataclasses import replace

import numpy as np

from actrep_ray.learner.batch.feature_store import FeatureStore
from actrep_ray.media.frame_cache import FrameCache
from actrep_ray.models.qwen_vl import EncodedPrompt, QwenVLInputs
from actrep_ray.records import BAD_DATA, LearnerRow
from data_prep.video import VideoError


class PromptEncoder:
    """Encodes rows' prompts and keeps the latest.

    Args:
        inputs: Of the checkpoint that is trained.
        frames: The node's frame cache.
        max_bytes: Size of what is kept, in bytes of pixel values or features.

    Attributes:
        features: Of a frozen tower, in place of pixels; None: there are pixels.
    """

    def __init__(self, inputs: QwenVLInputs, frames: FrameCache, max_bytes: int = 1 << 30) -> None:
        self.features: FeatureStore | None = None
        self.inputs = inputs
        self.frames = frames
        self.max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[tuple[str, str], EncodedPrompt] = OrderedDict()

    def problem(self, row: LearnerRow) -> tuple[str, str] | None:
        """Reason and message why a row's frames cannot be had, by the fault of its video."""
        if row.plan is None or (row.plan.hash, row.question) in self._kept:
            return None
        try:
            self.frames.get_all(row.plan)
        except VideoError as error:
            return BAD_DATA[VideoError], str(error)
        return None

    def encode(self, row: LearnerRow) -> EncodedPrompt:
        """The prompt of a row.

        Raises:
            ValueError: if the engine saw another number of tokens.
            VideoError: if the clip cannot be read.
        """
        if row.plan is None:
            return self.inputs.encode_text(row.question)
        key = (row.plan.hash, row.question)
        prompt = self._kept.get(key)
        if prompt is None:
            frames = map(np.array, self.frames.get_all(row.plan))  # writable, as torch wants it
            prompt = self.inputs.encode(row.question, row.plan, *frames)
            if self.features is not None:
                features = self.features.features(row.plan, prompt)
                none = prompt.pixel_values[:0]
                prompt = replace(prompt, pixel_values=none, features=features)
            self._kept[key] = prompt
            self._num_bytes += _num_bytes(prompt)
            while self._num_bytes > self.max_bytes and len(self._kept) > 1:
                self._num_bytes -= _num_bytes(self._kept.popitem(last=False)[1])
        else:
            self._kept.move_to_end(key)
        num_tokens = len(prompt.input_ids)
        if row.num_prompt_tokens not in (0, num_tokens):
            raise ValueError(
                f"{row.row_id}: the prompt is {num_tokens} tokens in the learner and "
                f"{row.num_prompt_tokens} in the rollout engine: they saw different frames "
                f"({row.plan.num_frames} frames of {row.plan.video}) or use different templates"
            )
        return prompt


def _num_bytes(prompt: EncodedPrompt) -> int:
    kept = prompt.pixel_values if prompt.features is None else prompt.features
    return kept.numel() * kept.element_size()

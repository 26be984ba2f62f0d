"""What a rollout engine is: prompts in, groups of answers out, weights replaced in between.

The log-probabilities that every engine returns are those of the distribution it samples from:
logits divided by the temperature, with the visual tokens (`QwenVLInputs.visual_token_ids`) left
out, since one of them in an answer could not be trained on. A learner that wants to compare must
do the same two things. Nucleus sampling (`top_p` below 1) changes the distribution further, and a
learner cannot follow it there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from actrep_ray.media.frame_cache import FrameCache
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import Prompt, Rollout, RolloutGroup, RolloutStatus

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class SamplingSettings:
    """How answers are sampled.

    Attributes:
        max_tokens: Most tokens of an answer, its end token included.
        group_size: Answers to each prompt.
        temperature: 0 takes the likeliest token.
        top_p: Nucleus; 1 keeps all tokens.
        seed: Makes this call repeatable on one engine, at some cost in speed (vLLM is 5 times
            slower); None goes on in the engine's own seeded stream.
    """

    max_tokens: int
    group_size: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.group_size < 1:
            raise ValueError(
                f"max_tokens={self.max_tokens}, group_size={self.group_size}: expected 1 or more"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature={self.temperature}, top_p={self.top_p}: expected a temperature of "
                "at least 0 and 0 < top_p <= 1"
            )
        if self.temperature == 0 and self.group_size > 1:
            raise ValueError(
                f"temperature=0 with group_size={self.group_size}: the answers would be equal"
            )


class Engine(Protocol):
    """Generates answers with one copy of the weights; used by one caller at a time."""

    frames: FrameCache

    @property
    def policy_version(self) -> int:
        """Version of the weights in use; 0 are those of the checkpoint."""
        ...

    @property
    def num_unfinished(self) -> int:
        """Prompts that were added and whose groups `step` has not returned yet."""
        ...

    def add(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        """Take prompts; what `step` then computes includes them.

        Raises:
            ValueError: if a prompt and its answer do not fit into `rollout.max_model_len`.
        """
        ...

    def step(self) -> list[RolloutGroup]:
        """Compute on for a moment; returns the groups that were finished, in any order.

        Raises:
            ValueError: as `add` does, where the length is known only now.
        """
        ...

    def clear(self) -> None:
        """Forget every prompt that was added and not finished."""
        ...

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[RolloutGroup]:
        """Answer every prompt, in order, when there is nothing else to do.

        Raises:
            ValueError: if a prompt and its answer do not fit into `rollout.max_model_len`.
        """
        assert self.num_unfinished == 0, "the engine is at work on other prompts"
        groups: dict[str, RolloutGroup] = {}
        try:
            self.add(prompts, settings)
            while self.num_unfinished:
                groups |= {group.prompt.prompt_id: group for group in self.step()}
        except BaseException:
            self.clear()
            raise
        return [groups[prompt.prompt_id] for prompt in prompts]

    def load_weights(self, weights: Weights, policy_version: int) -> None:
        """Replace all weights by those given under their Hugging Face names.

        An engine that was started for adapters is given these alone, under the learner's names.
        A tied output layer need not be given. Caches that depend on weights are emptied; answers
        that are being generated go on with the new weights, their tokens so far computed again.
        After an error the engine's weights are undefined.

        Raises:
            ValueError: for an unknown name, or a weight that is missing.
            RuntimeError: if a weight in use afterwards is not the one that was given.
        """
        ...

    def sleep(self) -> None:
        """Free the GPU until `wake`: a learner works there. Nothing may be unfinished."""
        ...

    def wake(self) -> None:
        """Take the GPU again, with the weights from before."""
        ...

    def shutdown(self) -> None:
        """Free what the engine holds; it cannot be used afterwards."""
        ...


def default_dtype(device: str) -> str:
    """What an engine computes in unless it is told."""
    return "float32" if device == "cpu" else "bfloat16"


def num_visual_tokens(inputs: QwenVLInputs, prompt: Prompt) -> int:
    """Tokens of a prompt's video, timestamps not counted."""
    plan = prompt.plan
    num_patches = -(-plan.num_frames // inputs.temporal_patch_size)
    return num_patches * (plan.height // inputs.factor) * (plan.width // inputs.factor)


def check_length(prompt: Prompt, num_prompt_tokens: int, max_tokens: int, limit: int) -> None:
    """Refuse a prompt that leaves no room for its answer.

    Raises:
        ValueError: naming the clip, the lengths and the settings to change.
    """
    if num_prompt_tokens + max_tokens > limit:
        raise ValueError(
            f"clip {prompt.clip_id!r}: {num_prompt_tokens} prompt tokens "
            f"({prompt.plan.num_frames} frames of {prompt.plan.width}x{prompt.plan.height}) and "
            f"{max_tokens} of the answer exceed rollout.max_model_len={limit}; raise it, or lower "
            "video.fps, video.max_frames, video.max_pixels or rollout.max_response_tokens"
        )


def make_rollout(
    prompt: Prompt,
    index: int,
    *,
    token_ids: Sequence[int],
    log_probs: Sequence[float],
    text: str,
    is_stopped: bool,
    policy_version: int,
    last_policy_version: int | None = None,
) -> Rollout:
    """Answer number `index` to a prompt; the last version counts where it is another one.

    Raises:
        ValueError: if a log-probability is not finite: the weights are broken then.
    """
    rollout = Rollout(
        rollout_id=f"{prompt.prompt_id}/{index}",
        token_ids=np.asarray(token_ids, dtype=np.int32),
        rollout_log_probs=np.asarray(log_probs, dtype=np.float32),
        text=text,
        status=RolloutStatus.STOPPED if is_stopped else RolloutStatus.TRUNCATED,
        policy_version=policy_version,
        last_policy_version=None if last_policy_version == policy_version else last_policy_version,
    )
    assert rollout.token_ids.shape == rollout.rollout_log_probs.shape
    if not np.isfinite(rollout.rollout_log_probs).all():
        raise ValueError(
            f"{rollout.rollout_id}: a sampled token has a log-probability that is not finite "
            f"(policy version {policy_version}); the weights hold NaN or infinity"
        )
    return rollout

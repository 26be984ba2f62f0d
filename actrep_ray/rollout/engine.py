"""What a rollout engine is: prompts in, groups of answers out, weights replaced in between.

The log-probabilities that every engine returns are those of the distribution it samples from:
logits divided by the temperature, with the visual tokens (`QwenVLInputs.visual_token_ids`) left
out, since one of them in an answer could not be trained on. A learner that wants to compare must
do the same two things. Nucleus sampling (`top_p` below 1) changes the distribution further, and a
learner cannot follow it there.

What is drawn is a function of the run's seed, the prompt's id, the number of the answer in its
group and the position of the token (`actrep_ray.rollout.draws`): engines have no random stream.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from actrep_ray.config import LoraConfig, RolloutConfig, VideoConfig
from actrep_ray.media.frame_cache import FrameCache
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.torch_names import dtype_named
from actrep_ray.records import (
    BAD_DATA,
    Prompt,
    PromptTooLongError,
    Refusal,
    RefusedError,
    Rollout,
    RolloutGroup,
    RolloutStatus,
)
from actrep_ray.weights.buckets import Weights
from data_prep.video import FramePlan


@dataclass(frozen=True)
class SamplingSettings:
    """How answers are sampled.

    Attributes:
        max_tokens: Most tokens of an answer, its end token included.
        group_size: Answers to each prompt.
        temperature: 0 takes the likeliest token.
        top_p: Nucleus; 1 keeps all tokens.
    """

    max_tokens: int
    group_size: int = 1
    temperature: float = 1.0
    top_p: float = 1.0

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


class Engine(ABC):
    """Generates answers with one copy of the weights; used by one caller at a time.

    Args:
        max_model_len: Most tokens of a prompt and its answer (`rollout.max_model_len`).
    """

    def __init__(self, max_model_len: int) -> None:
        self.max_model_len = max_model_len
        self._policy_version = 0
        self._refused: list[Refusal] = []

    @property
    def policy_version(self) -> int:
        """Version of the weights in use; 0 are those of the checkpoint."""
        return self._policy_version

    @property
    @abstractmethod
    def num_unfinished(self) -> int:
        """Prompts that were added and whose groups `step` has not returned yet."""

    @abstractmethod
    def add(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        """Take prompts; what `step` then computes includes them.

        One whose clip cannot be read, or that does not fit into `rollout.max_model_len` with its
        answer, is refused, here or in `step`: see `take_refused`.
        """

    @abstractmethod
    def step(self) -> list[RolloutGroup]:
        """Compute on for a moment; returns the groups that were finished, in any order."""

    @abstractmethod
    def clear(self) -> None:
        """Forget every prompt that was added and not finished."""

    @abstractmethod
    def prefetch(self, plan: FramePlan) -> None:
        """Decode a clip, so that it is there when it is asked about.

        May be called from another thread than everything else.

        Raises:
            VideoError: if the clip cannot be decoded.
        """

    @abstractmethod
    def replace_weights(self, weights: Weights) -> None:
        """Put the given weights in the place of those in use, unverified; see `load_weights`."""

    @abstractmethod
    def verify_weights(self, weights: Weights) -> None:
        """Compare weights in use with those that were given.

        Raises:
            RuntimeError: if one differs, or if none could be compared.
        """

    @abstractmethod
    def sleep(self) -> None:
        """Free the GPU until `wake`: a learner works there. Nothing may be unfinished."""

    @abstractmethod
    def wake(self) -> None:
        """Take the GPU again, with the weights from before."""

    @abstractmethod
    def shutdown(self) -> None:
        """Free what the engine holds; it cannot be used afterwards. Again, it does nothing."""

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[RolloutGroup]:
        """Answer every prompt, in order, when there is nothing else to do.

        Raises:
            RefusedError: if a clip cannot be read, or if a prompt and its answer do not fit into
                `rollout.max_model_len`.
        """
        assert self.num_unfinished == 0, "the engine is at work on other prompts"
        groups: dict[str, RolloutGroup] = {}
        try:
            self.add(prompts, settings)
            while self.num_unfinished:
                groups |= {group.prompt.prompt_id: group for group in self.step()}
        except BaseException:
            self.forget()
            raise
        if refused := self.take_refused():
            raise RefusedError(refused)
        return [groups[prompt.prompt_id] for prompt in prompts]

    def forget(self) -> None:
        """Forget what was not finished, and what was refused."""
        self.clear()
        self._refused.clear()

    def take_refused(self) -> list[Refusal]:
        """The prompts that were refused since the last call."""
        refused, self._refused = self._refused, []
        return refused

    @contextmanager
    def refusing(self, prompt: Prompt) -> Iterator[None]:
        """Refuse a prompt if the block finds out that its clip is at fault."""
        try:
            yield
        except tuple(BAD_DATA) as error:
            reason = next(name for kind, name in BAD_DATA.items() if isinstance(error, kind))
            self._refused.append(Refusal(prompt, reason, str(error)))

    def load_weights(self, weights: Weights, policy_version: int) -> None:
        """Replace all weights by those given under their Hugging Face names, and verify them.

        An engine that was started for adapters is given these alone, under the learner's names.
        A tied output layer need not be given. Caches that depend on weights are emptied; answers
        that are being generated go on with the new weights, their tokens so far computed again.
        After an error the engine's weights are undefined.

        Raises:
            ValueError: for an unknown name, or a weight that is missing.
            RuntimeError: if a weight in use afterwards is not the one that was given.
        """
        self.replace_weights(weights)
        self.verify_weights(weights)
        self._policy_version = policy_version

    def check_length(self, prompt: Prompt, num_prompt_tokens: int, max_tokens: int) -> None:
        """Refuse a prompt that leaves no room for its answer.

        Raises:
            PromptTooLongError: naming the clip, the lengths and the settings to change.
        """
        if num_prompt_tokens + max_tokens > self.max_model_len:
            plan = prompt.plan
            raise PromptTooLongError(
                f"clip {prompt.clip_id!r}: {num_prompt_tokens} prompt tokens "
                f"({plan.num_frames} frames of {plan.width}x{plan.height}) and {max_tokens} of the "
                f"answer exceed rollout.max_model_len={self.max_model_len}; raise it, or lower "
                "video.fps, video.max_frames, video.max_pixels or rollout.max_response_tokens"
            )


class QwenVLEngine(Engine):
    """What engines that run a Qwen-VL checkpoint share: its inputs, frames, lengths and dtype.

    Args:
        model_path: Folder of the checkpoint.
        rollout_cfg: Sizes and sampling.
        video_cfg: Where frames are cached.
        device: Where to compute.
        dtype: Dtype of computation; float32 on a CPU and bfloat16 on a GPU by default.
        lora: Given if `load_weights` brings adapters of this make, not all weights.
    """

    def __init__(
        self,
        model_path: str | Path,
        rollout_cfg: RolloutConfig,
        video_cfg: VideoConfig,
        *,
        device: Literal["cpu", "cuda"],
        dtype: Literal["float32", "bfloat16"] | None,
        lora: LoraConfig | None,
    ) -> None:
        super().__init__(rollout_cfg.max_model_len)
        self.inputs = QwenVLInputs(model_path)
        self.frames = FrameCache.of(video_cfg)
        self.lora = lora
        default = "float32" if device == "cpu" else "bfloat16"
        self.dtype = dtype_named(dtype or default)

    def prefetch(self, plan: FramePlan) -> None:
        """Decode a clip into the node's frame cache; see `Engine.prefetch`."""
        self.frames.get_all(plan)

    def rollout(
        self,
        prompt: Prompt,
        index: int,
        *,
        token_ids: Sequence[int],
        log_probs: Sequence[float],
        policy_version: int,
    ) -> Rollout:
        """Answer number `index` to a prompt, of these tokens: its text, and how it ended."""
        return make_rollout(
            prompt,
            index,
            token_ids=token_ids,
            log_probs=log_probs,
            text=self.inputs.decode_answer(token_ids),
            is_stopped=self.inputs.has_ended(token_ids),
            policy_version=policy_version,
            last_policy_version=self.policy_version,
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

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

from actrep_ray.types import Prompt, Rollout, RolloutGroup, RolloutStatus

Weights = Mapping[str, "np.ndarray | torch.Tensor"]


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

    @property
    def policy_version(self) -> int:
        """Version of the weights in use; 0 are those of the checkpoint."""
        ...

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[RolloutGroup]:
        """Answer every prompt, in order.

        Raises:
            ValueError: if a prompt and its answer do not fit into `rollout.max_model_len`.
        """
        ...

    def load_weights(self, weights: Weights, policy_version: int) -> None:
        """Replace the weights by those given under their Hugging Face names.

        A tied output layer need not be given. Caches that depend on weights are emptied.

        Raises:
            ValueError: for an unknown name or shape, or a weight that is missing.
        """
        ...

    def checksums(self) -> dict[str, float]:
        """Sum of magnitudes of a few of the weights in use, by Hugging Face name."""
        ...

    def shutdown(self) -> None:
        """Free what the engine holds; it cannot be used afterwards."""
        ...


def make_rollout(
    prompt: Prompt,
    index: int,
    *,
    token_ids: Sequence[int],
    log_probs: Sequence[float],
    text: str,
    is_stopped: bool,
    policy_version: int,
) -> Rollout:
    """Answer number `index` to a prompt.

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
    )
    assert rollout.token_ids.shape == rollout.rollout_log_probs.shape
    if not np.isfinite(rollout.rollout_log_probs).all():
        raise ValueError(
            f"{rollout.rollout_id}: a sampled token has a log-probability that is not finite "
            f"(policy version {policy_version}); the weights hold NaN or infinity"
        )
    return rollout


def checksum(weight: torch.Tensor) -> float:
    """Sum of magnitudes in float64, the same on both sides of a transfer."""
    return float(weight.detach().double().abs().sum())


def is_checked(name: str) -> bool:
    """Whether a weight, by its Hugging Face name, is one of those that are verified after a push.

    These are tensors that no engine packs, fuses or casts: norms of the language model and of the
    vision tower, and the token embedding.
    """
    return name.endswith(("embed_tokens.weight", "norm.weight", "layernorm.weight", "ln_q.weight"))

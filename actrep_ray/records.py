"""What travels between the driver and the workers: frozen records with ids and small arrays.

Pixels never do: a prompt carries a frame plan, and whoever needs the frames reads them from its
node's frame cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from data_prep.files import DataError
from data_prep.video import FramePlan, VideoError

Reading = int | str
"""What a task reads in an answer: a count, the name of a class."""

Claims = Mapping[str, Reading | None]
"""What an answer writes of its reading in each place where it can, by the task's name for it."""


class PromptTooLongError(DataError):
    """A prompt and its answer do not fit into what the engine takes; the message names the clip."""


class PromptRefusedError(DataError):
    """The engine's library does not take a prompt; the message names the clip and says why."""


@dataclass(frozen=True)
class Prompt:
    """One video clip and one question about it.

    Attributes:
        prompt_id: Unique within a run: the same clip issued twice has two ids.
        clip_id: The clip of the data file.
        question: Text asked about the clip.
        plan: The frames to show.
        stratum: Name of the count stratum that the sampler drew it for.
        num_refills: How often its slot of the step was asked before about another clip.
        attempt: How often it was given before to a worker that was lost: of the answers, only those
            to the latest attempt count.
        row_id: The row of the data file that the clip is, or was cut out of.
    """

    prompt_id: str
    clip_id: str
    question: str
    plan: FramePlan
    stratum: str = ""
    num_refills: int = 0
    attempt: int = 0
    row_id: str = ""


BAD_DATA = {
    VideoError: "unreadable_video",
    PromptTooLongError: "prompt_too_long",
    PromptRefusedError: "prompt_refused",
}
"""What is wrong with a row of the data, by the error that tells it."""


@dataclass(frozen=True)
class Refusal:
    """A prompt that cannot be used, by the fault of its clip.

    Attributes:
        prompt: What was asked.
        reason: A value of `BAD_DATA`.
        message: In words.
    """

    prompt: Prompt
    reason: str
    message: str


class RefusedError(DataError):
    """Prompts cannot be used, and whoever asked has no others for them.

    Args:
        refused: Which, and why.
    """

    def __init__(self, refused: Sequence[Refusal]) -> None:
        self.refused = tuple(refused)
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        super().__init__(f"{refused[0].message}{more}")

    def __reduce__(self) -> tuple[type["RefusedError"], tuple[tuple[Refusal, ...]]]:
        """It may be raised by a worker, and travels by its arguments, not by its message."""
        return type(self), (self.refused,)


class RolloutStatus(StrEnum):
    """How a rollout ended."""

    STOPPED = "stopped"  # the model ended its answer
    TRUNCATED = "truncated"  # max_response_tokens were used up


@dataclass(frozen=True)
class Rollout:
    """One generated answer.

    Attributes:
        rollout_id: `prompt_id` and the position in the group.
        token_ids: The answer's tokens, the end token included if it was generated. int32 [R]
        rollout_log_probs: Log-probability of each token when it was sampled. float32 [R]
        text: The whole answer: what the chat template opened and what was decoded, special tokens
            included but for the one that ended it.
        status: How it ended.
        policy_version: Version of the weights that sampled its first token, or an older one that
            was in use when the engine was given the prompt.
        last_policy_version: Version that sampled its last token, where weights were replaced while
            it was generated; else None.
    """

    rollout_id: str
    token_ids: np.ndarray
    rollout_log_probs: np.ndarray
    text: str
    status: RolloutStatus
    policy_version: int
    last_policy_version: int | None = None


@dataclass(frozen=True)
class RolloutGroup:
    """The G answers to one prompt, scored and weighed as they pass through the driver.

    Attributes:
        prompt: What was asked.
        rollouts: The answers, G of them.
        num_prompt_tokens: Length of the prompt as the engine saw it, visual tokens included.
        rewards: What advantages compare, as `reward.combine` says. float32 [G]; empty until scored
        reward_parts: Each named part of the reward, float32 [G], NaN where it did not apply.
        advantages: Group-relative advantage of each answer. float32 [G]; empty until assigned
        totals: What each answer earned: the weighted sum of its parts, in [0, 1]. float32 [G];
            empty until scored
        failure: Why it could not be scored, for example "reward_raised"; its rewards are NaN then.
        readings: What the task reads in each answer, None where it cannot be read; empty until
            scored.
        claims: What each answer writes, from which its reading is chosen; empty until scored.
        credit: Advantage of a token of its own, float32 [R_i] of each answer, NaN where it has that
            of its answer; empty: no token has one.
        contrast: Answers about the same clip with its frames shuffled, which nothing is trained on.
    """

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    num_prompt_tokens: int
    rewards: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    reward_parts: dict[str, np.ndarray] = field(default_factory=dict)
    advantages: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    totals: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    failure: str = ""
    readings: tuple[Reading | None, ...] = ()
    claims: tuple[Claims, ...] = ()
    credit: tuple[np.ndarray, ...] = ()
    contrast: "RolloutGroup | None" = None


@dataclass(frozen=True)
class LearnerRow:
    """One prompt with its answers, as the learner trains on it: `[prompt, answer_1 ... answer_G]`.

    Attributes:
        row_id: `prompt_id` (GRPO) or clip id (SFT), for error messages.
        question: Text asked.
        plan: Frames shown; None: the question stands alone (SFT).
        num_prompt_tokens: Length of the prompt as the engine saw it; 0 if no engine was involved.
        responses: int32 [R_i] for each of the G answers.
        advantages: float32 [G]; ones in SFT.
        rollout_log_probs: float32 [R_i] for each answer; empty in SFT.
        rewards: float32 [G], which a KL in the reward is taken off; empty in SFT.
        is_truncated: bool [G], answers that were cut off at their token limit; empty in SFT.
        learned: bool [R_i] for each answer, which of its tokens SFT learns; empty: all.
        credit: As of `RolloutGroup`.
    """

    row_id: str
    question: str
    plan: FramePlan | None
    num_prompt_tokens: int
    responses: tuple[np.ndarray, ...]
    advantages: np.ndarray
    rollout_log_probs: tuple[np.ndarray, ...] = ()
    rewards: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    is_truncated: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    learned: tuple[np.ndarray, ...] = ()
    credit: tuple[np.ndarray, ...] = ()

    def token_advantages(self, answer: int) -> np.ndarray:
        """The advantage of each token of an answer: float32 [R_i]."""
        whole = np.full(len(self.responses[answer]), self.advantages[answer], np.float32)
        if not self.credit:
            return whole
        own = self.credit[answer]
        return np.where(np.isnan(own), whole, own)

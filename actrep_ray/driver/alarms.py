"""Alarms of learning: what lets a run go on while nothing comes of it.

An alarm is asked after each step, when that step's metrics are written. What it remembers is part
of a checkpoint, so that a run which is cut short again and again does not begin to count anew.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from actrep_ray.config import ConfigError, Recipe
from actrep_ray.records import RolloutGroup, RolloutStatus

_REMEDIES = {
    "all_wrong": "the clips are too hard for this model, or its answers are not what the reward "
    "reads: look at some (`rollout/` in TensorBoard); begin from SFT, or raise train.group_size",
    "all_right": "the clips are too easy: train on harder ones",
    "all_equal": "answers earn the same: raise rollout.temperature or train.group_size, or weigh "
    "parts in reward.weights that tell answers apart",
    "tied_best": "the best two answers earn the same: raise train.group_size, or take another "
    "algorithm.advantage",
    "too_hard": "widen train.pass_rate_window",
    "too_easy": "widen train.pass_rate_window",
    "all_truncated": "raise rollout.max_response_tokens",
    "best_truncated": "raise rollout.max_response_tokens",
    "unreadable_video": "videos cannot be read: see quarantine.jsonl in the run's folder",
    "prompt_too_long": "prompts do not fit: see quarantine.jsonl in the run's folder",
    "prompt_refused": "the engine refuses prompts: see quarantine.jsonl in the run's folder",
}
_UNREAD = (
    "answers cannot be read: compare some (`rollout/` in TensorBoard) with data.dialect, or begin "
    "from SFT"
)
_OTHER = "what the messages above say"

_log = logging.getLogger(__name__)


class LearningAlarmError(ConfigError):
    """A run learns nothing; the message says since when, why, and which setting to change."""


class UntrainedSteps:
    """Steps in a row that trained on no group.

    At `train.max_untrained_steps` of them the run ends, with a checkpoint; with
    `train.on_untrained=log` it says so, and again each time that they are as many more.

    Args:
        recipe: Settings.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._limit = recipe.train.max_untrained_steps
        self._ends_run = recipe.train.on_untrained == "stop"
        self._num_steps = 0
        self._dropped = Counter[str]()
        self._answers = Counter[str]()
        self._message = ""

    @property
    def has_rung(self) -> bool:
        """Whether the run is to end."""
        return bool(self._message)

    def end_run(self) -> None:
        """Say why the run ends, if it is to.

        Raises:
            LearningAlarmError: if it is.
        """
        if self._message:
            raise LearningAlarmError(self._message)

    def look(
        self, step: int, groups: Sequence[RolloutGroup], num_trained: int, dropped: Counter[str]
    ) -> None:
        """Count a step.

        Args:
            step: Its number.
            groups: All groups of the step.
            num_trained: How many are trained on.
            dropped: How many are not, by reason, and how many prompts have no group.
        """
        if num_trained:
            self._num_steps = 0
            self._dropped.clear()
            self._answers.clear()
            return
        self._num_steps += 1
        self._dropped += dropped
        for group in groups:
            self._answers["all"] += len(group.rollouts)
            self._answers["unread"] += sum(reading is None for reading in group.readings)
            self._answers["cut off"] += sum(
                rollout.status is RolloutStatus.TRUNCATED for rollout in group.rollouts
            )
        if self._num_steps % self._limit == 0:
            message = self._describe(step)
            if self._ends_run:
                self._message = message
            else:
                _log.error("%s", message)

    def state_dict(self) -> dict[str, Any]:
        """What was counted since the last step that trained, as JSON-able values."""
        return {
            "num_steps": self._num_steps,
            "dropped": dict(self._dropped),
            "answers": dict(self._answers),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        self._num_steps = state["num_steps"]
        self._dropped, self._answers = Counter(state["dropped"]), Counter(state["answers"])

    def _describe(self, step: int) -> str:
        dropped, answers = self._dropped, self._answers
        reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.most_common())
        return (
            f"steps {step - self._num_steps + 1} to {step} trained on no group: of "
            f"{dropped.total()} all were dropped ({reasons}); of {answers['all']} answers "
            f"{answers['unread']} could not be read and {answers['cut off']} were cut off. "
            f"Likely: {self._remedy()}. To go on all the same, raise train.max_untrained_steps="
            f"{self._limit} or set train.on_untrained=log"
        )

    def _remedy(self) -> str:
        if not self._dropped:
            return _OTHER
        [(reason, _)] = self._dropped.most_common(1)
        if reason in ("all_wrong", "all_equal"):
            if 2 * self._answers["cut off"] > self._answers["all"]:
                return f"answers do not end: {_REMEDIES['all_truncated']}, or begin from SFT"
            if 2 * self._answers["unread"] > self._answers["all"]:
                return _UNREAD
        return _REMEDIES.get(reason, _OTHER)

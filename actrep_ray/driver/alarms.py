"""Alarms of learning: what lets a run go on while nothing comes of it.

    UntrainedSteps   no group was trained on; ends the run
    Decline          what is trained goes wrong, by the curves of the run; warns

An alarm is asked after each step, when that step's metrics are written. What it remembers is part
of a checkpoint, so that a run which is cut short again and again does not begin to count anew.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actrep_ray.config import ConfigError, Recipe
from actrep_ray.records import Reading, RolloutGroup, RolloutStatus
from actrep_ray.tasks.base import PARSE_RATE, Task
from rewards.reference import Reference

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

_REWARD, _ENTROPY = "reward/mean", "learner/entropy"
_LENGTH, _PARSED = "rollout/response_tokens", f"train/{PARSE_RATE.name}"
_CURVES = (_REWARD, _ENTROPY, _LENGTH, _PARSED)

_LEFT_OF_ENTROPY = 0.1  # of what it was at the start
_LEFT_OF_LENGTH = 0.5
_LOST_PARSED = 0.1
_MOST_ONE = 0.5  # share of answers that say one thing, where half as many clips are so
_COMPARED = 5  # the start and the end that are compared are this share of the window

_DECLINES = {
    "reward_flat": "raise learner.lr or train.group_size, see by `actrep headroom` whether the "
    "clips are too hard or too easy; if it is as good as it gets, checkpoint.patience ends a run",
    "entropy_gone": "answers hardly differ any more: raise rollout.temperature or "
    "algorithm.entropy_coef, or lower learner.lr",
    "answers_shrinking": "reasoning is being left out: raise the weight of what rewards it in "
    "reward.weights, or algorithm.kl_coef",
    "one_reading": "the model no longer looks: begin from more SFT, keep sampling.power=0, or show "
    "more with video.fps",
    "parse_rate_falling": "raise the weight of the form in reward.weights, or algorithm.kl_coef; "
    "lower learner.lr",
}

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


class Decline:
    """Curves of a run that say that its learning goes wrong; each is told with its remedy.

        reward_flat          the newer half of a window's rewards has no higher mean than the older
                             one; windows do not overlap
        entropy_gone         less than a tenth is left of the first steps' entropy
        answers_shrinking    answers are less than half as long as in the first steps, where the
                             recipe asks for reasoning
        one_reading          most answers say one number (or class), and it is right for less than
                             half as many
        parse_rate_falling   the share that can be read is 0.1 below that of the first steps

    The window has `train.alarm_steps` steps; the first and the last steps that are compared are a
    fifth of it. Steps that trained on nothing have no entropy, and are left out of its curve.

    Args:
        recipe: Settings.
        task: Says what is right.
    """

    def __init__(self, recipe: Recipe, task: Task) -> None:
        self._window = recipe.train.alarm_steps
        self._reasons = recipe.data.reasoning != "none"
        self._compared = max(self._window // _COMPARED, 1)
        self._task = task
        self._first: dict[str, list[float]] = {key: [] for key in _CURVES}
        self._last: dict[str, list[float]] = {key: [] for key in _CURVES}
        self._said: list[dict[str, int]] = []
        self._true: list[dict[str, int]] = []
        self._told: dict[str, int] = {}  # the step at which each was told last

    def look(
        self,
        step: int,
        metrics: Mapping[str, float],
        groups: Sequence[RolloutGroup],
        labels: Mapping[str, Reference],
    ) -> dict[str, float]:
        """Take in a step and tell what is wrong, again each window for as long as it lasts.

        Args:
            step: Its number.
            metrics: Of the step.
            groups: All groups of the step.
            labels: Of their clips.

        Returns:
            `alarms/NAME`, 1 where it rings; {} with `train.alarm_steps=0`.
        """
        if not self._window:
            return {}
        for key in _CURVES:
            self._add(key, metrics.get(key, math.nan))
        readings = [reading for group in groups for reading in group.readings]
        self._said.append(_histogram(readings))
        self._true.append(
            _histogram([self._task.truth(labels[group.prompt.clip_id]) for group in groups])
        )
        del self._said[: -self._compared], self._true[: -self._compared]
        found = self._find(step)
        for name, words in found.items():
            if words and step - self._told.get(name, -self._window) >= self._window:
                self._told[name] = step
                _log.warning("step %d: %s. Likely: %s", step, words, _DECLINES[name])
        return {f"alarms/{name}": float(bool(words)) for name, words in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """The curves that it compares, as JSON-able values."""
        return {
            "first": self._first,
            "last": self._last,
            "said": self._said,
            "true": self._true,
            "told": self._told,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on comparing."""
        self._first, self._last = dict(state["first"]), dict(state["last"])
        self._said, self._true = list(state["said"]), list(state["true"])
        self._told = dict(state["told"])

    def _add(self, key: str, value: float) -> None:
        if not math.isfinite(value):
            return
        if len(self._first[key]) < self._compared:
            self._first[key].append(value)
        self._last[key].append(value)
        del self._last[key][: -self._window]

    def _find(self, step: int) -> dict[str, str]:
        """What rings, in words; empty words for what does not."""
        found = dict.fromkeys(_DECLINES, "")
        older, newer = np.array_split(np.array(self._last[_REWARD]), 2)
        is_whole = len(older) + len(newer) == self._window and step % self._window == 0
        if is_whole and newer.size and newer.mean() <= older.mean():
            found["reward_flat"] = (
                f"the reward of the last {len(newer)} steps is no higher than that of the "
                f"{len(older)} before ({newer.mean():.3f}, {older.mean():.3f})"
            )
        begin, now = self._ends(_ENTROPY)
        if now < _LEFT_OF_ENTROPY * begin:
            found["entropy_gone"] = f"the entropy went from {begin:.3g} to {now:.3g}"
        begin, now = self._ends(_LENGTH)
        if self._reasons and now < _LEFT_OF_LENGTH * begin:
            found["answers_shrinking"] = f"answers went from {begin:.0f} to {now:.0f} tokens"
        begin, now = self._ends(_PARSED)
        if now < begin - _LOST_PARSED:
            found["parse_rate_falling"] = f"of the answers {begin:.0%} could be read, now {now:.0%}"
        found["one_reading"] = self._one_reading()
        return found

    def _ends(self, key: str) -> tuple[float, float]:
        """The means of the first and of the last steps; NaN until they are apart."""
        if len(self._last[key]) < min(2 * self._compared, self._window):
            return math.nan, math.nan
        return float(np.mean(self._first[key])), float(np.mean(self._last[key][-self._compared :]))

    def _one_reading(self) -> str:
        said, true = (
            sum(map(Counter, self._said), Counter()),
            sum(map(Counter, self._true), Counter()),
        )
        if len(self._said) < self._compared or not said:
            return ""
        [(reading, number)] = said.most_common(1)
        share, of_clips = number / said.total(), true[reading] / true.total()
        if share <= _MOST_ONE or of_clips >= share / 2:
            return ""
        return (
            f"{share:.0%} of the answers are {reading}, which is right for {of_clips:.0%} of clips"
        )


def _histogram(readings: Sequence[Reading | None]) -> dict[str, int]:
    """How often each was said, by its text: JSON has no other keys."""
    return dict(Counter(str(reading) for reading in readings if reading is not None))

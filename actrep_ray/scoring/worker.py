"""A reward worker and what it is sent: plain classes, without Ray.

Only text and labels travel, never token ids or pixels.
"""

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType

import numpy as np

from actrep_ray.config import ConfigError, Recipe
from actrep_ray.records import Claims, Reading, RolloutGroup
from actrep_ray.tasks.loading import load_task
from rewards.check import check_options
from rewards.compose import RewardSpec, Score, group_rewards, score_response
from rewards.contract import Part, RewardError
from rewards.grammar.read import ParsedResponse, parse
from rewards.reference import Reference


@dataclass(frozen=True)
class GroupTexts:
    """One group as a reward worker needs it.

    Attributes:
        rollout_ids: Of the G answers.
        texts: The G answers.
        references: What is known about the right one, G times: they differ in `num_tokens`.
    """

    rollout_ids: tuple[str, ...]
    texts: tuple[str, ...]
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class GroupScores:
    """The rewards of one group.

    Attributes:
        rewards: As `reward.combine` says. float32 [G]
        totals: The weighted sums, whatever it says. float32 [G]
        parts: Each part by name, float32 [G], NaN where it did not apply.
        readings: What the task reads in each answer; None where it cannot be read.
        claims: What each answer writes in each place.
    """

    rewards: np.ndarray
    totals: np.ndarray
    parts: dict[str, np.ndarray]
    readings: tuple[Reading | None, ...]
    claims: tuple[Claims, ...]


@dataclass(frozen=True)
class GroupFailure:
    """A group that could not be scored.

    Attributes:
        reason: "reward_raised", "reward_bad_value", "reward_timeout" or "reward_worker_died".
        message: Names the reward and the rollout.
    """

    reason: str
    message: str


class RewardWorker:
    """Scores groups with one composition of rewards.

    Args:
        spec: The composition.
        task: Name of the task, which says how answers are read.
    """

    def __init__(self, spec: RewardSpec, task: str) -> None:
        self.spec = spec
        self._task = load_task(task)
        self._scoring: tuple[int, str, float] | None = None  # thread, rollout, since when

    def ready(self) -> bool:
        """True, once the worker has started."""
        return True

    def score(self, groups: Sequence[GroupTexts]) -> list[GroupScores | GroupFailure]:
        """Score groups, in order; one that fails does not keep the others from their scores."""
        return [self._score_group(group) for group in groups]

    def status(self) -> tuple[str, str] | None:
        """The rollout that is scored now, and for how long in which function; None when idle."""
        if self._scoring is None:
            return None
        thread, rollout_id, since = self._scoring
        where = _describe_stack(sys._current_frames().get(thread))
        return rollout_id, f"{rollout_id} for {time.monotonic() - since:.1f} s, {where}"

    def _score_group(self, group: GroupTexts) -> GroupScores | GroupFailure:
        at = group.rollout_ids[0]
        scores: list[Score] = []
        responses: list[ParsedResponse] = []
        try:
            for at, text, reference in zip(
                group.rollout_ids, group.texts, group.references, strict=True
            ):
                scored, response = self._score_one(at, text, reference)
                scores.append(scored)
                responses.append(response)
            rewards = group_rewards(scores, self.spec).astype(np.float32)
        except RewardError as error:
            return GroupFailure(f"reward_{error.reason}", f"rollout {at}: {error}")
        parts = {
            part.name: np.array(
                [np.nan if s.parts[part.name] is None else s.parts[part.name] for s in scores],
                np.float32,
            )
            for part in self.spec.parts
        }
        totals = np.array([one.total for one in scores], np.float32)
        readings = tuple(self._task.read(response) for response in responses)
        claims = tuple(self._task.claims(response) for response in responses)
        return GroupScores(rewards, totals, parts, readings, claims)

    def _score_one(
        self, rollout_id: str, text: str, reference: Reference
    ) -> tuple[Score, ParsedResponse]:
        self._scoring = (threading.get_ident(), rollout_id, time.monotonic())
        try:
            response = parse(text, dialect=self.spec.dialect)
            return score_response(response, reference, self.spec), response
        finally:
            self._scoring = None


def make_spec(recipe: Recipe) -> RewardSpec:
    """The composition of rewards that a recipe asks for.

    Raises:
        ConfigError: naming the reward, its value and what was expected.
    """
    cfg, dialect = recipe.reward, recipe.data.dialect
    try:
        spec = RewardSpec.from_mapping(cfg.weights, combine=cfg.combine, dialect=dialect)
        check_options(spec)
    except ValueError as error:
        raise ConfigError(f"reward.weights: {error}") from error
    return spec


def texts_of(group: RolloutGroup, labels: Mapping[str, Reference], recipe: Recipe) -> GroupTexts:
    """What a worker needs to score a group.

    Raises:
        ValueError: if the group's clip has no labels.
    """
    prompt = group.prompt
    if prompt.clip_id not in labels:
        raise ValueError(f"prompt {prompt.prompt_id}: no labels of clip {prompt.clip_id!r}")
    known = labels[prompt.clip_id]
    references = tuple(
        replace(
            known,
            prompt=prompt.question,
            num_tokens=len(rollout.token_ids),
            max_tokens=recipe.rollout.max_response_tokens,
        )
        for rollout in group.rollouts
    )
    ids = tuple(rollout.rollout_id for rollout in group.rollouts)
    return GroupTexts(ids, tuple(rollout.text for rollout in group.rollouts), references)


def _describe_stack(frame: FrameType | None) -> str:
    """The innermost function of a thread, and the reward that called it."""
    if frame is None:
        return "in a thread that has ended"
    code = frame.f_code
    where = f"in {code.co_name} ({code.co_filename}:{frame.f_lineno})"
    caller: FrameType | None = frame
    while caller is not None:
        part = caller.f_locals.get("part")
        if isinstance(part, Part):
            return f"reward {part.name!r}, {where}"
        caller = caller.f_back
    return where

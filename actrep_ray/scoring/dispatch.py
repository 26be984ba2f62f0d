"""What is scored together, in which call, and what a reward worker has to do."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from actrep_ray.cluster.supervision import Loss
from actrep_ray.records import RolloutGroup
from actrep_ray.scoring.worker import GroupFailure, GroupScores, GroupTexts

OnScored = Callable[[list[RolloutGroup]], None]
Result = GroupScores | GroupFailure

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Request:
    """Groups that are scored together.

    Attributes:
        groups: In the order in which they are given back.
        on_scored: Who gets them.
        results: By the index of the group.
        attempts: By the same, how often a group was with a worker that was lost; a result counts
            only if it is of the latest attempt.
        is_cancelled: Whether nobody waits for them any more.
    """

    groups: list[RolloutGroup]
    on_scored: OnScored
    results: dict[int, Result] = field(default_factory=dict)
    attempts: Counter[int] = field(default_factory=Counter)
    is_cancelled: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether they can be given back."""
        return len(self.results) == len(self.groups) and not self.is_cancelled

    def scored_groups(self, part_names: Sequence[str]) -> list[RolloutGroup]:
        """The groups with their results; `part_names` are those of the composition."""
        return [
            _with_result(group, self.results[index], part_names)
            for index, group in enumerate(self.groups)
        ]


@dataclass(frozen=True, eq=False)
class Item:
    """One group of a request, as it is given to a worker.

    Attributes:
        request: What it is of.
        index: Its place in it.
        texts: What the worker needs.
        attempt: How often it was given before to a worker that was lost.
        num_suspected: How often that worker was, or may have been, at work on it.
    """

    request: Request
    index: int
    texts: GroupTexts
    attempt: int = 0
    num_suspected: int = 0

    def again(self, *, is_suspect: bool) -> "Item":
        """The same for another worker: what this attempt comes to is refused from now on."""
        self.request.attempts[self.index] = self.attempt + 1
        num_suspected = self.num_suspected + is_suspect
        return replace(self, attempt=self.attempt + 1, num_suspected=num_suspected)

    def settle(self, result: Result) -> bool:
        """Enter a result, unless it is of an older attempt; whether it counts."""
        latest = self.request.attempts[self.index]
        if self.attempt == latest:
            self.request.results[self.index] = result
            return True
        _log.warning(
            "the scores of %s are refused: of attempt %d, expected %d",
            self.request.groups[self.index].prompt.prompt_id,
            self.attempt,
            latest,
        )
        return False


Items = tuple[Item, ...]
"""The groups of one call."""


@dataclass(eq=False)
class Member:
    """A worker as its pool knows it.

    Attributes:
        index: Its number.
        handle: Of the actor; None until it is started.
        deadline: Until when it has to have started, or scored the oldest of `batches`.
        one_by_one: Whether it gets a call at a time. Its end may come before the reply of the call
            that it finished last, and the blame would be that call's.
        is_ready: Whether it has started.
        next_look: When somebody looks whether its deadline has passed.
        batches: Calls that are under way, oldest first.
        held: Calls that it gets next.
        asked: The overdue call for which it is asked where it is.
        lost: Those of `batches` that were reported as lost.
        suspect: The first loss that was reported.
        loss: The same, when Ray knows the cause.
    """

    index: int
    handle: Any
    deadline: float
    one_by_one: bool = False
    is_ready: bool = False
    next_look: float = math.inf
    batches: list[Items] = field(default_factory=list)
    held: list[Items] = field(default_factory=list)
    asked: Items | None = None
    lost: set[Items] = field(default_factory=set)
    suspect: Loss | None = None
    loss: Loss | None = None


def with_scores(group: RolloutGroup, scores: GroupScores) -> RolloutGroup:
    """The group with what a reward worker said of its answers."""
    return replace(
        group,
        rewards=scores.rewards,
        totals=scores.totals,
        reward_parts=scores.parts,
        readings=scores.readings,
        claims=scores.claims,
    )


def _with_result(group: RolloutGroup, result: Result, part_names: Sequence[str]) -> RolloutGroup:
    if isinstance(result, GroupScores):
        return with_scores(group, result)
    unknown = np.full(len(group.rollouts), np.nan, np.float32)
    parts = dict.fromkeys(part_names, unknown)
    return replace(
        group, rewards=unknown, totals=unknown, reward_parts=parts, failure=result.reason
    )

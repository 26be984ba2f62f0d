"""The reward workers of a run: answers in, rewards out, on CPU.

    groups ─► batches ─► reward worker 0 ─┐
                    └──► reward worker 1 ─┴─► groups with rewards and reward_parts, in order

Only text and labels travel, never token ids or pixels. `submit` hands over a group as soon as its
answers are there, so that scoring overlaps with generating; `collect` gives what was submitted.

A reward that raises, hangs, or returns anything but a number in its range stops the run with the
name of the reward and of the rollout. Nothing is scored 0 because its scoring failed.
"""

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Self

import numpy as np

from actrep_ray.config import Recipe
from actrep_ray.types import Labels, RolloutGroup
from rewards.compose import Part, RewardError, RewardSpec, Score, group_rewards, score
from rewards.reference import Reference, usable_cycles

_BATCHES_PER_WORKER = 4  # of `score`: small enough that a slow batch does not hold up the rest
_STATUS_TIMEOUT_S = 5.0
_START_TIMEOUT_S = 120.0


class ScoringError(RuntimeError):
    """Answers could not be scored; the message names the reward or worker, and the rollout."""


@dataclass(frozen=True)
class ScoringTask:
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
class ScoredTask:
    """The rewards of one group.

    Attributes:
        rewards: As `reward.combine` says. float32 [G]
        parts: Each part by name, float32 [G], NaN where it did not apply.
    """

    rewards: np.ndarray
    parts: dict[str, np.ndarray]


class RewardWorker:
    """Scores groups with one composition of rewards.

    Args:
        spec: The composition.
    """

    def __init__(self, spec: RewardSpec) -> None:
        self.spec = spec
        self._scoring: tuple[int, str, float] | None = None  # thread, rollout, since when

    def ready(self) -> bool:
        """True, once the worker has started."""
        return True

    def score(self, tasks: Sequence[ScoringTask]) -> list[ScoredTask]:
        """Score groups, in order.

        Raises:
            ScoringError: naming the reward that failed and the rollout that it failed at.
        """
        return [self._score_group(task) for task in tasks]

    def status(self) -> str | None:
        """What is being scored now, for how long, and in which function; None when idle."""
        if self._scoring is None:
            return None
        thread, rollout_id, since = self._scoring
        where = _describe_stack(sys._current_frames().get(thread))
        return f"{rollout_id} for {time.monotonic() - since:.1f} s, {where}"

    def _score_group(self, task: ScoringTask) -> ScoredTask:
        scores = [
            self._score_one(*item)
            for item in zip(task.rollout_ids, task.texts, task.references, strict=True)
        ]
        parts = {
            part.name: np.array(
                [np.nan if s.parts[part.name] is None else s.parts[part.name] for s in scores],
                np.float32,
            )
            for part in self.spec.parts
        }
        return ScoredTask(group_rewards(scores, self.spec).astype(np.float32), parts)

    def _score_one(self, rollout_id: str, text: str, reference: Reference) -> Score:
        self._scoring = (threading.get_ident(), rollout_id, time.monotonic())
        try:
            return score(text, reference, self.spec)
        except RewardError as error:
            raise ScoringError(f"rollout {rollout_id}: {error}") from error
        finally:
            self._scoring = None


class RewardPool:
    """Started reward workers; `start` makes one.

    Args:
        recipe: Settings.
        workers: Handles of the actors.
    """

    def __init__(self, recipe: Recipe, workers: Sequence[Any]) -> None:
        self.recipe = recipe
        self.workers = list(workers)
        self._timeout_s = recipe.reward.timeout_s
        self._running: dict[Any, tuple[int, float]] = {}  # call -> worker, deadline
        self._submitted: list[tuple[Any, list[RolloutGroup]]] = []
        self._results: dict[Any, list[ScoredTask]] = {}

    @classmethod
    def start(cls, recipe: Recipe) -> Self:
        """Start the workers of `recipe.reward` in the current cluster.

        Raises:
            ValueError: for rewards that do not exist or cannot be called, before a worker starts.
            ScoringError: if a worker dies at its start.
            TimeoutError: if they are not ready in time.
        """
        spec = make_spec(recipe)
        import ray

        actor = ray.remote(**_actor_options(recipe, spec))(RewardWorker)
        pool = cls(recipe, [actor.remote(spec) for _ in range(recipe.reward.num_workers)])
        try:
            pool._wait_ready()
        except BaseException:
            pool.shutdown()
            raise
        return pool

    def score(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Labels]
    ) -> list[RolloutGroup]:
        """Score groups; they come back in order with `rewards` and `reward_parts`.

        Args:
            groups: Groups with answers.
            labels: By clip id; each group's clip must be among them.

        Raises:
            ScoringError: naming the reward that failed and the rollout that it failed at.
            TimeoutError: if a batch takes longer than `reward.timeout_s`, naming where it hangs.
        """
        assert not self._submitted, "collect what was submitted before calling score"
        size = -(-len(groups) // (len(self.workers) * _BATCHES_PER_WORKER))
        for first in range(0, len(groups), max(size, 1)):
            self._submit(groups[first : first + size], labels)
        return self.collect()

    def submit(self, group: RolloutGroup, labels: Mapping[str, Labels]) -> None:
        """Start to score one group, while others are still generated."""
        self._submit([group], labels)

    def collect(self) -> list[RolloutGroup]:
        """Wait for all that was submitted; groups come in the order of their submission.

        Raises:
            ScoringError: as `score` does; the pool is of no use afterwards.
            TimeoutError: likewise.
        """
        try:
            self._extend_deadlines()  # what was submitted early has waited for its turn
            while self._running:
                self._wait_one()
            return [
                replace(group, rewards=scored.rewards, reward_parts=scored.parts)
                for ref, groups in self._submitted
                for group, scored in zip(groups, self._results[ref], strict=True)
            ]
        finally:
            self._running, self._submitted, self._results = {}, [], {}

    def shutdown(self) -> None:
        """End the workers; the pool cannot be used afterwards."""
        import ray

        for worker in self.workers:
            ray.kill(worker)
        self.workers = []

    def _submit(self, groups: Sequence[RolloutGroup], labels: Mapping[str, Labels]) -> None:
        tasks = [make_task(group, labels, self.recipe) for group in groups]
        load = [0] * len(self.workers)
        for number, _ in self._running.values():
            load[number] += 1
        number = int(np.argmin(load))
        ref = self.workers[number].score.remote(tasks)
        self._running[ref] = (number, time.monotonic() + self._timeout_s)
        self._submitted.append((ref, list(groups)))

    def _wait_one(self) -> None:
        import ray

        deadline = min(deadline for _, deadline in self._running.values())
        left = max(deadline - time.monotonic(), 0.0)
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=left)
        if not done:
            raise TimeoutError(self._explain_timeout())
        number, _ = self._running.pop(done[0])
        try:
            self._results[done[0]] = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ScoringError):
                raise ScoringError(f"reward worker {number}: {cause}") from error
            raise
        except ray.exceptions.ActorDiedError as error:
            lost = next(groups for ref, groups in self._submitted if ref == done[0])
            raise ScoringError(
                f"reward worker {number} died while it scored the rollouts of "
                f"{', '.join(group.prompt.prompt_id for group in lost[:3])}"
                f"{' and more' if len(lost) > 3 else ''}"
            ) from error
        self._extend_deadlines(number)

    def _extend_deadlines(self, worker: int | None = None) -> None:
        until = time.monotonic() + self._timeout_s
        for ref, (number, _) in self._running.items():
            if worker is None or number == worker:
                self._running[ref] = (number, until)

    def _explain_timeout(self) -> str:
        first = min(deadline for _, deadline in self._running.values())
        late = sorted({number for number, deadline in self._running.values() if deadline <= first})
        return (
            f"waited {self._timeout_s:g} s (reward.timeout_s) for the scores of a batch: "
            + "; ".join(f"reward worker {i} is at {self._ask_status(i)}" for i in late)
        )

    def _ask_status(self, number: int) -> str:
        import ray

        ref = self.workers[number].status.remote()
        done, _ = ray.wait([ref], timeout=_STATUS_TIMEOUT_S)
        if not done:
            return "something that holds up even its second thread"
        try:
            return str(ray.get(ref))
        except ray.exceptions.ActorDiedError:
            return "its end: it died"

    def _wait_ready(self) -> None:
        import ray

        refs = [worker.ready.remote() for worker in self.workers]
        _, waiting = ray.wait(refs, num_returns=len(refs), timeout=_START_TIMEOUT_S)
        if waiting:
            raise TimeoutError(
                f"waited {_START_TIMEOUT_S:g} s for {len(refs)} reward workers to start, "
                f"{len(waiting)} did not: are there {self.recipe.reward.num_cpus:g} CPUs "
                "(reward.num_cpus) left for each?"
            )
        for number, ref in enumerate(refs):
            try:
                ray.get(ref)
            except ray.exceptions.RayActorError as error:
                raise ScoringError(f"reward worker {number} died at its start: {error}") from error


def make_spec(recipe: Recipe) -> RewardSpec:
    """The composition of rewards that a recipe asks for.

    Raises:
        ValueError: naming the reward, its value and what was expected.
    """
    cfg = recipe.reward
    return RewardSpec.from_mapping(cfg.weights, combine=cfg.combine, dialect=recipe.data.dialect)


def make_task(group: RolloutGroup, labels: Mapping[str, Labels], recipe: Recipe) -> ScoringTask:
    """What a worker needs to score a group.

    Raises:
        ValueError: if the group's clip has no labels.
    """
    prompt = group.prompt
    if prompt.clip_id not in labels:
        raise ValueError(f"prompt {prompt.prompt_id}: no labels of clip {prompt.clip_id!r}")
    known = labels[prompt.clip_id]
    references = tuple(
        Reference(
            count=known.count,
            cycles=usable_cycles(known.count, known.cycles)[0],
            duration_s=known.duration_s,
            label=known.action,
            prompt=prompt.question,
            num_tokens=len(rollout.token_ids),
            max_tokens=recipe.rollout.max_response_tokens,
        )
        for rollout in group.rollouts
    )
    ids = tuple(rollout.rollout_id for rollout in group.rollouts)
    return ScoringTask(ids, tuple(rollout.text for rollout in group.rollouts), references)


def _actor_options(recipe: Recipe, spec: RewardSpec) -> dict[str, Any]:
    # Two threads: one scores, the other says what is being scored when a deadline is missed.
    options: dict[str, Any] = {
        "num_cpus": recipe.reward.num_cpus,
        "max_concurrency": 2,
        "max_restarts": 0,
    }
    if any(":" in part.name for part in spec.parts):  # import a user's rewards as the driver does
        path = os.pathsep.join(entry for entry in sys.path if entry)
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    return options


def _describe_stack(frame: FrameType | None) -> str:
    """The innermost function of a thread, and the reward of `rewards.compose` that called it."""
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

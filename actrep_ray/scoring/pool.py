"""The reward workers of a run: answers in, rewards out, on CPU.

    groups ─► batches ─► reward worker 0 ─┐
                    └──► reward worker 1 ─┴─► groups with rewards and reward_parts, in order

Only text and labels travel, never token ids or pixels. `submit` hands over a group as soon as its
answers are there, so that scoring overlaps with generating; `collect` gives what was submitted.

A reward that raises, hangs, or returns anything but a number in its range is named, with the
rollout. Its group is dropped with the reason (`RolloutGroup.failure`), never scored 0, until more
than `reward.max_failures` groups of the run were; then the run stops. A worker that hangs or dies
is replaced, and what else it held is scored again.
"""

import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Self

import numpy as np

from actrep_ray.config import ConfigError, Recipe
from actrep_ray.records import Labels, RolloutGroup
from rewards.check import check_options
from rewards.compose import RewardSpec, Score, group_rewards, score
from rewards.contract import Part, RewardError
from rewards.reference import Reference, usable_cycles

_BATCHES_PER_WORKER = 4  # of `score`: small enough that a slow batch does not hold up the rest
_STATUS_TIMEOUT_S = 5.0
_START_TIMEOUT_S = 120.0
_STATUS_GROUP = "status"  # threads of a worker that answer while another scores
_log = logging.getLogger(__name__)


class ScoringError(RuntimeError):
    """Answers could not be scored; the message names the reward or worker, and the rollout."""


class ScoringTimeoutError(ScoringError, TimeoutError):
    """A batch was not scored in time; the message names the reward, the rollout and the line."""


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
        counts: What each answer counted; None where it cannot be read.
    """

    rewards: np.ndarray
    parts: dict[str, np.ndarray]
    counts: tuple[int | None, ...]


@dataclass(frozen=True)
class FailedTask:
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
    """

    def __init__(self, spec: RewardSpec) -> None:
        self.spec = spec
        self._scoring: tuple[int, str, float] | None = None  # thread, rollout, since when

    def ready(self) -> bool:
        """True, once the worker has started."""
        return True

    def score(self, tasks: Sequence[ScoringTask]) -> list[ScoredTask | FailedTask]:
        """Score groups, in order; one that fails does not keep the others from their scores."""
        return [self._score_group(task) for task in tasks]

    def status(self) -> tuple[str, str] | None:
        """The rollout that is scored now, and for how long in which function; None when idle."""
        if self._scoring is None:
            return None
        thread, rollout_id, since = self._scoring
        where = _describe_stack(sys._current_frames().get(thread))
        return rollout_id, f"{rollout_id} for {time.monotonic() - since:.1f} s, {where}"

    def _score_group(self, task: ScoringTask) -> ScoredTask | FailedTask:
        at = task.rollout_ids[0]
        scores: list[Score] = []
        try:
            for at, text, reference in zip(
                task.rollout_ids, task.texts, task.references, strict=True
            ):
                scores.append(self._score_one(at, text, reference))
            rewards = group_rewards(scores, self.spec).astype(np.float32)
        except RewardError as error:
            return FailedTask(f"reward_{error.reason}", f"rollout {at}: {error}")
        parts = {
            part.name: np.array(
                [np.nan if s.parts[part.name] is None else s.parts[part.name] for s in scores],
                np.float32,
            )
            for part in self.spec.parts
        }
        return ScoredTask(rewards, parts, tuple(one.count for one in scores))

    def _score_one(self, rollout_id: str, text: str, reference: Reference) -> Score:
        self._scoring = (threading.get_ident(), rollout_id, time.monotonic())
        try:
            return score(text, reference, self.spec)
        finally:
            self._scoring = None


@dataclass(frozen=True)
class _Batch:
    """A call that is under way: of which worker, until when, and the places of its groups."""

    worker: int
    deadline: float
    places: tuple[int, ...]


class RewardPool:
    """Started reward workers; `start` makes one.

    Args:
        recipe: Settings.
        start_worker: Starts one more actor.
    """

    def __init__(self, recipe: Recipe, start_worker: Callable[[], Any]) -> None:
        self.recipe = recipe
        self.failures = Counter[str]()  # groups of the run by reason, against reward.max_failures
        self._start_worker = start_worker
        self._timeout_s = recipe.reward.timeout_s
        self._part_names = [part.name for part in make_spec(recipe).parts]
        self.workers = [start_worker() for _ in range(recipe.reward.num_workers)]
        self._running: dict[Any, _Batch] = {}  # calls, oldest first
        self._held: dict[int, list[tuple[int, ...]]] = {}  # what replaced workers get next
        self._groups: list[RolloutGroup] = []
        self._tasks: list[ScoringTask] = []
        self._results: dict[int, ScoredTask | FailedTask] = {}

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
        pool = cls(recipe, lambda: actor.remote(spec))
        try:
            pool._wait_ready(range(len(pool.workers)))
        except BaseException:
            pool.shutdown()
            raise
        return pool

    def score(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Labels]
    ) -> list[RolloutGroup]:
        """Score groups; they come back in order with `rewards` and `reward_parts`.

        A group that could not be scored has its reason in `failure`, and NaN for rewards.

        Args:
            groups: Groups with answers.
            labels: By clip id; each group's clip must be among them.

        Raises:
            ScoringError: once more than `reward.max_failures` groups of the run could not be
                scored, naming the reward that failed last and the rollout that it failed at; a
                `ScoringTimeoutError` if that took longer than `reward.timeout_s`.
        """
        assert not self._groups, "collect what was submitted before calling score"
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
            ScoringError: as `score` does.
        """
        try:
            self._extend_deadlines()  # what was submitted early has waited for its turn
            while self._running:
                self._wait_one()
            return [
                self._with_result(group, self._results[place])
                for place, group in enumerate(self._groups)
            ]
        finally:
            self._running, self._groups, self._tasks, self._results = {}, [], [], {}
            self._held = {worker: [] for worker in self._held}

    def shutdown(self) -> None:
        """End the workers; the pool cannot be used afterwards."""
        import ray

        for worker in self.workers:
            ray.kill(worker)
        self.workers = []

    # --- sending and receiving

    def _submit(self, groups: Sequence[RolloutGroup], labels: Mapping[str, Labels]) -> None:
        first = len(self._groups)
        self._tasks += [make_task(group, labels, self.recipe) for group in groups]
        self._groups += groups
        load = [0] * len(self.workers)
        for batch in self._running.values():
            load[batch.worker] += 1
        self._send(tuple(range(first, len(self._groups))), int(np.argmin(load)))

    def _send(self, places: tuple[int, ...], worker: int) -> None:
        """Hand a call to a worker; one that took another's place gets a call at a time.

        Its end may come before the reply of the call that it finished last, and the blame would
        be that call's.
        """
        is_busy = any(batch.worker == worker for batch in self._running.values())
        if worker in self._held and is_busy:
            self._held[worker].append(places)
            return
        ref = self.workers[worker].score.remote([self._tasks[place] for place in places])
        self._running[ref] = _Batch(worker, time.monotonic() + self._timeout_s, places)

    def _wait_one(self) -> None:
        import ray

        deadline = min(batch.deadline for batch in self._running.values())
        left = max(deadline - time.monotonic(), 0.0)
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=left)
        if not done:
            self._end_hanging_worker()
            return
        worker = self._running[done[0]].worker
        error = self._receive(done[0])
        if error is None:
            self._extend_deadlines(worker)
            if self._held.get(worker):
                self._send(self._held[worker].pop(0), worker)
        else:
            self._replace_lost_worker(worker, error)

    def _receive(self, ref: Any) -> Exception | None:
        """Take the results of a finished call; an error if its worker was lost before that."""
        import ray

        try:
            results = ray.get(ref)
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
            return error
        batch = self._running.pop(ref)
        for place, result in zip(batch.places, results, strict=True):
            self._results[place] = result
            if isinstance(result, FailedTask):
                self._count_failure(result, f"reward worker {batch.worker}: {result.message}")
        return None

    def _extend_deadlines(self, worker: int | None = None) -> None:
        until = time.monotonic() + self._timeout_s
        for ref, batch in self._running.items():
            if worker is None or batch.worker == worker:
                self._running[ref] = replace(batch, deadline=until)

    def _with_result(self, group: RolloutGroup, result: ScoredTask | FailedTask) -> RolloutGroup:
        if isinstance(result, ScoredTask):
            return replace(
                group, rewards=result.rewards, reward_parts=result.parts, counts=result.counts
            )
        unknown = np.full(len(group.rollouts), np.nan, np.float32)
        parts = dict.fromkeys(self._part_names, unknown)
        return replace(group, rewards=unknown, reward_parts=parts, failure=result.reason)

    # --- failures

    def _count_failure(self, failed: FailedTask, message: str) -> None:
        """Count a group that is dropped.

        Raises:
            ScoringError: if the budget of the run is used up.
        """
        self.failures[failed.reason] += 1
        total, limit = self.failures.total(), self.recipe.reward.max_failures
        if total <= limit:
            _log.warning("group %d of %d that may be dropped: %s", total, limit, message)
            return
        if limit:
            reasons = ", ".join(f"{name} {number}" for name, number in self.failures.items())
            message = (
                f"{total} groups could not be scored, more than reward.max_failures={limit} "
                f"({reasons}); the last: {message}"
            )
        is_late = failed.reason == "reward_timeout"
        raise (ScoringTimeoutError if is_late else ScoringError)(message)

    def _end_hanging_worker(self) -> None:
        """End the worker whose call is overdue; drop the group that it hangs at."""
        import ray

        batch = min(self._running.values(), key=lambda batch: batch.deadline)
        rollout_id, status = self._ask_status(batch.worker)
        message = (
            f"waited {self._timeout_s:g} s (reward.timeout_s) for the scores of a batch: "
            f"reward worker {batch.worker} is at {status}"
        )
        ray.kill(self.workers[batch.worker])
        guilty = [p for p in batch.places if rollout_id in self._tasks[p].rollout_ids]
        self._go_on_without(batch.worker, guilty[:1], FailedTask("reward_timeout", message))

    def _replace_lost_worker(self, worker: int, error: Exception) -> None:
        """What it finished counts; the oldest call that it did not is the one that ended it.

        If it went with its node, no call did.
        """
        import ray

        from actrep_ray.cluster.supervision import cause_of_loss, has_died_with_node

        is_blameless = has_died_with_node(cause_of_loss(self.workers[worker], error))
        mine = [ref for ref, batch in self._running.items() if batch.worker == worker]
        for ref in ray.wait(mine, num_returns=len(mine), timeout=0)[0]:
            self._receive(ref)
        if is_blameless:
            self._go_on_elsewhere(worker)
            return
        oldest = next(batch for batch in self._running.values() if batch.worker == worker)
        names = [self._groups[place].prompt.prompt_id for place in oldest.places]
        message = (
            f"reward worker {worker} died while it scored the rollouts of {', '.join(names[:3])}"
            f"{' and more' if len(names) > 3 else ''}"
        )
        self._go_on_without(worker, [], FailedTask("reward_worker_died", message))

    def _go_on_elsewhere(self, worker: int) -> None:
        """Start a worker in place of one whose node was lost, and give it what that one held."""
        _log.warning("reward worker %d was lost with its node", worker)
        lost = [(ref, batch) for ref, batch in self._running.items() if batch.worker == worker]
        for ref, _ in lost:
            del self._running[ref]
        calls = [*(batch.places for _, batch in lost), *self._held.pop(worker, [])]
        self.workers[worker] = self._start_worker()
        self._wait_ready([worker])
        for places in calls:
            self._send(places, worker)

    def _go_on_without(self, worker: int, guilty: Sequence[int], failed: FailedTask) -> None:
        """Start a worker in place of one that was lost, and give it what that one held.

        A group that is known to be guilty is dropped. Where it is not known which of its oldest
        call it is, they go one to a call, so that the next failure tells.
        """
        lost = [(ref, batch) for ref, batch in self._running.items() if batch.worker == worker]
        for ref, _ in lost:
            del self._running[ref]
        suspects, *others = [*(batch.places for _, batch in lost), *self._held.get(worker, [])]
        is_sure = len(suspects) == 1 and (worker in self._held or not others)
        self._held[worker] = []
        is_last = self.recipe.reward.max_failures == 0  # it stops the run, guilty or not
        if not guilty and (is_last or is_sure):
            guilty = suspects[:1]
        for place in guilty:
            self._results[place] = failed
            self._count_failure(failed, failed.message)
        if not guilty:
            _log.warning("%s: they are scored one by one", failed.message)
        self.workers[worker] = self._start_worker()
        self._wait_ready([worker])
        for places in [*((place,) for place in suspects if place not in guilty), *others]:
            self._send(places, worker)

    def _ask_status(self, number: int) -> tuple[str, str]:
        """The rollout that a worker scores and where in the code it is; "" if it does not say."""
        import ray

        ref = self.workers[number].status.options(concurrency_group=_STATUS_GROUP).remote()
        done, _ = ray.wait([ref], timeout=_STATUS_TIMEOUT_S)
        if not done:
            return "", "something that holds up even its second thread"
        try:
            return ray.get(ref) or ("", "nothing: it is idle")
        except ray.exceptions.RayActorError:
            return "", "its end: it died"

    def _wait_ready(self, numbers: Iterable[int]) -> None:
        import ray

        refs = {number: self.workers[number].ready.remote() for number in numbers}
        _, waiting = ray.wait(list(refs.values()), num_returns=len(refs), timeout=_START_TIMEOUT_S)
        if waiting:
            raise TimeoutError(
                f"waited {_START_TIMEOUT_S:g} s for {len(refs)} reward workers to start, "
                f"{len(waiting)} did not: are there {self.recipe.reward.num_cpus:g} CPUs "
                "(reward.num_cpus) left for each?"
            )
        for number, ref in refs.items():
            try:
                ray.get(ref)
            except ray.exceptions.RayActorError as error:
                raise ScoringError(f"reward worker {number} died at its start: {error}") from error


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
    # One thread scores; another says what is being scored when a deadline is missed.
    options: dict[str, Any] = {
        "num_cpus": recipe.reward.num_cpus,
        "concurrency_groups": {_STATUS_GROUP: 1},
        "max_restarts": 0,
        "label_selector": recipe.placement.reward_labels,
        "scheduling_strategy": "SPREAD",
    }
    if any(":" in part.name for part in spec.parts):  # import a user's rewards as the driver does
        path = os.pathsep.join(entry for entry in sys.path if entry)
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    return options


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

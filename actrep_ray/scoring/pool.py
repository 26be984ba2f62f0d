"""The reward workers of a run: answers in, rewards out, on CPU.

    groups ─► batches ─► reward worker 0 ─┐
                    └──► reward worker 1 ─┴─► groups with rewards and reward_parts, in order

The pool has no thread of its own: results arrive in its `mailbox`, and are handled by whoever waits
for the scores.

A reward that raises, hangs, or returns anything but a number in its range is named, with the
rollout. Its group is dropped with the reason (`RolloutGroup.failure`), never scored 0, until more
than `reward.max_failures` groups of the run were; then the run stops.

A worker that is lost is replaced, at most `reward.max_restarts` times in an hour and with longer
pauses the oftener that happens; what it held is scored again, one group at a time. A group at which
three workers were lost, the last time alone with it, ends them: it counts as a reward that failed.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

from actrep_ray.cluster.mailbox import Mailbox
from actrep_ray.cluster.supervision import (
    Budget,
    Call,
    Loss,
    LossKind,
    WorkerLostError,
    end_worker,
    find_cause,
    follow,
    restart_budget,
)
from actrep_ray.config import Recipe
from actrep_ray.records import RolloutGroup
from actrep_ray.run.faults import FaultLog
from actrep_ray.scoring.dispatch import Item, Items, Member, Request, Result
from actrep_ray.scoring.pool_actors import STATUS_GROUP, starter
from actrep_ray.scoring.worker import GroupFailure, make_spec, texts_of
from rewards.reference import Reference

_BATCHES_PER_WORKER = 4  # of a call: small enough that a slow batch does not hold up the rest
_STATUS_TIMEOUT_S = 5.0
_START_TIMEOUT_S = 120.0
_SETTLE_S = 10.0  # from the cause of a loss to the news of all calls that the worker had
_MOST_SUSPECTED = 2  # a third time is no chance
_log = logging.getLogger(__name__)


class ScoringError(RuntimeError):
    """Answers could not be scored; the message names the reward or worker, and the rollout."""


class RewardWorkerError(ScoringError, WorkerLostError):
    """A reward worker died once too often; the message names it and what it scored."""


class ScoringTimeoutError(RewardWorkerError, TimeoutError):
    """A batch was not scored in time; the message names the reward, the rollout and the line."""


class RewardPool:
    """Reward workers; `start` makes a pool that has started.

    Args:
        recipe: Settings.
        start_worker: Starts one more actor of `RewardWorker`.
        faults: Where losses are written down.

    Attributes:
        restarts: How many losses it bears.
    """

    def __init__(
        self, recipe: Recipe, start_worker: Callable[[], Any], faults: FaultLog | None = None
    ) -> None:
        cfg = recipe.reward
        self.faults = faults or FaultLog()
        self.recipe = recipe
        self.mailbox = Mailbox()
        self._start_worker = start_worker
        self._timeout_s = cfg.timeout_s
        self._part_names = [part.name for part in make_spec(recipe).parts]
        self._failures = Budget("reward.max_failures", cfg.max_failures)
        self.restarts = restart_budget("reward", cfg.max_restarts)
        self._members = [Member(index, None, math.inf) for index in range(cfg.num_workers)]
        for member in self._members:
            self._begin(member)

    @classmethod
    def start(cls, recipe: Recipe, faults: FaultLog | None = None) -> Self:
        """Start the workers of `recipe.reward` in the current cluster and wait until they run.

        Raises:
            ValueError: for rewards that do not exist or cannot be called, before a worker starts.
            RewardWorkerError: if a worker dies at its start.
            TimeoutError: if they are not ready in time.
        """
        pool = cls(recipe, starter(recipe, make_spec(recipe)), faults)
        try:
            pool.mailbox.wait(
                lambda: all(member.is_ready for member in pool._members),
                _START_TIMEOUT_S,
                pool._explain_start,
            )
        except BaseException:
            pool.shutdown()
            raise
        return pool

    @property
    def workers(self) -> list[Any]:
        """Handles of the actors."""
        return [member.handle for member in self._members if member.handle is not None]

    def score(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Reference]
    ) -> list[RolloutGroup]:
        """Score groups; they come back in order with `rewards` and `reward_parts`.

        A group that could not be scored has its reason in `failure`, and NaN for rewards.

        Args:
            groups: Groups with answers.
            labels: By clip id; each group's clip must be among them.

        Raises:
            ScoringError: once more than `reward.max_failures` groups of the run could not be
                scored, naming the reward that failed last and the rollout that it failed at; a
                `ScoringTimeoutError` if that took longer than `reward.timeout_s`, a
                `RewardWorkerError` if its worker died. Likewise if more workers were lost in an
                hour than `reward.max_restarts` allows.
        """
        scored: list[list[RolloutGroup]] = []
        request = Request(list(groups), scored.append)
        try:
            self._send_request(request, labels)
            # Every call has a deadline of its own (`_look_at`), and all together as many as there
            # are calls.
            self.mailbox.wait(lambda: scored, math.inf, lambda: "the scores")
        except BaseException:
            request.is_cancelled = True
            raise
        return scored[0]

    def shutdown(self) -> None:
        """End the workers; the pool cannot be used afterwards."""
        for handle in self.workers:
            end_worker(handle)
        self._members = []

    # ---------------------------------------------------------------- giving work

    def _send_request(self, request: Request, labels: Mapping[str, Reference]) -> None:
        texts = [texts_of(group, labels, self.recipe) for group in request.groups]
        items = [Item(request, index, one) for index, one in enumerate(texts)]
        if not items:
            request.on_scored([])
        size = -(-len(items) // (len(self._members) * _BATCHES_PER_WORKER))
        for first in range(0, len(items), max(size, 1)):
            member = min(self._members, key=lambda m: len(m.batches) + len(m.held))
            member.held.append(tuple(items[first : first + size]))
            self._send_held(member)

    def _send_held(self, member: Member) -> None:
        """Hand a worker the calls that are held for it, as far as it may have them now."""
        while member.held and member.is_ready and member.suspect is None:
            if member.one_by_one and member.batches:
                return
            items = tuple(i for i in member.held.pop(0) if not i.request.is_cancelled)
            if not items:
                continue
            if not member.batches:
                member.deadline = time.monotonic() + self._timeout_s
            member.batches.append(items)
            ref = member.handle.score.remote([item.texts for item in items])
            self._follow(
                member,
                Call("reward", member.index, "score", ref),
                then=partial(self._on_results, member, items),
                on_loss=partial(self._on_loss, member, items),
            )
            self._watch(member)

    # ---------------------------------------------------------------- what arrives

    def _follow(
        self,
        member: Member,
        call: Call,
        then: Callable[[Any], None],
        on_loss: Callable[[Loss], None],
    ) -> None:
        def stop(error: Exception) -> None:
            raise error

        follow(
            self.mailbox,
            call,
            then=then,
            on_loss=on_loss,
            on_error=stop,
            is_wanted=lambda: member in self._members,  # else it was replaced
        )

    def _on_ready(self, member: Member, _: bool) -> None:
        member.is_ready = True
        self.faults.replaced("reward")
        self._send_held(member)

    def _on_results(self, member: Member, items: Items, results: Sequence[Result]) -> None:
        member.batches.remove(items)
        member.deadline = time.monotonic() + self._timeout_s
        self._send_held(member)
        self._replace_when_settled(member)
        pairs = zip(items, results, strict=True)
        counted = [(item, result) for item, result in pairs if item.settle(result)]
        for item, result in counted:
            if isinstance(result, GroupFailure) and not item.request.is_cancelled:
                message = f"reward worker {member.index}: {result.message}"
                self._count_failure(result.reason, message, ScoringError)
        self._complete(items)

    def _complete(self, items: Items) -> None:
        """Hand over the requests whose last results these were."""
        for request in dict.fromkeys(item.request for item in items):
            if request.is_complete:
                request.on_scored(request.scored_groups(self._part_names))

    # ---------------------------------------------------------------- failures

    def _count_failure(
        self, reason: str, message: str, make_error: Callable[[str], ScoringError]
    ) -> None:
        """Count a group that is dropped.

        Raises:
            ScoringError: if the budget of the run is used up.
        """
        budget = self._failures
        if budget.spend(reason):
            counted = f"group {budget.num_spent} of {budget.limit} that may be dropped"
            _log.warning("%s: %s", counted, message)
            return
        if budget.limit:
            reasons = ", ".join(f"{name} {number}" for name, number in budget.spent.items())
            message = (
                f"{budget.num_spent} groups could not be scored, more than {budget.setting}="
                f"{budget.limit} ({reasons}); the last: {message}"
            )
        raise make_error(message)

    def _watch(self, member: Member) -> None:
        """Look at a worker when its deadline passes."""
        if member.deadline < member.next_look:  # it is long before a worker must have started
            member.next_look = member.deadline
            left = max(member.deadline - time.monotonic(), 0.0)
            self.mailbox.post_later(left, partial(self._look_at, member, member.deadline))

    def _look_at(self, member: Member, due: float) -> None:
        if due != member.next_look:  # an earlier look was asked for since
            return
        member.next_look = math.inf
        is_idle = member.is_ready and not member.batches
        if member not in self._members or member.suspect is not None or is_idle:
            return
        if time.monotonic() < member.deadline:
            self._watch(member)
        elif member.is_ready:
            self._ask_status(member, member.batches[0])
        else:
            raise TimeoutError(self._explain_start())

    def _ask_status(self, member: Member, items: Items) -> None:
        """Ask a worker whose call is overdue where it is; its second thread answers."""
        member.asked = items
        ref = member.handle.status.options(concurrency_group=STATUS_GROUP).remote()
        self._follow(
            member,
            Call("reward", member.index, "status", ref),
            then=lambda status: self._on_status(
                member, items, status or ("", "nothing: it is idle")
            ),
            on_loss=partial(self._on_loss, member, None),
        )
        silence = ("", "something that holds up even its second thread")
        self.mailbox.post_later(_STATUS_TIMEOUT_S, lambda: self._on_status(member, items, silence))

    def _on_status(self, member: Member, items: Items, status: tuple[str, str]) -> None:
        """End the worker whose call is overdue; drop the group that it hangs at."""
        if member not in self._members or member.asked is not items:
            return
        member.asked = None
        if member.suspect is not None or items not in member.batches:  # it died, or just finished
            self._watch(member)
            return
        rollout_id, where = status
        message = (
            f"waited {self._timeout_s:g} s (reward.timeout_s) for the scores of a batch: "
            f"reward worker {member.index} is at {where}"
        )
        end_worker(member.handle)
        loss = Loss("reward", member.index, LossKind.HANG, "score", TimeoutError(message))
        guilty = [item for item in items if rollout_id in item.texts.rollout_ids]
        if not guilty:  # the process was stopped, or is stuck outside of any reward
            member.suspect = member.loss = loss
            self._replace(member)
            return
        self.faults.lost(loss, sum(map(len, (*member.batches, *member.held))) - 1)
        self._go_on_without(member, guilty[0], GroupFailure("reward_timeout", message), loss)

    def _on_loss(self, member: Member, items: Items | None, loss: Loss) -> None:
        """Wait for the cause, and for what else the worker had finished."""
        if items is not None:
            member.lost.add(items)
        if member.suspect is None:
            member.suspect = loss
            find_cause(self.mailbox, member.handle, loss, partial(self._on_cause, member))
        else:
            self._replace_when_settled(member)

    def _on_cause(self, member: Member, loss: Loss) -> None:
        member.loss = loss
        self.mailbox.post_later(_SETTLE_S, partial(self._replace, member))
        self._replace_when_settled(member)

    def _replace_when_settled(self, member: Member) -> None:
        if member.loss is not None and member.lost.issuperset(member.batches):
            self._replace(member)

    def _replace(self, member: Member) -> None:
        """Have a worker started in place of one that is lost, or stop the run if too many are.

        If it went with its node, no call is to blame.

        Raises:
            RewardWorkerError: if this one may not be replaced.
        """
        if member not in self._members:
            return
        loss, budget = member.loss, self.restarts
        assert loss is not None
        self.faults.lost(loss, sum(map(len, (*member.batches, *member.held))))
        if budget.spares(loss):
            _log.warning("%s was lost with its node", loss.name)
            self._succeed(member, (), [*member.batches, *member.held])
            return
        calls = [*member.batches, *member.held]
        suspects = calls.pop(0) if member.batches else ()
        message = f"{loss.name} died{_describe(suspects)}: {loss.cause}"
        if not member.is_ready and loss.is_defect:
            raise RewardWorkerError(f"{loss.name} died at its start: {loss.error}", loss)
        if len(suspects) == 1 and suspects[0].num_suspected == _MOST_SUSPECTED:
            failed = GroupFailure("reward_worker_died", message)
            self._go_on_without(member, suspects[0], failed, loss)
            return
        if not budget.spend(loss.kind.value):
            error_type = ScoringTimeoutError if loss.kind is LossKind.HANG else RewardWorkerError
            raise error_type(f"{message}; {budget.describe_excess()}", loss)
        _log.warning("%s; restart %s, after %g s", message, budget.describe(), budget.pause_s)
        self._succeed(member, suspects, calls, pause_s=budget.pause_s)

    def _go_on_without(
        self, member: Member, guilty: Item, failed: GroupFailure, loss: Loss
    ) -> None:
        """Have a worker started in place of one that a group has ended, and drop that group."""
        oldest, *others = [*member.batches, *member.held]
        left = [(item,) for item in oldest if item is not guilty]
        self._succeed(member, (), [*left, *others])
        guilty.settle(failed)
        error_type = ScoringTimeoutError if loss.kind is LossKind.HANG else RewardWorkerError
        if not guilty.request.is_cancelled:
            self._count_failure(
                failed.reason, failed.message, lambda message: error_type(message, loss)
            )
        self._complete((guilty,))

    def _succeed(
        self, member: Member, suspects: Items, calls: Sequence[Items], *, pause_s: float = 0.0
    ) -> None:
        """Have a worker started that gets the calls of another one, each one attempt further.

        Args:
            member: The lost one.
            suspects: What it was at work on, and may have died of: they go one to a call, so that
                the next loss tells which it is.
            calls: What else it had.
            pause_s: Until the start, seconds.
        """
        new = Member(member.index, None, math.inf, one_by_one=bool(suspects) or member.one_by_one)
        new.held += [(item.again(is_suspect=True),) for item in suspects]
        new.held += [tuple(item.again(is_suspect=False) for item in items) for items in calls]
        self._members[self._members.index(member)] = new
        if pause_s:
            self.mailbox.post_later(pause_s, partial(self._begin, new))
        else:
            self._begin(new)

    def _begin(self, member: Member) -> None:
        """Start the process of a member that has none yet."""
        if member not in self._members:
            return
        member.handle = self._start_worker()
        member.deadline = time.monotonic() + _START_TIMEOUT_S
        self._follow(
            member,
            Call("reward", member.index, "ready", member.handle.ready.remote()),
            then=partial(self._on_ready, member),
            on_loss=partial(self._on_loss, member, None),
        )
        self._watch(member)

    def _explain_start(self) -> str:
        num_waiting = sum(not member.is_ready for member in self._members)
        return (
            f"waited {_START_TIMEOUT_S:g} s for {len(self._members)} reward workers to start, "
            f"{num_waiting} did not: are there {self.recipe.reward.num_cpus:g} CPUs "
            "(reward.num_cpus) left for each?"
        )


def _describe(suspects: Items) -> str:
    """What a worker was scoring, for messages."""
    names = [item.request.groups[item.index].prompt.prompt_id for item in suspects]
    more = " and more" if len(names) > 3 else ""
    return f" while it scored the rollouts of {', '.join(names[:3])}{more}" if names else ""

"""The rollout workers of a run, as Ray actors that come and die.

    submit(prompts) ─► waiting ─► worker 0, at most max_in_flight answers ─┐
                                └► worker 1 ...                            ├─► on_group(group)
                                                                           │   as each is finished
    load_weights ─► each worker in turn, between two of its forward passes ┘

The pool has no thread of its own: results arrive in its `mailbox` and are handled by whoever waits
there. A worker has two calls at a time, so that it goes on while the first one's result travels.

A worker that is lost gives its prompts back, with `attempt` one higher: what an older attempt comes
to is refused. It is replaced, at most `rollout.max_restarts` times in an hour, after longer pauses
the oftener that happens; one that is lost with its node does not count. A new worker loads the
weights in use before it takes prompts. Every wait has a deadline and says what it waited for.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

from actrep_ray.cluster.actors import Bundles
from actrep_ray.cluster.mailbox import Mailbox
from actrep_ray.cluster.nodes import with_device
from actrep_ray.cluster.placement import is_colocated
from actrep_ray.cluster.supervision import (
    Call,
    Loss,
    LossKind,
    WorkerLostError,
    end_worker,
    find_cause,
    follow,
    restart_budget,
    wait_for,
)
from actrep_ray.config import Recipe
from actrep_ray.records import Prompt, Refusal, RefusedError, RolloutGroup
from actrep_ray.rollout.delivery import Delivery
from actrep_ray.rollout.dispatch import (
    Answers,
    Backlog,
    Member,
    OnGroup,
    OnRefused,
    PendingPrompt,
    Weights,
    describe_work,
    raise_refused,
)
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.pool_actors import room_for, spawner
from actrep_ray.rollout.worker import Loaded, Request, Turn
from actrep_ray.run.faults import FaultLog
from actrep_ray.run.profile import Timeline
from data_prep.video import FramePlan

_CALLS_AT_ONCE = 2
_MIN_PREFETCH = 8  # clips in a call
_IDLE_TURN_S = 1e-3  # a turn without anything to do is shorter

_log = logging.getLogger(__name__)


class RolloutWorkerError(WorkerLostError):
    """A rollout worker died and may not be replaced; the message says which and at what."""


class WeightsLostError(WorkerLostError):
    """The weights in use are gone with the rank that gave them; no engine can be given them."""


class RolloutPool:
    """Rollout workers; `start` makes a pool whose engines have started.

    Args:
        recipe: Settings, with the device resolved.
        spawn: Starts worker number `index` and returns its handle: an actor of `RolloutWorker`.
        faults: Where losses are written down.

    Attributes:
        restarts: How many losses it bears.
    """

    def __init__(
        self, recipe: Recipe, spawn: Callable[[int], Any], faults: FaultLog | None = None
    ) -> None:
        cfg = recipe.rollout
        self.recipe = recipe
        self.faults = faults or FaultLog()
        self.mailbox = Mailbox()
        self.timeline = Timeline()
        self.timeout_s = cfg.timeout_s  # of every wait
        self._spawn = spawn
        self._numbers = itertools.count()
        self._members: list[Member] = []
        self._backlog = Backlog(cfg.max_in_flight or 2 * cfg.max_num_seqs)
        self._delivery = Delivery(self._load)
        self._num_due = 0  # workers that are to be started in place of lost ones
        self.restarts = restart_budget("rollout", cfg.max_restarts)

    @classmethod
    def start(
        cls,
        recipe: Recipe,
        model_path: str | Path,
        *,
        bundles: Bundles | None = None,
        faults: FaultLog | None = None,
    ) -> Self:
        """As `launch`, and wait until the engines are ready.

        Raises:
            RolloutWorkerError: if a worker dies at its start.
            TimeoutError: if they are not ready within `rollout.timeout_s`.
        """
        pool = cls.launch(recipe, model_path, bundles=bundles, faults=faults)
        pool.finish_launch()
        return pool

    @classmethod
    def launch(
        cls,
        recipe: Recipe,
        model_path: str | Path,
        *,
        bundles: Bundles | None = None,
        faults: FaultLog | None = None,
    ) -> Self:
        """Start the workers; what is started later gets the room that they leave.

        Args:
            recipe: Settings.
            model_path: Folder of the checkpoint that the engines start from.
            bundles: Those of the learner ranks, if each shares its own with an engine.
            faults: Where losses are written down.
        """
        recipe = with_device(recipe)
        pool = cls(recipe, spawner(recipe, model_path, bundles), faults)
        pool.add_workers(recipe.rollout.num_workers)
        return pool

    def finish_launch(self) -> None:
        """Wait until the engines are ready; all end if that fails. Errors: see `start`."""
        try:
            self.wait_ready()
        except BaseException:
            self.shutdown()
            raise

    # ---------------------------------------------------------------- generating

    def submit(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        on_group: OnGroup,
        on_refused: OnRefused = raise_refused,
    ) -> None:
        """Have prompts answered; each is told to one of the callbacks, by whoever waits.

        Args:
            prompts: What to answer.
            settings: How to sample.
            on_group: Gets each group.
            on_refused: Gets each prompt that cannot be answered; by default that is an error.
        """
        self._backlog.add(PendingPrompt(one, settings, on_group, on_refused) for one in prompts)
        self._dispatch(self._members)

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[RolloutGroup]:
        """As `answer`, where every prompt has to be answered.

        Raises:
            RefusedError: if one cannot be; the others were answered.
        """
        groups, refused = self.answer(prompts, settings)
        if refused:
            raise RefusedError(refused)
        return groups

    def answer(
        self, prompts: Sequence[Prompt], settings: SamplingSettings
    ) -> tuple[list[RolloutGroup], list[Refusal]]:
        """Answer prompts; groups come in the order of the prompts, then those without one.

        Args:
            prompts: What to answer; other prompts may be at work at the same time.
            settings: How to sample.

        Raises:
            RolloutWorkerError: naming the worker that died, if it may not be replaced.
            TimeoutError: if not all groups were there within `rollout.timeout_s`.
        """
        found = Answers(prompts)
        self.submit(prompts, settings, found.keep, found.keep)
        try:
            self.wait(lambda: not found.num_missing, found.describe)
        except BaseException:
            self._backlog.forget({prompt.prompt_id for prompt in prompts}, self._members)
            raise
        return found.split()

    def wait(self, is_done: Callable[[], Any], what: Callable[[], str]) -> None:
        """Handle what arrives until `is_done()`.

        Raises:
            TimeoutError: after `rollout.timeout_s`, with `what()` and who is at work.
        """
        wait_for(
            self.mailbox,
            is_done,
            lambda: f"{what()}; {self.describe_work()}",
            timeout_s=self.timeout_s,
            setting="rollout.timeout_s",
        )

    def describe_work(self) -> str:
        """Who is at work on how much, for messages."""
        return describe_work(self._members, len(self._backlog.waiting), self._num_due)

    def prefetch(self, plans: Sequence[FramePlan]) -> None:
        """Have clips decoded into the nodes' frame caches, beside what the engines do.

        Workers get equal shares, but no fewer than a few clips each: a call costs the driver more
        than a clip. One that cannot be decoded is an error where it is used.
        """
        ready = [m for m in self._members if m.is_ready][: -(-len(plans) // _MIN_PREFETCH)]
        for i, member in enumerate(ready):
            member.handle.prefetch.remote(plans[i :: len(ready)])

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Have the engines free the GPUs that they share with ranks, for as long as these work.

        Engines that have GPUs of their own stay awake.
        """
        if not is_colocated(self.recipe):
            yield
            return
        self.wait_ready()  # nor may one start meanwhile
        self._tell_all("sleep", lambda worker: worker.sleep.remote())
        yield
        self._tell_all("wake", lambda worker: worker.wake.remote())

    # ---------------------------------------------------------------- weights

    def load_weights(self, refs: Sequence[Any], policy_version: int) -> None:
        """Replace every engine's weights, all at the same time, between two forward passes.

        What an engine was generating is finished with the new weights.

        Args:
            refs: `WeightBucket`s in the object store; kept for workers that come later.
            policy_version: Version that the engines stamp on their answers from now on.
        """
        arrived: list[int] = []
        self.start_load(refs, policy_version, lambda: arrived.append(1))
        what = f"the engines to load the weights of version {policy_version}"
        self.wait(lambda: arrived, lambda: what)

    def let_go_of_weights(self) -> None:
        """Drop those in use from the object store, before others enter it; see `Delivery`."""
        self._delivery.let_go(self._members)

    def start_load(
        self,
        refs: Sequence[Any],
        policy_version: int,
        then: Callable[[], None],
        *,
        at_once: int | None = None,
    ) -> None:
        """As `load_weights`, `at_once` (None: all) at a time, but returns at once.

        `then` is called by whoever waits.
        """
        ready = [m for m in self._members if m.is_ready]
        weights = Weights(refs, policy_version)
        self._delivery.start(weights, ready, at_once or len(ready), then)
        self._delivery.go_on(self._members)

    def policy_versions(self) -> list[int]:
        """The version that each engine at work reported when it had loaded its weights."""
        return [
            m.policy_version for m in self._members if m.is_ready and m.policy_version is not None
        ]

    # ---------------------------------------------------------------- workers

    @property
    def workers(self) -> list[Any]:
        """Handles of the actors, those that are starting or leaving among them."""
        return [member.handle for member in self._members]

    @property
    def num_workers(self) -> int:
        """Workers that are there, starting, or to be started in place of lost ones."""
        return len(self._members) + self._num_due

    def add_workers(self, num: int = 1) -> None:
        """Start more workers; each takes prompts when it holds the weights in use."""
        for _ in range(num):
            index = next(self._numbers)
            member = Member(index, self._spawn(index))
            self._members.append(member)
            self._follow(member, "ready", member.handle.ready.remote(), self._on_version)

    def grow(self) -> int:
        """Start workers up to `rollout.max_workers` where there is room; returns how many."""
        num = room_for(self.recipe, (self.recipe.rollout.max_workers or 0) - self.num_workers)
        self.add_workers(num)
        return num

    def wait_ready(self) -> None:
        """Wait until every worker takes prompts, those in place of lost ones among them."""
        self.wait(
            lambda: not self._num_due and all(m.is_ready for m in self._members),
            lambda: "the engines to start",
        )

    def shutdown(self) -> None:
        """End the workers; the pool cannot be used afterwards."""
        for handle in self.workers:
            end_worker(handle)
        self._members = []
        self._backlog.waiting.clear()

    # ---------------------------------------------------------------- giving work

    def _dispatch(self, members: Iterable[Member]) -> None:
        """Hand waiting prompts to those of the workers that have the most room."""
        for member, prompts in self._backlog.assign(members).items():
            self._advance(member, prompts)

    def _advance(self, member: Member, prompts: Sequence[PendingPrompt]) -> None:
        """Send prompts, if any, and keep the worker's next call waiting for it."""
        by_settings = itertools.groupby(prompts, key=lambda one: one.settings)
        requests: list[Request] = [([one.prompt for one in some], key) for key, some in by_settings]
        while requests or (member.pending and member.num_calls < _CALLS_AT_ONCE):
            ref = member.handle.advance.remote(requests)
            self._follow(member, "advance", ref, self._on_turn)
            member.num_calls += 1
            requests = []

    def _load(self, member: Member, weights: Weights) -> None:
        ref = member.handle.load_weights.remote(weights.policy_version, *weights.refs)
        self._follow(member, "load_weights", ref, partial(self._on_loaded, weights))

    def _tell_all(self, method: str, call: Callable[[Any], Any]) -> None:
        """Call a method of every worker and wait until those that live have done it."""
        left = set(self._members)
        for member in list(left):
            self._follow(member, method, call(member.handle), lambda m, _: left.discard(m))
        self.wait(lambda: not left.intersection(self._members), lambda: f"the engines to {method}")

    # ---------------------------------------------------------------- what arrives

    def _follow(
        self, member: Member, method: str, ref: Any, then: Callable[[Member, Any], None]
    ) -> None:
        follow(
            self.mailbox,
            Call("rollout", member.index, method, ref),
            then=partial(then, member),
            on_loss=partial(self._on_loss, member),
            on_error=partial(self._on_error, member),
            is_wanted=lambda: member in self._members,  # else it has died
        )

    def _on_turn(self, member: Member, turn: Turn) -> None:
        member.num_calls -= 1
        if turn.ended_s - turn.began_s > _IDLE_TURN_S:
            self._record(member, "generate", turn.began_s, turn.ended_s)
        answers = [(self._backlog.take(member, group.prompt), group) for group in turn.groups]
        refused = [(self._backlog.take(member, one.prompt), one) for one in turn.refused]
        self._dispatch([member])
        self._advance(member, ())
        for one, group in answers:
            if one is not None:
                one.on_group(group)
        for one, refusal in refused:
            if one is not None:
                one.on_refused(refusal)

    def _on_version(self, member: Member, policy_version: int) -> None:
        """A started worker takes prompts once it holds the weights in use."""
        member.policy_version = policy_version
        if self._delivery.bring_up_to_date(member):
            member.is_ready = True
            self.faults.replaced("rollout")
            self._dispatch([member])
            self._delivery.go_on(self._members)

    def _on_loaded(self, weights: Weights, member: Member, loaded: Loaded) -> None:
        member.held = weights
        self._record(member, "load weights", loaded.began_s, loaded.ended_s)
        if member.is_ready:
            member.policy_version = loaded.policy_version
            self._delivery.go_on(self._members)
        else:
            self._on_version(member, loaded.policy_version)

    def _on_error(self, member: Member, error: Exception) -> None:
        member.pending.clear()  # the engine has forgotten them
        raise error

    def _on_loss(self, member: Member, loss: Loss) -> None:
        """Replace a worker that is lost and give its prompts to others."""
        if loss.kind is LossKind.OBJECT and loss.method == "load_weights":
            lost = Loss("learner", 0, loss.kind, "export_buckets", loss.error)
            raise WeightsLostError(
                f"{loss.name} cannot load weights: the learner rank that gave them was lost "
                f"({loss.cause})",
                lost,
            )
        self._members.remove(member)
        self._num_due += 1
        count = partial(self._count_loss, len(member.pending))
        find_cause(self.mailbox, member.handle, loss, count)
        self._backlog.give_back(member)
        self._dispatch(self._members)
        self._delivery.go_on(self._members)

    def _count_loss(self, num_given_again: int, loss: Loss) -> None:
        """Have a worker started in place of a lost one, or raise if too many are lost."""
        self.faults.lost(loss, num_given_again)
        budget = self.restarts
        if budget.spares(loss):
            _log.warning("%s was lost with its node", loss.name)
            self._replace()
            return
        if loss.is_defect:
            raise RolloutWorkerError(str(loss), loss)
        if not budget.spend(loss.kind.value):
            raise RolloutWorkerError(f"{loss}; {budget.describe_excess()}", loss)
        pause_s = budget.pause_s
        _log.warning("%s; restart %s, after %g s", loss, budget.describe(), pause_s)
        self.mailbox.post_later(pause_s, self._replace)

    def _replace(self) -> None:
        """Start a worker in place of one that was lost."""
        self._num_due -= 1
        self.add_workers()

    def _record(self, member: Member, what: str, began_s: float, ended_s: float) -> None:
        self.timeline.add("rollout", f"engine {member.index}", what, began_s, ended_s)

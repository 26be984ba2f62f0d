"""The rollout workers of a run, as Ray actors that come, go and die.

    submit(prompts) ─► waiting ─► worker 0, at most max_in_flight answers ─┐
                                └► worker 1 ...                            ├─► on_group(group)
                                                                           │   as each is finished
    load_weights ─► each worker in turn, between two of its forward passes ┘

The pool has no thread of its own: results arrive in its `mailbox` and are handled by whoever waits
there. A worker has two calls at a time, so that it goes on while the first one's result travels.

A worker that dies gives its prompts back to the others, with `attempt` one higher, and is replaced,
at most `rollout.max_restarts` times in a run; one that is lost with its node does not count. A new
worker loads the weights in use before it takes prompts. Every wait has a deadline and says what it
waited for.
"""

import heapq
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import ray
from ray.util.placement_group import PlacementGroup

from actrep_ray.cluster.background import in_background
from actrep_ray.cluster.bundles import bundle_options
from actrep_ray.cluster.mailbox import Mailbox
from actrep_ray.cluster.nodes import with_device
from actrep_ray.cluster.placement import share_of_bundle, shares_bundles
from actrep_ray.cluster.supervision import cause_of_loss, has_died_with_node
from actrep_ray.config import Recipe
from actrep_ray.records import Prompt, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.worker import Loaded, Request, RolloutWorker, Turn, start_engine
from actrep_ray.run.profile import Timeline
from data_prep.video import FramePlan

OnGroup = Callable[[RolloutGroup], None]
_LOSSES = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError)
_CALLS_AT_ONCE = 2
_MIN_PREFETCH = 8  # clips in a call
_IDLE_TURN_S = 1e-3  # a turn without anything to do is shorter

_log = logging.getLogger(__name__)


class RolloutWorkerError(RuntimeError):
    """A rollout worker died and may not be replaced; the message says which and at what."""


class WeightsLostError(RuntimeError):
    """The weights in use are gone with the rank that gave them; no engine can be given them."""


@dataclass(eq=False)
class _Task:
    """A prompt on its way."""

    prompt: Prompt
    settings: SamplingSettings
    on_group: OnGroup


@dataclass(eq=False)
class _Worker:
    """An actor, and what it was given."""

    index: int
    handle: Any
    tasks: dict[str, _Task] = field(default_factory=dict)
    num_calls: int = 0
    policy_version: int | None = None  # None until the engine has started
    is_ready: bool = False  # holds the weights in use and takes prompts
    is_leaving: bool = False
    load_s: float = 0.0  # of the weights in use

    @property
    def num_answers(self) -> int:
        return sum(task.settings.group_size for task in self.tasks.values())


@dataclass(eq=False)
class _Push:
    """New weights on their way: who has to load them yet, and how many may at a time."""

    waiting: deque[_Worker]
    at_once: int
    then: Callable[[], None]
    loading: set[_Worker] = field(default_factory=set)


class RolloutPool:
    """Rollout workers; `start` makes a pool whose engines have started.

    Args:
        recipe: Settings, with the device resolved.
        spawn: Starts worker number `index` and returns its handle: an actor of `RolloutWorker`.
    """

    def __init__(self, recipe: Recipe, spawn: Callable[[int], Any]) -> None:
        self.recipe = recipe
        self.mailbox = Mailbox()
        self.timeline = Timeline()
        self.num_restarts = 0
        self._spawn = spawn
        self._numbers = itertools.count()
        self._workers: list[_Worker] = []
        self._waiting: deque[_Task] = deque()
        self._weights: tuple[Sequence[Any], int] | None = None
        self._push: _Push | None = None
        self._timeout_s = recipe.rollout.timeout_s
        self._max_in_flight = recipe.rollout.max_in_flight or 2 * recipe.rollout.max_num_seqs

    @classmethod
    def start(
        cls,
        recipe: Recipe,
        model_path: str | Path,
        *,
        num_workers: int | None = None,
        bundles: PlacementGroup | None = None,
    ) -> Self:
        """As `launch`, and wait until the engines are ready.

        Raises:
            RolloutWorkerError: if a worker dies at its start.
            TimeoutError: if they are not ready within `rollout.timeout_s`.
        """
        pool = cls.launch(recipe, model_path, num_workers=num_workers, bundles=bundles)
        pool.finish_launch()
        return pool

    @classmethod
    def launch(
        cls,
        recipe: Recipe,
        model_path: str | Path,
        *,
        num_workers: int | None = None,
        bundles: PlacementGroup | None = None,
    ) -> Self:
        """Start the workers; what is started later gets the room that they leave.

        Args:
            recipe: Settings.
            model_path: Folder of the checkpoint that the engines start from.
            num_workers: Workers, if not `rollout.num_workers`.
            bundles: Those of the learner ranks, if each shares its own with an engine.
        """
        recipe = with_device(recipe)
        actor = ray.remote(**_actor_options(recipe))(RolloutWorker)

        def spawn(index: int) -> Any:
            start = partial(start_engine, recipe, str(model_path), index)
            if bundles is None:
                return actor.remote(start)
            shares = share_of_bundle(recipe)
            place = bundle_options(bundles, index if index < bundles.bundle_count else -1)
            return actor.options(**shares, **place).remote(start)

        pool = cls(recipe, spawn)
        pool.add_workers(num_workers or recipe.rollout.num_workers)
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
        self, prompts: Sequence[Prompt], settings: SamplingSettings, on_group: OnGroup
    ) -> None:
        """Have prompts answered; `on_group` is called with each group, by whoever waits."""
        self._waiting.extend(_Task(prompt, settings, on_group) for prompt in prompts)
        self._dispatch(self._workers)

    def generate(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        on_group: OnGroup | None = None,
    ) -> list[RolloutGroup]:
        """Answer every prompt; groups come in the order of the prompts.

        Args:
            prompts: What to answer; other prompts may be at work at the same time.
            settings: How to sample.
            on_group: Called with each group when it is there, in any order.

        Raises:
            RolloutWorkerError: naming the worker that died, if it may not be replaced.
            TimeoutError: if not all groups were there within `rollout.timeout_s`.
        """
        groups: dict[str, RolloutGroup] = {}

        def keep(group: RolloutGroup) -> None:
            groups[group.prompt.prompt_id] = group
            if on_group is not None:
                on_group(group)

        self.submit(prompts, settings, keep)
        try:
            self.wait(
                lambda: len(groups) == len(prompts),
                lambda: f"{len(prompts) - len(groups)} of {len(prompts)} groups",
            )
        except BaseException:
            self._forget({prompt.prompt_id for prompt in prompts})
            raise
        return [groups[prompt.prompt_id] for prompt in prompts]

    def wait(self, is_done: Callable[[], Any], what: Callable[[], str]) -> None:
        """Handle what arrives until `is_done()`.

        Raises:
            TimeoutError: after `rollout.timeout_s`, with `what()` and who is at work.
        """
        self.mailbox.wait(
            is_done,
            self._timeout_s,
            lambda: (
                f"waited {self._timeout_s:g} s (rollout.timeout_s) for {what()}; "
                f"{self.describe_work()}"
            ),
        )

    def describe_work(self) -> str:
        """Who is at work on how much, for messages."""
        parts = [
            f"rollout worker {w.index} has {len(w.tasks)} groups"
            if w.is_ready
            else f"rollout worker {w.index} is starting"
            for w in self._workers
            if w.tasks or not w.is_ready
        ]
        return f"{len(self._waiting)} groups wait for a worker; " + (", ".join(parts) or "all idle")

    def prefetch(self, plans: Sequence[FramePlan]) -> None:
        """Have clips decoded into the nodes' frame caches, beside what the engines do.

        Workers get equal shares, but no fewer than a few clips each: a call costs the driver more
        than a clip. One that cannot be decoded is an error where it is used.
        """
        workers = [w for w in self._workers if w.is_ready][: -(-len(plans) // _MIN_PREFETCH)]
        for i, worker in enumerate(workers):
            worker.handle.prefetch.remote(plans[i :: len(workers)])

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Have the engines free the GPUs that they share with ranks, for as long as these work.

        Engines that have GPUs of their own stay awake.
        """
        if not shares_bundles(self.recipe):
            yield
            return
        self.wait_ready()  # nor may one start meanwhile
        self._tell_all("sleep")
        yield
        self._tell_all("wake")

    # ---------------------------------------------------------------- weights

    def load_weights(
        self, refs: Sequence[Any], policy_version: int, *, at_once: int | None = None
    ) -> list[float]:
        """Replace every engine's weights; returns each worker's seconds.

        An engine loads between two of its forward passes and goes on at once; what it was
        generating is finished with the new weights.

        Args:
            refs: `WeightBucket`s in the object store; kept for workers that come later.
            policy_version: Version that the engines stamp on their answers from now on.
            at_once: How many engines load at the same time; all by default.
        """
        workers = [w for w in self._workers if w.is_ready]
        arrived: list[int] = []
        self.start_load(refs, policy_version, lambda: arrived.append(1), at_once=at_once)
        what = f"the engines to load the weights of version {policy_version}"
        self.wait(lambda: arrived, lambda: what)
        return [worker.load_s for worker in workers if worker in self._workers]

    def start_load(
        self,
        refs: Sequence[Any],
        policy_version: int,
        then: Callable[[], None],
        *,
        at_once: int | None = None,
    ) -> None:
        """As `load_weights`, but returns at once; `then` is called by whoever waits."""
        assert self._push is None, "the engines are still loading other weights"
        self._weights = (refs, policy_version)
        workers = [w for w in self._workers if w.is_ready]
        self._push = _Push(deque(workers), at_once or len(workers), then)
        self._go_on_with_push()

    def policy_versions(self) -> list[int]:
        """The version that each engine at work reported when it had loaded its weights."""
        return [
            w.policy_version for w in self._workers if w.is_ready and w.policy_version is not None
        ]

    # ---------------------------------------------------------------- workers

    @property
    def num_workers(self) -> int:
        """Workers that are there or starting, those that leave not counted."""
        return sum(not worker.is_leaving for worker in self._workers)

    def add_workers(self, num: int = 1) -> None:
        """Start more workers; each takes prompts when it holds the weights in use."""
        for _ in range(num):
            index = next(self._numbers)
            worker = _Worker(index, self._spawn(index))
            self._workers.append(worker)
            self._call(worker, "ready", then=self._on_version)

    def remove_workers(self, num: int = 1) -> None:
        """Let the least busy workers finish what they have and go.

        Raises:
            ValueError: if none would be left.
        """
        staying = [w for w in self._workers if not w.is_leaving]
        if num >= len(staying):
            raise ValueError(
                f"cannot remove {num} of {len(staying)} rollout workers: one must stay"
            )
        for worker in sorted(staying, key=lambda w: (w.is_ready, len(w.tasks), -w.index))[:num]:
            worker.is_leaving = True
            self._dismiss_if_done(worker)

    def grow(self) -> int:
        """Start workers up to `rollout.max_workers` where there is room; returns how many."""
        num, free = 0, ray.available_resources() if self.recipe.rollout.max_workers else {}
        needs = _resources(self.recipe)
        while self.num_workers < (self.recipe.rollout.max_workers or 0):
            if any(free.get(name, 0.0) < amount for name, amount in needs.items()):
                break
            free = {name: value - needs.get(name, 0.0) for name, value in free.items()}
            self.add_workers()
            num += 1
        return num

    def wait_ready(self) -> None:
        """Wait until every worker takes prompts."""
        self.wait(lambda: all(w.is_ready for w in self._workers), lambda: "the engines to start")

    def shutdown(self) -> None:
        """End the workers; the pool cannot be used afterwards."""
        for worker in self._workers:
            ray.kill(worker.handle)
        self._workers = []
        self._waiting.clear()

    # ---------------------------------------------------------------- giving work

    def _dispatch(self, workers: Iterable[_Worker]) -> None:
        """Hand waiting prompts to those of the workers that have the most room."""
        if not self._waiting:
            return
        room = [(w.num_answers, w.index, w) for w in workers if w.is_ready and not w.is_leaving]
        heapq.heapify(room)
        given: dict[_Worker, list[_Task]] = {}
        while self._waiting and room:
            load, index, worker = room[0]
            size = self._waiting[0].settings.group_size
            if load and load + size > self._max_in_flight:
                heapq.heappop(room)
                continue
            task = self._waiting.popleft()
            assert task.prompt.prompt_id not in worker.tasks, f"{task.prompt.prompt_id} twice"
            worker.tasks[task.prompt.prompt_id] = task
            given.setdefault(worker, []).append(task)
            heapq.heapreplace(room, (load + size, index, worker))
        for worker, tasks in given.items():
            self._advance(worker, tasks)

    def _advance(self, worker: _Worker, tasks: Sequence[_Task]) -> None:
        """Send prompts, if any, and keep the worker's next call waiting for it."""
        by_settings = itertools.groupby(tasks, key=lambda task: task.settings)
        requests: list[Request] = [([t.prompt for t in some], key) for key, some in by_settings]
        if requests:
            self._call(worker, "advance", requests, then=self._on_turn)
            worker.num_calls += 1
        while worker.tasks and worker.num_calls < _CALLS_AT_ONCE:
            self._call(worker, "advance", (), then=self._on_turn)
            worker.num_calls += 1

    def _forget(self, prompt_ids: set[str]) -> None:
        """Nobody waits for these any more; what is at work on them is thrown away."""
        self._waiting = deque(t for t in self._waiting if t.prompt.prompt_id not in prompt_ids)
        for worker in self._workers:
            for prompt_id in prompt_ids & worker.tasks.keys():
                worker.tasks[prompt_id].on_group = lambda group: None

    # ---------------------------------------------------------------- what arrives

    def _call(
        self, worker: _Worker, method: str, *arguments: Any, then: Callable[[_Worker, Any], None]
    ) -> None:
        ref = getattr(worker.handle, method).remote(*arguments)
        arrived = partial(self._on_result, worker, method, then)
        self.mailbox.post_when_done(ref.future(), arrived)

    def _on_result(
        self,
        worker: _Worker,
        method: str,
        then: Callable[[_Worker, Any], None],
        future: "Future[Any]",
    ) -> None:
        if worker not in self._workers:  # it has died or left
            return
        error = future.exception()
        if error is None:
            then(worker, future.result())
        elif method == "load_weights" and isinstance(error, ray.exceptions.ObjectLostError):
            raise WeightsLostError(
                f"rollout worker {worker.index} cannot load weights: the learner rank that gave "
                f"them was lost ({_last_line(error)})"
            ) from error
        elif isinstance(error, _LOSSES):
            self._on_loss(worker, method, error)
        else:
            worker.tasks.clear()  # the engine has forgotten them
            if isinstance(error, ray.exceptions.RayTaskError):
                raise error.cause from error  # as the worker raised it, its traceback behind
            raise error

    def _on_turn(self, worker: _Worker, turn: Turn) -> None:
        worker.num_calls -= 1
        if turn.ended_s - turn.began_s > _IDLE_TURN_S:
            self._record(worker, "generate", turn.began_s, turn.ended_s)
        done = [(worker.tasks.pop(group.prompt.prompt_id), group) for group in turn.groups]
        self._dispatch([worker])
        self._advance(worker, ())
        self._dismiss_if_done(worker)
        for task, group in done:
            task.on_group(group)

    def _on_version(self, worker: _Worker, policy_version: int) -> None:
        """A started worker takes prompts once it holds the weights in use."""
        worker.policy_version = policy_version
        if self._weights is not None and self._weights[1] != policy_version:
            self._load(worker)
            return
        worker.is_ready = True
        self._dispatch([worker])
        self._go_on_with_push()

    def _on_loaded(self, worker: _Worker, loaded: Loaded) -> None:
        self._record(worker, "load weights", loaded.began_s, loaded.ended_s)
        worker.load_s = loaded.ended_s - loaded.began_s
        if worker.is_ready:
            worker.policy_version = loaded.policy_version
            self._go_on_with_push()
        else:
            self._on_version(worker, loaded.policy_version)

    def _on_loss(self, worker: _Worker, method: str, error: Exception) -> None:
        """Replace a worker that is lost and give its prompts to others."""
        self._workers.remove(worker)
        if isinstance(error, ray.exceptions.ActorUnavailableError):  # Ray does not know more yet
            cause = in_background(partial(cause_of_loss, worker.handle, error))
            self.mailbox.post_when_done(
                cause, lambda done: self._count_loss(worker, method, done.result())
            )
        else:
            self._count_loss(worker, method, error)
        lost = [
            replace(task, prompt=replace(task.prompt, attempt=task.prompt.attempt + 1))
            for task in worker.tasks.values()
        ]
        self._waiting.extendleft(reversed(lost))
        if not worker.is_leaving:
            self.add_workers()
        self._dispatch(self._workers)
        self._go_on_with_push()

    def _count_loss(self, worker: _Worker, method: str, error: Exception) -> None:
        """Stop the run if workers die too often; that a node was lost is not their fault.

        Raises:
            RolloutWorkerError: if this one may not be replaced.
        """
        if has_died_with_node(error):
            _log.warning("rollout worker %d was lost with its node", worker.index)
            return
        limit = self.recipe.rollout.max_restarts
        died = f"rollout worker {worker.index} died in `{method}`: {_last_line(error)}"
        # One that never started would not start the second time either.
        if worker.policy_version is None or self.num_restarts >= limit:
            raise RolloutWorkerError(f"{died} (restarts used: {self.num_restarts} of {limit})")
        self.num_restarts += 1
        _log.warning("%s; restart %d of %d", died, self.num_restarts, limit)

    def _go_on_with_push(self) -> None:
        """Let the next engines load; ends the push when all that live have, and one can work."""
        push = self._push
        if push is None or self._weights is None:
            return
        push.loading = {w for w in push.loading if w in self._workers and not self._is_current(w)}
        while push.waiting and len(push.loading) < push.at_once:
            worker = push.waiting.popleft()
            if worker in self._workers:
                push.loading.add(worker)
                self._load(worker)
        if not push.loading and any(w.is_ready for w in self._workers):
            self._push = None
            push.then()

    def _tell_all(self, method: str) -> None:
        """Call a method of every worker and wait until those that live have done it."""
        left = set(self._workers)
        for worker in list(left):
            self._call(worker, method, then=lambda worker, _: left.discard(worker))
        self.wait(lambda: not left.intersection(self._workers), lambda: f"the engines to {method}")

    def _load(self, worker: _Worker) -> None:
        assert self._weights is not None
        refs, policy_version = self._weights
        self._call(worker, "load_weights", policy_version, *refs, then=self._on_loaded)

    def _is_current(self, worker: _Worker) -> bool:
        return self._weights is not None and worker.policy_version == self._weights[1]

    def _dismiss_if_done(self, worker: _Worker) -> None:
        if worker.is_leaving and not worker.tasks:
            self._workers.remove(worker)
            ray.kill(worker.handle)
            self._go_on_with_push()

    def _record(self, worker: _Worker, what: str, began_s: float, ended_s: float) -> None:
        self.timeline.add("rollout", f"engine {worker.index}", what, began_s, ended_s)


def _resources(recipe: Recipe) -> dict[str, float]:
    cfg = recipe.rollout
    gpus = {"GPU": float(cfg.tensor_parallel_size)} if recipe.device == "cuda" else {}
    return {"CPU": cfg.num_cpus, **gpus}


def _actor_options(recipe: Recipe) -> dict[str, Any]:
    """What Ray reserves for one worker, and the environment that its libraries read at import."""
    needs = _resources(recipe)
    env = {
        "OMP_NUM_THREADS": str(recipe.rollout.num_threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    return {
        "num_cpus": needs["CPU"],
        "num_gpus": needs.get("GPU", 0),
        "max_restarts": 0,
        "max_task_retries": 0,
        "label_selector": recipe.placement.rollout_labels,
        "runtime_env": {"env_vars": env},
    }


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

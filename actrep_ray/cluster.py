"""The Ray cluster of a run: starting a local one, joining one, and leaving nothing behind.

The one owner of `ray.init` and `ray.shutdown`. Pools are started inside `cluster(...)`, which on
its way out, for whatever reason, ends them with the cluster.
"""

import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import ray

from actrep_ray.config import Recipe, check_attention

T = TypeVar("T")


@contextmanager
def cluster(*recipes: Recipe) -> Iterator[None]:
    """Hold a Ray cluster with room for the workers of all the recipes at the same time.

    Joins the cluster of RAY_ADDRESS, which Ray sets inside a submitted job; else starts a local
    one, and ends it with all of its processes. SIGTERM ends it as ctrl-C does.
    """
    joins = bool(os.environ.get("RAY_ADDRESS"))
    # A local cluster is reached from this machine alone; the notice of its token is no news.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    ray.init(
        address=None if joins else "local",
        num_cpus=None if joins else sum(num_cpus(recipe) for recipe in recipes),
        include_dashboard=False if not joins else None,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    try:
        with _terminate_as_interrupt():  # ray.init has set a handler of its own
            yield
    finally:
        with _uninterrupted():
            ray.shutdown()


def num_cpus(recipe: Recipe) -> int:
    """Logical CPUs that the workers of a recipe reserve; more than the machine has is no harm."""
    learner = recipe.learner.num_workers * recipe.learner.num_cpus
    if recipe.stage == "sft":
        return math.ceil(learner) + 1
    rollout = recipe.rollout.num_workers * recipe.rollout.num_cpus
    return math.ceil(learner + rollout + recipe.reward.num_workers * recipe.reward.num_cpus) + 1


def in_background(function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Call a function in a thread that never holds up the end of the process.

    The result, or what was raised, is in the future. A pool's threads would be waited for on the
    way out, and a start of workers that is cut short by ctrl-C may not return.
    """
    future: Future[T] = Future()

    def call() -> None:
        try:
            result = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - it is raised again by `result()`
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=call, name=function.__qualname__, daemon=True).start()
    return future


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that it unwinds like ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handler(signal.SIGTERM, interrupt):
        yield


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep a second ctrl-C from cutting the clean-up short."""
    with _handler(signal.SIGINT, signal.SIG_IGN), _handler(signal.SIGTERM, signal.SIG_IGN):
        yield


@contextmanager
def _handler(
    number: signal.Signals, handler: Callable[[int, FrameType | None], None] | signal.Handlers
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


def with_device(recipe: Recipe) -> Recipe:
    """The recipe with its device settled: "auto" is "cuda" where the cluster has a GPU.

    Raises:
        ConfigError: if the learner's attention cannot run there.
    """
    if recipe.device != "auto":
        return recipe
    device = "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
    settled = recipe.model_copy(update={"device": device})
    check_attention(settled)
    return settled

"""The Ray cluster of a run: starting a local one, joining one, and leaving nothing behind.

The one owner of `ray.init` and `ray.shutdown`. Pools are started inside `cluster(...)`, which on
its way out, for whatever reason, ends them with the cluster.
"""

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import ray

from actrep_ray.cluster.nodes import wait_for_room
from actrep_ray.cluster.placement import pools_of
from actrep_ray.cluster.this_machine import check_this_machine, joins_cluster
from actrep_ray.config import Recipe
from actrep_ray.models.torch_names import num_gpus


@contextmanager
def cluster(*recipes: Recipe, roles: Sequence[str] = ()) -> Iterator[None]:
    """Hold a Ray cluster with room for the workers of all the recipes at the same time.

    Joins the cluster of RAY_ADDRESS, which Ray sets inside a submitted job; else starts a local
    one, and ends it with all of its processes. SIGTERM ends it as ctrl-C does.

    Args:
        recipes: Whose workers will be started inside.
        roles: Only workers of these roles will be; by default all that a recipe's stage has.

    Raises:
        PlacementError: if this machine, or the joined cluster, cannot hold a recipe, with what is
            missing.
    """
    joins = joins_cluster()
    for recipe in recipes:
        check_this_machine(recipe, roles)
    # A local cluster is reached from this machine alone; the notice of its token is no news.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    ray.init(
        address=None if joins else "local",
        num_cpus=None if joins else sum(num_cpus(recipe) for recipe in recipes),
        num_gpus=None if joins else num_gpus(),
        include_dashboard=False if not joins else None,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    try:
        with _terminate_as_interrupt():  # ray.init has set a handler of its own
            if joins:
                for recipe in recipes:
                    wait_for_room(recipe, roles, wait_s=recipe.placement.wait_s)
            yield
    finally:
        with _uninterrupted():
            ray.shutdown()


def num_cpus(recipe: Recipe) -> int:
    """Logical CPUs that the workers of a recipe reserve; more than the machine has is no harm."""
    needed = sum(pool.num_workers * pool.num_cpus for pool in pools_of(recipe))
    if recipe.stage == "grpo" and recipe.rollout.max_workers:
        num_more = recipe.rollout.max_workers - recipe.rollout.num_workers
        needed += num_more * recipe.rollout.num_cpus
    return math.ceil(needed) + 1


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

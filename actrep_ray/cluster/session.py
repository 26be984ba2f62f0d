"""The Ray cluster of a run: starting a local one, joining one, and leaving nothing behind.

The one owner of `ray.init` and `ray.shutdown`. Pools are started inside `cluster(...)`, which on
its way out, for whatever reason, ends them with the cluster.
"""

import logging
import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ray

from actrep_ray.cluster.nodes import wait_for_room
from actrep_ray.cluster.placement import pools_of
from actrep_ray.cluster.stopping import handled, interrupt
from actrep_ray.cluster.this_machine import check_this_machine, joins_cluster
from actrep_ray.cluster.watchdog import watched
from actrep_ray.config import Recipe
from actrep_ray.models.torch_names import num_gpus


@contextmanager
def cluster(
    *recipes: Recipe, roles: Sequence[str] = (), stacks: Path | None = None
) -> Iterator[None]:
    """Hold a Ray cluster with room for the workers of all the recipes at the same time.

    Joins the cluster of RAY_ADDRESS, which Ray sets inside a submitted job; else starts a local
    one, and ends it with all of its processes. SIGTERM and SIGUSR1 end it as ctrl-C does; a run's
    loop saves before (`stopping.StopRequest`). Processes of a local cluster ignore SIGUSR1, which
    Slurm sends to all processes of a job.

    Args:
        recipes: Whose workers will be started inside.
        roles: Only workers of these roles will be; by default all that a recipe's stage has.
        stacks: Folder for what workers that hang are at; by default in the last recipe's run.

    Raises:
        PlacementError: if this machine, or the joined cluster, cannot hold a recipe, with what is
            missing.
    """
    joins = joins_cluster()
    for recipe in recipes:
        check_this_machine(recipe, roles)
    # A local cluster is reached from this machine alone; the notice of its token is no news.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    with handled(signal.SIGUSR1, signal.SIG_IGN):  # what is started inherits that
        ray.init(
            address=None if joins else "local",
            num_cpus=None if joins else sum(num_cpus(recipe) for recipe in recipes),
            num_gpus=None if joins else num_gpus(),
            include_dashboard=False if not joins else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    try:
        with handled(signal.SIGTERM, interrupt), handled(signal.SIGUSR1, interrupt):
            if joins:
                for recipe in recipes:
                    wait_for_room(recipe, roles, wait_s=recipe.placement.wait_s)
            with watched(recipes[-1], stacks or recipes[-1].run_dir / "stacks"):
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
def _uninterrupted() -> Iterator[None]:
    """Keep a second ctrl-C from cutting the clean-up short."""
    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            stack.enter_context(handled(number, signal.SIG_IGN))
        yield

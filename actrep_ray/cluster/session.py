"""The Ray cluster of a run: starting a local one, joining one, and leaving nothing behind.

The one owner of `ray.init` and `ray.shutdown`. Pools are started inside `cluster(...)`, which on
its way out, for whatever reason, ends them with the cluster.
"""

import logging
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import psutil
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actrep_ray.cluster.placement import Node, PlacementError, place, pools_of, shares_bundles
from actrep_ray.config import Recipe, check_attention

T = TypeVar("T")


_log = logging.getLogger(__name__)
_POLL_S = 2.0
_PAUSE_S = 0.5
_CAUSE_S = 120.0  # Ray gives a node up after about 15 s


@contextmanager
def cluster(*recipes: Recipe, roles: Sequence[str] = ()) -> Iterator[None]:
    """Hold a Ray cluster with room for the workers of all the recipes at the same time.

    Joins the cluster of RAY_ADDRESS, which Ray sets inside a submitted job; else starts a local
    one, and ends it with all of its processes. SIGTERM ends it as ctrl-C does.

    Args:
        recipes: Whose workers will be started inside.
        roles: Only workers of these roles will be; by default all that a recipe's stage has.

    Raises:
        PlacementError: if a joined cluster cannot hold a recipe, with what is missing.
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
            if joins:
                for recipe in recipes:
                    wait_for_room(recipe, roles)
            yield
    finally:
        with _uninterrupted():
            ray.shutdown()


def wait_for_room(recipe: Recipe, roles: Sequence[str] = ()) -> None:
    """Return when the cluster's nodes can hold a recipe: nodes may join up to `placement.wait_s`.

    Raises:
        PlacementError: if they still cannot then, with what is missing.
    """
    deadline, told = time.monotonic() + recipe.placement.wait_s, ""
    while True:
        is_cpu = with_device(recipe).device == "cpu"
        try:
            place(pools_of(recipe, roles, is_cpu=is_cpu), _nodes())
        except PlacementError as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            if str(error) != told:  # once, and again when nodes have come or gone
                told = str(error)
                _log.warning("waiting up to %.0f s for more nodes: %s", left, told)
            time.sleep(min(_POLL_S, left))
        else:
            return


def nodes_of_cluster() -> list[Node]:
    """The nodes of the cluster of RAY_ADDRESS, with the memory of their GPUs; joins it briefly."""
    ray.init(logging_level=logging.WARNING, log_to_driver=False)
    try:
        return _nodes(with_memory=True)
    finally:
        ray.shutdown()


def reserve(recipe: Recipe) -> PlacementGroup:
    """Hold the bundles of the learner ranks, all or none, packed onto as few nodes as possible.

    Where engines share them (`placement.shares_bundles`), there is room for one in each.

    Args:
        recipe: Settings, with the device resolved.

    Raises:
        TimeoutError: if the cluster had no room within `learner.timeout_s`.
    """
    roles = ("learner", "rollout") if shares_bundles(recipe) else ("learner",)
    (pool,) = pools_of(recipe, roles, is_cpu=recipe.device == "cpu")
    group = placement_group(
        [pool.bundle] * pool.num_workers,
        strategy="PACK",
        bundle_label_selector=[dict(pool.labels)] * pool.num_workers if pool.labels else None,
    )
    if not group.wait(recipe.learner.timeout_s):
        remove_placement_group(group)
        raise TimeoutError(
            f"waited {recipe.learner.timeout_s:g} s (learner.timeout_s) for room for "
            f"{pool.num_workers} {pool.role} workers of {pool.bundle}: is another job using the "
            "cluster?"
        )
    return group


def bundle_options(group: PlacementGroup, index: int) -> dict[str, Any]:
    """Options that put an actor into a bundle; -1 is any that has room."""
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    return {"scheduling_strategy": strategy}


def release(group: PlacementGroup) -> None:
    """Give the bundles back; actors in them end."""
    remove_placement_group(group)


def cause_of_loss(actor: Any, error: Exception) -> Exception:
    """Why calls of an actor fail, when Ray knows; the actor has ended then.

    Of an actor whose node was lost Ray says at first only that it cannot be reached; a little
    later, whether its process or its node has died. An actor that answers again is ended: whoever
    asks has given its work to others.

    Args:
        actor: Its handle.
        error: What a call raised.
    """
    deadline = time.monotonic() + _CAUSE_S
    while isinstance(error, ray.exceptions.ActorUnavailableError):
        try:
            ray.get(actor.__ray_ready__.remote(), timeout=_POLL_S)
            break
        except ray.exceptions.GetTimeoutError:
            pass
        except ray.exceptions.RayActorError as found:
            error = found
            time.sleep(_PAUSE_S)
        if time.monotonic() > deadline:
            break
    ray.kill(actor)
    return error


def has_died_with_node(error: Exception) -> bool:
    """Whether an actor ended because its node did, and not by its own fault."""
    return isinstance(error, ray.exceptions.ActorDiedError) and "node has died" in str(error)


def use_node_network() -> None:
    """Let gloo of this process speak on the network that Ray reaches this node at.

    Left alone, gloo announces what the host's own name resolves to; on many machines that is a
    loopback address, at which ranks of other nodes find nobody. GLOO_SOCKET_IFNAME, if it is set,
    is left as it is.
    """
    address = ray.util.get_node_ip_address()
    for name, found in psutil.net_if_addrs().items():
        if any(one.address == address for one in found):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _nodes(*, with_memory: bool = False) -> list[Node]:
    """What the living nodes have, in use or not."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    gpus = [node for node in alive if node["Resources"].get("GPU")]
    gib = {node["NodeID"]: _gpu_gib(node["NodeID"]) for node in gpus} if with_memory else {}
    return [
        Node(
            name=f"node {node['NodeManagerAddress']}",
            num_gpus=node["Resources"].get("GPU", 0.0),
            num_cpus=node["Resources"].get("CPU", 0.0),
            gpu_gib=gib.get(node["NodeID"], 0.0),
            labels=node.get("Labels", {}),
        )
        for node in alive
    ]


def _gpu_gib(node_id: str) -> float:
    """Memory of the smallest GPU of a node, GiB, asked of its driver."""
    task = ray.remote(num_cpus=0, label_selector={"ray.io/node-id": node_id})(_ask_driver)
    found: float = ray.get(task.remote())
    return found


def _ask_driver() -> float:
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, check=True, capture_output=True, text=True, timeout=60).stdout
    return min(float(line) for line in lines.split()) / 1024


def num_cpus(recipe: Recipe) -> int:
    """Logical CPUs that the workers of a recipe reserve; more than the machine has is no harm."""
    needed = sum(pool.num_workers * pool.num_cpus for pool in pools_of(recipe))
    if recipe.stage == "grpo" and recipe.rollout.max_workers:
        num_more = recipe.rollout.max_workers - recipe.rollout.num_workers
        needed += num_more * recipe.rollout.num_cpus
    return math.ceil(needed) + 1


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

"""The nodes of the running cluster: what they have, whether a recipe fits, how they are reached."""

import logging
import os
import subprocess
import time
from collections.abc import Sequence

import psutil
import ray

from actrep_ray.cluster.placement import Node, PlacementError, place, pools_of
from actrep_ray.config import Recipe, check_attention

_POLL_S = 2.0
_ASK_S = 120.0  # that a node takes at most to start a process and to answer

_log = logging.getLogger(__name__)


def wait_for_room(recipe: Recipe, roles: Sequence[str] = (), *, wait_s: float) -> None:
    """Return when the cluster's nodes can hold a recipe.

    Args:
        recipe: Settings.
        roles: As of `pools_of`.
        wait_s: How long nodes may take to join; 0 refuses at once.

    Raises:
        PlacementError: if they still cannot then, with what is missing.
    """
    deadline, told = time.monotonic() + wait_s, ""
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


def nodes_of_cluster() -> list[Node]:
    """The nodes of the cluster of RAY_ADDRESS, with the memory of their GPUs; joins it briefly."""
    ray.init(logging_level=logging.WARNING, log_to_driver=False)
    try:
        return _nodes(with_memory=True)
    finally:
        ray.shutdown()


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
    found: float = ray.get(task.remote(), timeout=_ASK_S)
    return found


def _ask_driver() -> float:
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, check=True, capture_output=True, text=True, timeout=60).stdout
    return min(float(line) for line in lines.split()) / 1024

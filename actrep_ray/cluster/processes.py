"""The processes of actors, and what is done about one on the node that it is on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import ray

T = TypeVar("T")

_ASK_S = 30.0  # that another node takes at most to answer


@dataclass(frozen=True)
class Host:
    """Where the process of an actor is."""

    node: str
    pid: int


def host_of(actor: str) -> Host | None:
    """Where an actor's process is, by the actor's id; None while it has none."""
    known = ray._private.state.actors(actor)
    node = known.get("Address", {}).get("NodeID", "")
    pid = int(known.get("Pid", 0))
    return Host(node, pid) if node and pid else None


def this_node() -> str:
    """Ray's id of the node that this process is on."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


def on_node(node: str, call: Callable[[], T]) -> T | None:
    """What a function returns on a node, by a task if it is another one; None without answer."""
    if node == this_node():
        return call()
    options: Mapping[str, object] = {"num_cpus": 0, "label_selector": {"ray.io/node-id": node}}
    try:
        found: T = ray.get(ray.remote(**options)(_call).remote(call), timeout=_ASK_S)
    except ray.exceptions.RayError:
        return None
    return found


def _call(call: Callable[[], T]) -> T:
    return call()

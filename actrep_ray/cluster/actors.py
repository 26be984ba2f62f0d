"""What pools and their actors need of Ray: making actors, objects, addresses, free resources.

Workers are plain classes, importable and testable without Ray, and become actors late.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import ray
from ray.util.placement_group import PlacementGroup

from actrep_ray.cluster import presence

Bundles: TypeAlias = PlacementGroup
"""Room that is reserved, one bundle for each worker."""

ObjectRef: TypeAlias = ray.ObjectRef
"""Refers to a value in the object store."""


def as_actor(worker: type, options: Mapping[str, Any]) -> Any:
    """The class of actors of a worker; `.remote(...)` starts one and returns its handle.

    Args:
        worker: A plain class; what it is made of is given by position.
        options: Of `ray.remote`: resources, restarts, labels, runtime environment.
    """
    return ray.remote(**options)(_with_presence(worker))


def _with_presence(worker: type) -> type:
    """The class, whose processes show signs of life from before it starts."""

    def init(self: Any, *args: Any) -> None:
        presence.begin()
        worker.__init__(self, *args)  # type: ignore[misc]

    return type(worker.__name__, (worker,), {"__init__": init, "__module__": worker.__module__})


def cpu_threads(device: str, num_threads: int) -> dict[str, str]:
    """Environment that gives an actor its computing threads on a CPU; none on a GPU node.

    There the process itself asks for its share of the cores (`torch_names.host_threads`).
    """
    return {"OMP_NUM_THREADS": str(num_threads)} if device == "cpu" else {}


def put(value: object) -> ObjectRef:
    """Leave a value in the object store of this node."""
    return ray.put(value)


def free_resources() -> dict[str, float]:
    """What no worker of the cluster has reserved, by Ray's names."""
    free: dict[str, float] = ray.available_resources()
    return free


def node_address() -> str:
    """The address at which other nodes reach this one."""
    address: str = ray.util.get_node_ip_address()
    return address

"""Whether this machine can hold a recipe, asked before a Ray of our own is started on it.

GPUs must be there, for Ray would wait for them in silence. CPUs are logical: what workers reserve
may be more than the machine has, and only makes them slower.
"""

import os
from collections.abc import Sequence

from actrep_ray.cluster.placement import Node, PlacementError, place, pools_of
from actrep_ray.config import Recipe
from actrep_ray.models.torch_names import num_gpus

_SIZES = {
    "learner": ("learner.num_workers",),
    "rollout": ("rollout.num_workers", "rollout.tensor_parallel_size"),
}


def joins_cluster() -> bool:
    """Whether a run joins the cluster of RAY_ADDRESS, as inside a submitted job."""
    return bool(os.environ.get("RAY_ADDRESS"))


def check_this_machine(recipe: Recipe, roles: Sequence[str] = ()) -> None:
    """Refuse a recipe that asks for GPUs that this machine lacks; takes no time.

    A cluster that is joined is asked when it is (`nodes.wait_for_room`).

    Args:
        recipe: Settings.
        roles: As of `pools_of`.

    Raises:
        PlacementError: naming the settings, what they ask for and what is there.
    """
    if joins_cluster() or recipe.device == "cpu":
        return
    num = num_gpus()
    if recipe.device == "auto" and not num:
        return
    pools = pools_of(recipe, roles)
    if not num:
        asked = sum(pool.num_gpus * pool.num_workers for pool in pools)
        sizes = [
            f"{key}={recipe.model_dump()[section][name]}"
            for pool in pools
            for key in _SIZES.get(pool.role, ())
            for section, name in [key.split(".")]
        ]
        raise PlacementError(
            f"device={recipe.device}: {asked:g} GPUs are asked for ({', '.join(sizes)}), this "
            "machine has 0 that torch can use; set device=auto or cpu, or `actrep doctor` for why"
        )
    place(pools, [Node("this machine", num)])

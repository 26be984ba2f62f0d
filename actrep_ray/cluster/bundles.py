"""Room that is reserved for the learner ranks, and for the engines that share it with them."""

from typing import Any

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actrep_ray.cluster.placement import is_colocated, pools_of
from actrep_ray.config import Recipe


def reserve(recipe: Recipe) -> PlacementGroup:
    """Hold the bundles of the learner ranks, all or none, packed onto as few nodes as possible.

    Where engines share them (`placement.is_colocated`), there is room for one in each.

    Args:
        recipe: Settings, with the device resolved.

    Raises:
        TimeoutError: if the cluster had no room within `learner.timeout_s`.
    """
    roles = ("learner", "rollout") if is_colocated(recipe) else ("learner",)
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

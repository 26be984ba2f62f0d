"""Room that is reserved for the learner ranks, and for the engines that share it with them."""

import logging
import time
from typing import Any

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actrep_ray.cluster.placement import PlacementError, is_colocated, pools_of
from actrep_ray.config import Recipe

_SAY_EVERY_S = 30.0
_log = logging.getLogger(__name__)


def reserve(recipe: Recipe) -> PlacementGroup:
    """Hold the bundles of the learner ranks, all or none, packed onto as few nodes as possible.

    Where engines share them (`placement.is_colocated`), there is room for one in each.

    Args:
        recipe: Settings, with the device resolved.

    Raises:
        PlacementError: if the cluster had no room within `placement.busy_s`.
    """
    roles = ("learner", "rollout") if is_colocated(recipe) else ("learner",)
    (pool,) = pools_of(recipe, roles, is_cpu=recipe.device == "cpu")
    group = placement_group(
        [pool.bundle] * pool.num_workers,
        strategy="PACK",
        bundle_label_selector=[dict(pool.labels)] * pool.num_workers if pool.labels else None,
    )
    what = f"room for {pool.num_workers} {pool.role} workers of {pool.bundle}"
    try:
        _wait_for(group, what, recipe.placement.busy_s)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def _wait_for(group: PlacementGroup, what: str, limit_s: float) -> None:
    """Return when a group has its bundles; say now and then what is waited for.

    Raises:
        PlacementError: if it does not get them in time.
    """
    deadline = time.monotonic() + limit_s
    while not group.wait(min(_SAY_EVERY_S, max(deadline - time.monotonic(), 0.0))):
        left = deadline - time.monotonic()
        if left <= 0:
            raise PlacementError(
                f"waited {limit_s:g} s (placement.busy_s) for {what}: other jobs of the cluster "
                "take it up; try again when they have ended, or raise placement.busy_s"
            )
        _log.warning("waiting up to %.0f s more for %s: other jobs take it up", left, what)


def bundle_options(group: PlacementGroup, index: int) -> dict[str, Any]:
    """Options that put an actor into a bundle; -1 is any that has room."""
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    return {"scheduling_strategy": strategy}


def release(group: PlacementGroup) -> None:
    """Give the bundles back; actors in them end."""
    remove_placement_group(group)

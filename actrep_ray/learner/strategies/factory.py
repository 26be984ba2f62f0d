"""The strategy that a recipe names."""

from torch.distributed.device_mesh import DeviceMesh

from actrep_ray.config import Recipe
from actrep_ray.learner.policy import Policy
from actrep_ray.learner.strategies.base import Strategy
from actrep_ray.learner.strategies.deepspeed import Zero
from actrep_ray.learner.strategies.fsdp import Fsdp2
from actrep_ray.models.loading import Source


def make_strategy(
    policy: Policy, mesh: DeviceMesh, recipe: Recipe, source: Source | None = None
) -> Strategy:
    """Move a policy to the device of a mesh and split it over its ranks, in place.

    FSDP2 and ZeRO-3 move one layer at a time and keep its shard: the whole need not fit the device.
    ZeRO-2 keeps all of it, in the dtype of computation.

    Args:
        policy: The model to train; components that are frozen are so already.
        mesh: The ranks, in one dimension.
        recipe: `recipe.learner.strategy` says which.
        source: Values of the weights, on rank 0 of several.
    """
    if recipe.learner.strategy == "deepspeed":
        return Zero(policy, mesh, recipe, source)
    return Fsdp2(policy, mesh, recipe, source)

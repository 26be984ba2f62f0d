"""The strategy that a recipe names."""

from torch.distributed.device_mesh import DeviceMesh

from actrep_ray.config import Recipe
from actrep_ray.learner.policy import Policy
from actrep_ray.learner.strategies.base import Strategy
from actrep_ray.learner.strategies.deepspeed import Zero
from actrep_ray.learner.strategies.fsdp import Fsdp2


def make_strategy(policy: Policy, mesh: DeviceMesh, recipe: Recipe) -> Strategy:
    """Move a policy to the device of a mesh and split it over its ranks, in place.

    FSDP2 moves one layer at a time and keeps its shard: the whole need not fit the device.
    DeepSpeed moves all of it once, in the dtype of computation.

    Args:
        policy: The model to train; components that are frozen are so already.
        mesh: The ranks, in one dimension.
        recipe: `recipe.learner.strategy` says which.
    """
    if recipe.learner.strategy == "deepspeed":
        return Zero(policy, mesh, recipe)
    return Fsdp2(policy, mesh, recipe)

"""Starting rollout workers as Ray actors: what each reserves, where it goes, if there is room."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from actrep_ray.cluster.actors import Bundles, as_actor, cpu_threads, free_resources
from actrep_ray.cluster.bundles import bundle_options
from actrep_ray.cluster.placement import share_of_bundle
from actrep_ray.config import Recipe
from actrep_ray.rollout.worker import RolloutWorker, start_engine


def spawner(
    recipe: Recipe, model_path: str | Path, bundles: Bundles | None
) -> Callable[[int], Any]:
    """What starts worker number `index` and returns its handle.

    Args:
        recipe: Settings, with the device resolved.
        model_path: Folder of the checkpoint that the engines start from.
        bundles: Those of the learner ranks, if each shares its own with an engine.
    """
    actor = as_actor(RolloutWorker, _actor_options(recipe))
    start = partial(start_engine, recipe, str(model_path))

    def spawn(index: int) -> Any:
        if bundles is None:
            return actor.remote(start)
        shares = share_of_bundle(recipe)
        bundle = bundle_options(bundles, index if index < bundles.bundle_count else -1)
        return actor.options(**shares, **bundle).remote(start)

    return spawn


def room_for(recipe: Recipe, limit: int) -> int:
    """How many more workers, at most `limit`, the cluster has room for now."""
    if limit <= 0:
        return 0
    free, num = free_resources(), limit
    needs = _resources(recipe)
    while any(free.get(name, 0.0) + 1e-6 < num * amount for name, amount in needs.items()):
        num -= 1
    return num


def _resources(recipe: Recipe) -> dict[str, float]:
    cfg = recipe.rollout
    gpus = {"GPU": float(cfg.tensor_parallel_size)} if recipe.device == "cuda" else {}
    return {"CPU": cfg.num_cpus, **gpus}


def _actor_options(recipe: Recipe) -> dict[str, Any]:
    """What Ray reserves for one worker, and the environment that its libraries read at import."""
    needs = _resources(recipe)
    env = cpu_threads(recipe.device, recipe.rollout.num_threads) | {
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    return {
        "num_cpus": needs["CPU"],
        "num_gpus": needs.get("GPU", 0),
        "max_restarts": 0,
        "max_task_retries": 0,
        "label_selector": recipe.placement.rollout_labels,
        "runtime_env": {"env_vars": env},
    }

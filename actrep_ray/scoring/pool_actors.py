"""Starting reward workers as Ray actors: what each reserves, and how it finds a user's rewards."""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from actrep_ray.cluster.actors import as_actor
from actrep_ray.config import Recipe
from actrep_ray.scoring.worker import RewardWorker
from rewards.compose import RewardSpec

STATUS_GROUP = "status"
"""Threads of a worker that answer while another scores."""


def starter(recipe: Recipe, spec: RewardSpec) -> Callable[[], Any]:
    """What starts a worker with a composition of rewards and returns its handle."""
    actor = as_actor(RewardWorker, _actor_options(recipe, spec))
    return partial(actor.remote, spec, recipe.task)


def _actor_options(recipe: Recipe, spec: RewardSpec) -> dict[str, Any]:
    # One thread scores; another says what is being scored when a deadline is missed.
    options: dict[str, Any] = {
        "num_cpus": recipe.reward.num_cpus,
        "concurrency_groups": {STATUS_GROUP: 1},
        "max_restarts": 0,
        "label_selector": recipe.placement.reward_labels,
        "scheduling_strategy": "SPREAD",
    }
    if any(":" in part.name for part in spec.parts):  # import a user's rewards as the driver does
        path = os.pathsep.join(entry for entry in sys.path if entry)
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    return options

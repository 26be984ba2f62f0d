"""Settings by their dotted names, as `--set` takes them."""

from typing import Any

from actrep_ray.config.recipe import Recipe


def flat_settings(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its name, as `train.num_steps`; `reward.weights` is one of them."""
    return _flat(recipe.model_dump(), "")


def _flat(section: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name != "reward.weights":
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat

"""Settings by their dotted names, as `--set` takes them."""

from typing import Any

from actrep_ray.config.recipe import Recipe
from actrep_ray.config.section import Section


def flat_settings(recipe: Recipe) -> dict[str, Any]:
    """Every setting by its name, as `train.num_steps`; one whose value is a mapping is one too."""
    return _flat(recipe, recipe.model_dump(), "")


def _flat(section: Section, values: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        inner = getattr(section, key)
        if isinstance(inner, Section):
            flat |= _flat(inner, value, f"{name}.")
        else:
            flat[name] = value
    return flat

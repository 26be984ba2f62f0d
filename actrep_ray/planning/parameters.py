"""How many parameters are trained, and how many bytes of them go to the engines."""

from actrep_ray.config import Recipe
from actrep_ray.models.architecture import Architecture
from actrep_ray.planning.memory_plan import value_bytes


def trainable_parameters(recipe: Recipe, model: Architecture) -> tuple[int, int]:
    """(trained, frozen) parameters."""
    lora = recipe.model.lora
    if not lora.rank:
        frozen = sum(model.num_parameters[component] for component in recipe.model.freeze)
        return model.total_parameters - frozen, frozen
    trained = lora.rank * sum(
        model.linear_widths[component].get(name, 0)
        for component in set(lora.components)
        for name in set(lora.target_modules)
    )
    return trained, model.total_parameters


def push_bytes(recipe: Recipe, model: Architecture) -> int:
    """Bytes that each push brings to every engine: all weights, or the adapters alone."""
    trained, _ = trainable_parameters(recipe, model)
    sent = trained if recipe.sends_adapters else model.total_parameters
    return value_bytes(recipe) * sent

"""How many parameters are trained, and how many bytes of them go to the engines."""

from actrep_ray.config import ConfigError, Recipe
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


def check_adapters(recipe: Recipe, model: Architecture) -> None:
    """Refuse adapters for which the model has no layer, before anything of it is loaded.

    Raises:
        ConfigError: naming the layers that there are.
    """
    lora = recipe.model.lora
    known = {name for component in lora.components for name in model.linear_widths[component]}
    if lora.rank and not known & set(lora.target_modules):
        raise ConfigError(
            f"model.lora.target_modules={list(lora.target_modules)}: no such linear layer in "
            f"{', '.join(lora.components)}, which has {', '.join(sorted(known))}"
        )


def checkpoint_bytes(recipe: Recipe, model: Architecture) -> tuple[int, int]:
    """(model, training state) of one checkpoint, bytes.

    The model folder is in the dtype of computation, and there is one more of the moving average;
    the state has AdamW's two moments, the average, and float32 weights where the folder has less.
    """
    trained, _ = trainable_parameters(recipe, model)
    is_averaged = recipe.learner.ema_decay is not None
    is_exact = recipe.model.dtype == "float32" and not recipe.model.lora.rank
    folders = value_bytes(recipe) * model.total_parameters * (1 + is_averaged)
    adapter = 4 * trained if recipe.model.lora.rank else 0
    return folders, trained * (8 + 4 * is_averaged + 4 * (not is_exact)) + adapter


def push_bytes(recipe: Recipe, model: Architecture) -> int:
    """Bytes that each push brings to every engine: all weights, or the adapters alone."""
    trained, _ = trainable_parameters(recipe, model)
    sent = trained if recipe.sends_adapters else model.total_parameters
    return value_bytes(recipe) * sent

"""The settings that DeepSpeed is given: the user's own JSON, completed from the recipe.

Imports no torch, so that a contradiction is told before any actor starts.
"""

import json
from pathlib import Path
from typing import Any

from actrep_ray.config import ConfigError, Recipe
from data_prep.files import DataError, read_object

_BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def check_deepspeed(recipe: Recipe) -> None:
    """Check the DeepSpeed JSON of a recipe, if it has one, against the recipe.

    Raises:
        ConfigError: if the recipe contradicts the DeepSpeed JSON that it names.
    """
    if recipe.learner.strategy == "deepspeed":
        deepspeed_settings(recipe)


def deepspeed_settings(recipe: Recipe) -> dict[str, Any]:
    """What `deepspeed.initialize` is given: the user's JSON, completed from the recipe.

    Of the JSON, batch sizes, optimiser and scheduler are only compared: the recipe rules them.
    "auto" stands for the recipe's value.

    Raises:
        ConfigError: if the JSON cannot be read or contradicts the recipe; both keys are named.
    """
    path = recipe.learner.deepspeed_config
    user: dict[str, Any] = {} if path is None else _read(Path(path))
    if path is not None:
        _compare(user, recipe, path)
    rest = {k: v for k, v in user.items() if k not in (*_BATCH_KEYS, "optimizer", "scheduler")}
    return _merged(_without_auto(rest), _own_settings(recipe))


def _own_settings(recipe: Recipe) -> dict[str, Any]:
    cfg = recipe.learner
    # A pinned copy is of use only beside a GPU.
    offloaded = {"device": "cpu", "pin_memory": recipe.device == "cuda"}
    zero: dict[str, Any] = {"stage": cfg.zero_stage}
    if cfg.offload != "none":
        zero["offload_optimizer"] = offloaded
    if cfg.offload == "all":
        zero["offload_param"] = offloaded
    dtypes = {"float32": "fp32", "bfloat16": "bf16"}
    return {
        # Micro-batches are cut by tokens and the worker says which is the last, so these two are
        # for DeepSpeed's own bookkeeping only.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": cfg.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # PyTorch's AdamW everywhere, so results compare
        "bf16": {"enabled": recipe.model.dtype == "bfloat16", "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": dtypes[cfg.reduce_dtype],
    }


def _compare(user: dict[str, Any], recipe: Recipe, path: str) -> None:
    """Refuse a JSON that says otherwise than the recipe, or what only a recipe can say."""
    if "scheduler" in user:
        raise ConfigError(f"{path}: scheduler is set by learner.schedule; remove it")
    for key, (recipe_key, expected) in _ruled_by_recipe(recipe).items():
        found = _get(user, key)
        if found in (None, "auto") or _equal(found, expected):
            continue
        raise ConfigError(
            f"{path}: {key}={json.dumps(found)} contradicts {recipe_key}, which asks for "
            f'{json.dumps(expected)}: change one of them, or write "auto" in the JSON'
        )
    micro, steps = (_get(user, key) for key in _BATCH_KEYS[1:])
    if isinstance(micro, int) and isinstance(steps, int):
        ranks, answers = recipe.learner.num_workers, recipe.answers_per_optimizer_step
        if micro * steps * ranks != answers:
            raise ConfigError(
                f"{path}: {_BATCH_KEYS[1]}={micro} x {_BATCH_KEYS[2]}={steps} x "
                f"learner.num_workers={ranks} = {micro * steps * ranks} contradicts "
                f"{_batch_key(recipe)}, which asks for {answers}: change one of them, or write "
                '"auto" in the JSON'
            )


def _ruled_by_recipe(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """DeepSpeed's key to (key of the recipe, value that it asks for)."""
    cfg, is_low = recipe.learner, recipe.model.dtype == "bfloat16"
    dtype = "bf16" if cfg.reduce_dtype == "bfloat16" else "fp32"
    return {
        "train_batch_size": (_batch_key(recipe), recipe.answers_per_optimizer_step),
        "gradient_clipping": ("learner.max_grad_norm", cfg.max_grad_norm),
        "zero_optimization.stage": ("learner.zero_stage", cfg.zero_stage),
        "zero_optimization.offload_optimizer.device": (
            f"learner.offload={cfg.offload}",
            "none" if cfg.offload == "none" else "cpu",
        ),
        "zero_optimization.offload_param.device": (
            f"learner.offload={cfg.offload}",
            "cpu" if cfg.offload == "all" else "none",
        ),
        "bf16.enabled": (f"model.dtype={recipe.model.dtype}", is_low),
        "fp16.enabled": (f"model.dtype={recipe.model.dtype}", False),
        "amp.enabled": (f"model.dtype={recipe.model.dtype}", False),
        "communication_data_type": (f"learner.reduce_dtype={cfg.reduce_dtype}", dtype),
        "data_types.grad_accum_dtype": ("the learner (gradients are summed in float32)", "fp32"),
        "optimizer.type": ("the learner's optimiser", "AdamW"),
        "optimizer.params.lr": ("learner.lr", cfg.lr),
        "optimizer.params.betas": ("learner.betas", list(cfg.betas)),
        "optimizer.params.weight_decay": ("learner.weight_decay", cfg.weight_decay),
    }


def _batch_key(recipe: Recipe) -> str:
    if recipe.stage == "sft":
        return "sft.clips_per_step"
    if recipe.train.mini_batch_size is not None:
        return "train.mini_batch_size"
    return "train.prompts_per_step * train.group_size"


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, "the settings of DeepSpeed")
    except DataError as error:
        raise ConfigError(f"learner.deepspeed_config={error}") from error


def _get(values: dict[str, Any], dotted: str) -> Any:
    """The value at `a.b.c`, None if there is none."""
    found: Any = values
    for key in dotted.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(key)
    return found


def _equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, bool) or isinstance(found, bool):
        return found is expected
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return abs(found - expected) <= 1e-9 * abs(expected)
    return bool(found == expected)


def _without_auto(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value != "auto"
    }


def _merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Both, section by section; `over` wins."""
    both = dict(values)
    for key, value in over.items():
        old = both.get(key)
        is_section = isinstance(old, dict) and isinstance(value, dict)
        both[key] = _merged(old or {}, value) if is_section else value
    return both

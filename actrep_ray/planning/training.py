"""What training comes to, told from the recipe alone: batch size, optimiser steps, strategy."""

from dataclasses import dataclass

from actrep_ray.config import Recipe
from actrep_ray.planning.deepspeed_settings import check_deepspeed


def describe_training(recipe: Recipe) -> list[str]:
    """The equivalent batch size, the strategy and what to beware of, a line each, checked.

    Raises:
        ConfigError: if the recipe contradicts the DeepSpeed JSON that it names.
    """
    check_deepspeed(recipe)
    cfg, answers = recipe.learner, recipe.answers_per_optimizer_step
    if recipe.stage == "sft":
        batch, steps = f"{answers} clips", recipe.sft.num_steps
    else:
        size = recipe.train.group_size
        batch = f"{answers} answers ({answers // size} prompts x {size})"
        steps = recipe.train.num_steps * optimizer_steps_per_step(recipe)
    ranks = "1 rank" if cfg.num_workers == 1 else f"{cfg.num_workers} ranks"
    lines = [
        f"batch: {batch} an optimiser step over {ranks}, micro-batches of at most "
        f"{cfg.micro_batch_tokens} tokens; {steps} optimiser steps",
        f"learner: {_describe_strategy(recipe)}",
        f"passes of each answer in a step: {_describe_passes(recipe)}",
    ]
    staleness = recipe.train.max_staleness
    if recipe.stage == "grpo" and staleness and recipe.algorithm.rollout_correction == "off":
        lines.append(
            f"warning: train.max_staleness={staleness} trains on answers of older weights as if "
            "they were new: set algorithm.rollout_correction=token_truncate"
        )
    is_merged = recipe.stage == "grpo" and recipe.model.lora.rank and not recipe.sends_adapters
    if is_merged and recipe.model.dtype == "bfloat16":
        lines.append(
            "warning: model.lora.send=merged: engines see little of the first steps, for a weight "
            "and what its adapter adds are rounded to bfloat16 as one: set model.lora.send=adapter"
        )
    return lines


def optimizer_steps_per_step(recipe: Recipe) -> int:
    """Optimiser steps in one step of the loop."""
    if recipe.stage == "sft":
        return 1
    train = recipe.train
    rollouts = train.prompts_per_step * train.group_size
    return train.num_updates_per_batch * (rollouts // (train.mini_batch_size or rollouts))


@dataclass(frozen=True)
class Passes:
    """How often a prompt and its answers go through a model in one step of the loop.

    Attributes:
        reference: Through the reference policy.
        old: Through the policy, before the first optimiser step.
        picking: Through the policy again, where the loss picks tokens; a mean over mini-batches.
        training: Forward and backward.
    """

    reference: int
    old: int
    picking: float
    training: int


def passes(recipe: Recipe) -> Passes:
    """What `GrpoUpdate` or a step of SFT does.

    Old log-probabilities are skipped where a single optimiser step sees them itself.
    """
    if recipe.stage == "sft":
        return Passes(0, 0, 0.0, 1)
    cfg, num_steps = recipe.algorithm, optimizer_steps_per_step(recipe)
    needs_old = num_steps > 1 or cfg.needs_old_log_probs
    num_passes = recipe.train.num_updates_per_batch
    picking = num_passes * (num_steps - 1) / num_steps if cfg.picks_tokens else 0.0
    return Passes(int(cfg.kl_coef > 0), int(needs_old), picking, num_passes)


def _describe_passes(recipe: Recipe) -> str:
    found = passes(recipe)
    forward = {"reference": found.reference, "old policy": found.old, "picking": found.picking}
    told = [f"{name} {number:g}" for name, number in forward.items() if number]
    told.append(f"training {found.training} (forward and backward)")
    tower = ", without the vision tower, which runs once a clip" if recipe.caches_features else ""
    return ", ".join(told) + tower


def _describe_strategy(recipe: Recipe) -> str:
    cfg = recipe.learner
    text = f"DeepSpeed ZeRO-{cfg.zero_stage}" if cfg.strategy == "deepspeed" else "FSDP2"
    if cfg.offload != "none":
        text += f", {cfg.offload} in CPU memory" if cfg.offload == "optimizer" else ", offloaded"
    lora = recipe.model.lora
    if lora.rank:
        text += f", LoRA of rank {lora.rank} in {', '.join(lora.components)}"
        text += ", sent as adapters" if recipe.sends_adapters else ""
    elif recipe.model.freeze:
        text += f", without {', '.join(recipe.model.freeze)}"
    rates = {"vision tower": cfg.lr_vision_tower, "merger": cfg.lr_merger}
    own = [f"{lr:g} in the {component}" for component, lr in rates.items() if lr is not None]
    text += f", lr {', '.join([f'{cfg.lr:g}', *own])}"
    return text if cfg.ema_decay is None else f"{text}, moving average with {cfg.ema_decay:g}"

"""AdamW, its parameter groups, the learning rate of each step, and saving all of it without pickle.

Files of a saved state (`learner-00001-of-00002.safetensors` and so on where ranks write a share)::

    learner.safetensors   exp_avg/NAME and exp_avg_sq/NAME, whole; weight/NAME where the model
                          folder beside it holds it in lower precision or merged with an adapter
    learner.json          steps done, optimiser steps of each parameter
"""

import json
import math
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import torch
from torch import nn

from actrep_ray.config import ConfigError, LearnerConfig
from actrep_ray.learner.saving import Snapshot
from actrep_ray.learner.shares import Shares
from actrep_ray.learner.strategies.base import Moments, Strategy
from actrep_ray.models.qwen_vl import component_of
from actrep_ray.models.tensor_files import TensorFiles
from data_prep import files

_STEM = "learner"


def freeze(model: nn.Module, components: tuple[str, ...]) -> None:
    """Let the parameters of some components receive no gradient.

    Raises:
        ConfigError: if nothing is left to train.
    """
    for name, parameter in model.named_parameters():
        if component_of(name) in components:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"model.freeze={list(components)} leaves nothing to train: remove a component"
        )


def make_optimizer(model: nn.Module, cfg: LearnerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; norms and biases (one dimension) do not decay.

    A group holds the parameters of one peak learning rate and one decay; `peak_lr` of a group is
    what `set_learning_rates` scales.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = cfg.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((peak_lr(name, cfg), decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": found, "lr": lr, "peak_lr": lr, "weight_decay": decay}
            for (lr, decay), found in groups.items()
        ],
        betas=cfg.betas,
        fused=True,
    )


def peak_lr(parameter_name: str, cfg: LearnerConfig) -> float:
    """The peak learning rate of the component of the model that a parameter belongs to."""
    own = {"vision_tower": cfg.lr_vision_tower, "merger": cfg.lr_merger}
    lr = own.get(component_of(parameter_name))
    return cfg.lr if lr is None else lr


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group `factor` of its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def lr_factor(step: int, cfg: LearnerConfig, total_steps: int) -> float:
    """Fraction of the peak learning rate in optimiser step `step` (from 0) of `total_steps`.

    A linear warm-up ends at the peak; what follows ends at `min_lr_ratio` of it.
    """
    if step < cfg.warmup_steps:
        return (step + 1) / cfg.warmup_steps
    done = (step - cfg.warmup_steps) / max(1, total_steps - cfg.warmup_steps)
    done = min(1.0, done)
    fraction = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }[cfg.schedule]
    return cfg.min_lr_ratio + (1.0 - cfg.min_lr_ratio) * fraction


def learning_rates(step: int, cfg: LearnerConfig, total_steps: int) -> dict[str, float]:
    """`lr` of an optimiser step, and `lr_vision_tower`, `lr_merger` where they are set apart."""
    factor = lr_factor(step, cfg, total_steps)
    peaks = {"lr": cfg.lr, "lr_vision_tower": cfg.lr_vision_tower, "lr_merger": cfg.lr_merger}
    return {name: peak * factor for name, peak in peaks.items() if peak is not None}


def snapshot_optimizer(
    model: nn.Module,
    strategy: Strategy,
    state: dict[str, Any],
    *,
    shares: Shares,
    weights_of: Callable[[str], bool],
) -> Snapshot:
    """Copy this rank's share of moments, counters and some float32 weights, each whole.

    Every rank must take part. What the files hold together does not depend on the strategy or
    the number of ranks that wrote them.

    Args:
        model: Its names are those in the files.
        strategy: Knows the whole of what this rank holds a shard of.
        state: JSON values to keep beside them.
        shares: Say what this rank keeps.
        weights_of: Whether the weight of a name is saved too.
    """
    tensors: dict[str, torch.Tensor] = {}
    counts: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        wanted: dict[str, torch.Tensor] = {}
        if weights_of(name):
            wanted["weight"] = strategy.whole_master(parameter)
        moments = strategy.moments(parameter)
        if moments is not None:
            wanted |= {"exp_avg": moments.exp_avg, "exp_avg_sq": moments.exp_avg_sq}
            counts[name] = moments.step
        named = ((f"{kind}/{name}", value) for kind, value in wanted.items())
        # Copies: a view would keep all of its storage, and safetensors refuses shared ones.
        tensors |= shares.kept(named, torch.float32)
    found = shares.snapshot(_STEM, tensors)
    counters = json.dumps({**state, "moment_steps": counts}, indent=2, allow_nan=False) + "\n"
    found.contents["learner.json"] = counters.encode()
    return found


def load_optimizer(folder: Path, model: nn.Module, strategy: Strategy) -> dict[str, Any]:
    """Read what `snapshot_optimizer` gave, with any strategy and number of ranks.

    Returns:
        Its `state`.

    Raises:
        ValueError: if the files are missing or belong to another model.
        DataError: if they cannot be read.
    """
    path = folder / "learner.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected a saved learner state")
    state = files.read_object(path, "a saved learner state")
    counts: dict[str, float] = state.pop("moment_steps")
    parameters = dict(model.named_parameters())
    saved = TensorFiles(folder, _STEM)
    _check_names(folder, saved.names, parameters)
    for name, parameter in parameters.items():
        if f"weight/{name}" in saved.names:
            strategy.set_master(parameter, saved.get(f"weight/{name}"))
        if name in counts:
            moments = (saved.get(f"{key}/{name}") for key in ("exp_avg", "exp_avg_sq"))
            strategy.set_moments(parameter, Moments(counts[name], *moments))
    return state


def _check_names(folder: Path, keys: Set[str], parameters: dict[str, nn.Parameter]) -> None:
    names = {key.partition("/")[2] for key in keys}
    if unknown := sorted(names - set(parameters)):
        raise ValueError(f"{folder}: holds {unknown[0]!r}, which the model does not have")

"""AdamW, its parameter groups, the learning rate of each step, and saving all of it without pickle.

Files of a saved state::

    learner.safetensors   exp_avg/NAME and exp_avg_sq/NAME, whole; weight/NAME if the model folder
                          beside it holds them in lower precision
    learner.json          steps done, and what the file was written with
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from actrep_ray.config import LearnerConfig
from actrep_ray.learner.fsdp import full_tensor, split_like
from actrep_ray.models.qwen_vl import part_of

_MOMENTS = ("exp_avg", "exp_avg_sq")


def freeze(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Let the parameters of some parts receive no gradient.

    Raises:
        ValueError: if nothing is left to train.
    """
    for name, parameter in model.named_parameters():
        if part_of(name) in parts:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model.freeze={list(parts)} leaves nothing to train: remove a part")


def make_optimizer(model: nn.Module, cfg: LearnerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; norms and biases (one dimension) do not decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=cfg.lr, betas=cfg.betas, fused=True
    )


def learning_rate(step: int, cfg: LearnerConfig, total_steps: int) -> float:
    """Learning rate of optimiser step `step` (from 0) of `total_steps`.

    A linear warm-up ends at the peak; what follows ends at `min_lr_ratio` of it.
    """
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / cfg.warmup_steps
    done = (step - cfg.warmup_steps) / max(1, total_steps - cfg.warmup_steps)
    done = min(1.0, done)
    share = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }[cfg.schedule]
    return cfg.lr * (cfg.min_lr_ratio + (1.0 - cfg.min_lr_ratio) * share)


def save_optimizer(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    state: dict[str, Any],
    *,
    is_writer: bool,
    with_weights: bool,
) -> None:
    """Write moments, counters and, if asked, float32 weights. Every rank must take part."""
    tensors: dict[str, torch.Tensor] = {}
    counts: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        wanted: dict[str, torch.Tensor] = {"weight": parameter.detach()} if with_weights else {}
        moments = optimizer.state.get(parameter, {})
        if moments:
            wanted |= {key: moments[key] for key in _MOMENTS}
            counts[name] = float(moments["step"])
        for key, tensor in wanted.items():
            whole = full_tensor(tensor)
            if is_writer:
                tensors[f"{key}/{name}"] = whole.cpu().contiguous()
    if is_writer:
        save_file(tensors, folder / "learner.safetensors")
        text = json.dumps({**state, "moment_steps": counts, "has_weights": with_weights}, indent=2)
        (folder / "learner.json").write_text(text + "\n", encoding="utf-8")


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Any]:
    """Read what `save_optimizer` wrote, on any number of ranks; returns its `state`.

    Raises:
        ValueError: if the files are missing or belong to another model.
    """
    for file in ("learner.json", "learner.safetensors"):
        if not (folder / file).is_file():
            raise ValueError(f"{folder / file}: no such file, expected a saved learner state")
    state: dict[str, Any] = json.loads((folder / "learner.json").read_bytes())
    counts: dict[str, float] = state.pop("moment_steps")
    has_weights = bool(state.pop("has_weights"))
    parameters = dict(model.named_parameters())
    if unknown := sorted(set(counts) - set(parameters)):
        raise ValueError(f"{folder}: holds {unknown[0]!r}, which the model does not have")
    with safe_open(folder / "learner.safetensors", framework="pt") as file:
        for name, parameter in parameters.items():
            if has_weights:
                whole = file.get_tensor(f"weight/{name}")
                with torch.no_grad():
                    parameter.copy_(split_like(whole, parameter))
            if name in counts:
                optimizer.state[parameter] = {
                    "step": torch.tensor(counts[name], device=_step_device(parameter)),
                    **{
                        key: split_like(file.get_tensor(f"{key}/{name}"), parameter)
                        for key in _MOMENTS
                    },
                }
    return state


def _step_device(parameter: torch.Tensor) -> torch.device:
    """Fused AdamW counts steps where the parameter lies."""
    return parameter.device

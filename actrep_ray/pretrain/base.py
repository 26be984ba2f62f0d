"""What the lessons of the small base share: its steps, and its folder with the logs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from actrep_ray.models import layout
from actrep_ray.models.qwen_vl import QwenVLInputs
from data_prep.files import complete_folder, write_lines


def learning_rate(step: int, num_steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine to a tenth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return peak * (0.55 + 0.45 * math.cos(math.pi * progress))


def make_optimizer(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.AdamW:
    """What every lesson is learned by; `take_step` says how fast."""
    return torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.01, fused=True)


def take_step(optimizer: torch.optim.AdamW, rate: float) -> float:
    """Move the weights along gradients whose norm is cut at 1, and clear them.

    Returns:
        The norm before it was cut.
    """
    (group,) = optimizer.param_groups
    group["lr"] = rate
    norm = torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.item()


def logs_of(folder: Path) -> dict[str, list[str]]:
    """Lines of each log that a base came with."""
    return {path.name: path.read_text("utf-8").splitlines() for path in folder.glob("*.jsonl")}


def save_base(
    model: Any, inputs: QwenVLInputs, out: Path, logs: Mapping[str, Sequence[str]]
) -> None:
    """Write the folder that `from_pretrained` and vLLM load; the one before goes.

    Args:
        model: With its weights.
        inputs: Its processor and tokenizer.
        out: Where to.
        logs: Lines of each log file beside them.
    """
    with complete_folder(out, replaces=True) as partial:
        layout.save(model, partial)
        inputs.processor.save_pretrained(partial)
        for name, lines in logs.items():
            write_lines(partial / name, lines)

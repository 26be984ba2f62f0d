"""What the lessons of the small base share: its folder with the logs, and the learning rate."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actrep_ray.models.qwen_vl import QwenVLInputs
from data_prep.files import complete_folder, write_lines


def learning_rate(step: int, num_steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine to a tenth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return peak * (0.55 + 0.45 * math.cos(math.pi * progress))


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
        model.save_pretrained(partial)
        inputs.processor.save_pretrained(partial)
        for name, lines in logs.items():
            write_lines(partial / name, lines)

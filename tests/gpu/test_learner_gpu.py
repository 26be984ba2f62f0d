"""The learner on a GPU with models of real width and random weights: steps, memory, kernels."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actrep_ray.models.architecture import read_architecture
from actrep_ray.planning.learner_memory import plan_learner
from actrep_ray.planning.prompts import PromptSize

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

NeedsGib = Callable[[float], None]
ANSWER = 256


def settings(extra: dict[str, str], group_size: int = 4) -> list[str]:
    """Four prompts of a group each, answers of `ANSWER` tokens."""
    return [
        "train.prompts_per_step=4",
        f"train.group_size={group_size}",
        f"rollout.max_response_tokens={ANSWER}",
        "learner.micro_batch_tokens=8192",
        *(f"{key.replace('__', '.')}={value}" for key, value in extra.items()),
    ]


@pytest.mark.parametrize(
    ("name", "extra", "gib"),
    [
        ("Qwen2.5-VL-3B-Instruct", {}, 79),
        (
            "Qwen2.5-VL-3B-Instruct",
            {"learner__strategy": "deepspeed", "learner__zero_stage": "2"},
            79,
        ),
        ("Qwen2.5-VL-3B-Instruct", {"learner__strategy": "deepspeed"}, 79),
        ("Qwen3-VL-4B-Instruct", {"model__freeze": "[vision_tower]"}, 100),
        ("Qwen3-VL-8B-Instruct", {"model__lora__rank": "64"}, 60),
    ],
    ids=["3b-fsdp2", "3b-zero2", "3b-zero3", "4b-frozen-vision", "8b-lora"],
)
def test_an_update_is_finite_and_its_memory_is_the_planned(
    random_model: Callable[[str], Path],
    make_recipe: Callable[..., Any],
    make_worker: Callable[..., Any],
    make_rows: Callable[..., Any],
    needs_gib: NeedsGib,
    name: str,
    extra: dict[str, str],
    gib: float,
) -> None:
    needs_gib(gib)
    model = random_model(name)
    recipe = make_recipe(f"model.path={model}", *settings(extra))
    worker = make_worker(recipe, model)
    rows = make_rows(worker, 4, 4, ANSWER)
    worker.update(rows, 1)
    torch.cuda.reset_peak_memory_stats()
    metrics = worker.update(rows, 2)
    peak = torch.cuda.max_memory_allocated()
    assert math.isfinite(metrics["loss"])
    assert metrics["grad_norm"] > 0

    encoded = worker.encoder.encode(rows[0])
    num_visual = int((encoded.input_ids == worker.inputs.video_pad_id).sum())
    prompt = PromptSize(num_visual, len(encoded.input_ids) - num_visual)
    plan = plan_learner(recipe, read_architecture(str(model)), prompt)
    counted = sum(size for what, size in plan.items if not what.startswith("CUDA"))
    assert counted / peak == pytest.approx(1, abs=0.15)


def test_kernels_of_packed_attention_agree(
    random_model: Callable[[str], Path],
    make_recipe: Callable[..., Any],
    make_worker: Callable[..., Any],
    make_rows: Callable[..., Any],
    needs_gib: NeedsGib,
) -> None:
    """FlexAttention over the packed row, SDPA over it, and a row for each answer."""
    needs_gib(40)
    model = random_model("Qwen3-VL-2B-Instruct")
    found = {}
    for label, extra in {
        "flex": {"learner__attention": "flex"},
        "sdpa": {},
        "unpacked": {"learner__packing": "none"},
    }.items():
        worker = make_worker(make_recipe(f"model.path={model}", *settings(extra)), model)
        rows = make_rows(worker, 4, 4, ANSWER)
        found[label] = np.concatenate([np.concatenate(v) for v in worker.log_probs(rows)])
        worker.shutdown()
        torch.cuda.empty_cache()
    for label in ("flex", "unpacked"):
        gap = np.abs(found[label] - found["sdpa"])
        assert gap.mean() < 2e-2, label  # bfloat16: other kernels, other rounding
        assert gap.max() < 0.5, label


def test_export_gives_the_weights_that_were_loaded(
    random_model: Callable[[str], Path],
    make_recipe: Callable[..., Any],
    make_worker: Callable[..., Any],
    needs_gib: NeedsGib,
) -> None:
    from safetensors.torch import load_file

    needs_gib(40)
    model = random_model("Qwen3-VL-2B-Instruct")
    worker = make_worker(make_recipe(f"model.path={model}", *settings({})), model)
    exported = dict(worker.iter_weights())
    loaded = {k: v for path in model.glob("*.safetensors") for k, v in load_file(path).items()}
    assert exported
    for name, weight in exported.items():
        assert torch.equal(weight, loaded[name]), name

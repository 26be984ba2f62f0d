"""The learner on one GPU: tokens a second, share of its peak FLOPs, memory, weight export.

A published Qwen-VL architecture with random weights takes optimiser steps on groups of one noise
video. Model FLOPs are 6 for each trained and 4 for each frozen parameter a token passes through
(2 forward, 2 for the gradient of activations, 2 for that of weights) plus those of attention;
recomputed activations are not counted (MFU, not HFU). The baseline of the same run is the learner
without shared-prefix packing, each answer with a prompt of its own.

    python benchmarks/gpu.py [--quick] [--model Qwen2.5-VL-3B-Instruct] [--set KEY=VALUE]

Without a GPU it says so and ends with exit code 0. The last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Dense bfloat16 peak, TFLOP/s, of the vendors' data sheets, by a part of the device's name.
PEAK_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "4090": 165}
ANSWER, GROUP_SIZE = 256, 8


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a 2B model, fewer steps")
    parser.add_argument("--model", default=None, metavar="NAME")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(json.dumps({"skipped": f"no CUDA device (torch {torch.__version__})"}))
        return
    # Not before: a machine without a GPU has its answer at once.
    from actrep_ray.models.published import find_config
    from actrep_ray.models.tiny import write_random_model

    name = args.model or ("Qwen3-VL-2B-Instruct" if args.quick else "Qwen2.5-VL-3B-Instruct")
    steps = 3 if args.quick else 10
    with tempfile.TemporaryDirectory() as folder:
        config = find_config(name)[1]
        model = write_random_model(
            Path(folder) / "model", config, dtype=torch.bfloat16, device="cuda"
        )
        torch.cuda.empty_cache()
        video = write_video(Path(folder) / "noise.mp4")
        found = {
            packing: measure(model, video, packing, args.set, steps)
            for packing in ("shared_prefix", "none")
        }
    packed, baseline = found["shared_prefix"], found["none"]
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "model": name,
        "packed": packed,
        "baseline": baseline,
        "speedup": baseline["step_s"] / packed["step_s"],
    }
    print(json.dumps(report))


def write_video(path: Path) -> Path:
    """Sixteen seconds of noise, 224x224 at 4 fps."""
    from data_prep.video_writer import encode_mp4

    frames = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3), np.uint8)
    encode_mp4(path, frames, 4)
    return path


def measure(
    model: Path, video: Path, packing: str, overrides: Sequence[str], steps: int
) -> dict[str, float]:
    """Seconds, tokens, FLOPs and memory of optimiser steps of one way of packing."""
    from noise import noise_rows

    from actrep_ray.config import load_recipe
    from actrep_ray.learner.worker import LearnerWorker
    from actrep_ray.models.architecture import read_architecture
    from actrep_ray.planning.learner_memory import plan_learner
    from actrep_ray.planning.prompts import PromptSize
    from data_prep.video import clip_of_video

    recipe = load_recipe(
        None,
        [
            f"model.path={model}",
            "model.freeze=[vision_tower]",
            "device=cuda",
            "learner.gradient_checkpointing=true",
            "train.prompts_per_step=4",
            f"train.group_size={GROUP_SIZE}",
            f"rollout.max_response_tokens={ANSWER}",
            *overrides,
            f"learner.packing={packing}",
        ],
    )
    worker = LearnerWorker(recipe, str(model), 0, 1, 100)
    worker.setup("127.0.0.1", 0)
    rows = noise_rows(
        worker.inputs,
        clip_of_video(video),
        recipe.video,
        num_rows=4,
        group_size=GROUP_SIZE,
        answer_tokens=ANSWER,
    )
    worker.update(rows, 1)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for step in range(steps):
        worker.update(rows, step + 2)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / steps
    peak = torch.cuda.max_memory_allocated()

    encoded = worker.encoder.encode(rows[0])
    num_visual = int((encoded.input_ids == worker.inputs.video_pad_id).sum())
    prompt = PromptSize(num_visual, len(encoded.input_ids) - num_visual)
    sizes = read_architecture(str(model))
    plan = plan_learner(recipe, sizes, prompt)
    planned = sum(size for what, size in plan.items if not what.startswith("CUDA"))
    copies = 1 if packing == "shared_prefix" else GROUP_SIZE
    tokens = len(rows) * (copies * prompt.num_tokens + GROUP_SIZE * (ANSWER - 1))
    patches = len(rows) * copies * num_visual * sizes.merge_size**2
    flops = (
        6 * sizes.active_parameters * tokens
        + 2 * sizes.num_parameters["vision_tower"] * patches  # frozen and first: forward alone
        + attention_flops(sizes, prompt.num_tokens, len(rows), copies)
    )
    start = time.perf_counter()
    exported = sum(weight.nbytes for _, weight in worker.iter_weights())
    export_s = time.perf_counter() - start
    worker.shutdown()
    torch.cuda.empty_cache()
    tflops = flops / seconds / 1e12
    return {
        "step_s": seconds,
        "tokens_per_s": tokens / seconds,
        "answer_tokens_per_s": len(rows) * GROUP_SIZE * ANSWER / seconds,
        "tflops": tflops,
        "mfu": tflops / peak_tflops(),
        "peak_gib": peak / 2**30,
        "planned_gib": planned / 2**30,
        "export_gib_per_s": exported / 2**30 / export_s,
    }


def attention_flops(sizes: Any, prompt: int, num_rows: int, copies: int) -> float:
    """Of the decoder's causal attention, forward and backward: 3 x 4 x pairs x width a layer."""
    pairs = copies * prompt**2 / 2 + GROUP_SIZE * ANSWER * (prompt + ANSWER / 2)
    return float(12 * num_rows * pairs * sizes.num_heads * sizes.head_dim * sizes.num_layers)


def peak_tflops() -> float:
    """Of this device; NaN where it is not in the table."""
    name = torch.cuda.get_device_name()
    return next((float(v) for key, v in PEAK_TFLOPS.items() if key in name), float("nan"))


if __name__ == "__main__":
    main()

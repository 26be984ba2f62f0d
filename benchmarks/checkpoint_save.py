"""What a checkpoint costs a training step: where it waits for the files, and where it does not.

One rank trains a Qwen3-VL of 62 million parameters with random weights (float32; `--quick`: 9
million) on videos of noise, and saves between steps, in turns: waiting for all files to be on the
disk, and only for the copy to host memory. Hashes are those of the manifest.

    python benchmarks/checkpoint_save.py [--quick]

The last line is one JSON object: the stall of the loop in ms, median of the turns, both ways; a
step alone and one beside which files are written; megabytes; the manifest's hash and SHA-256, GB/s.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from actrep_ray.config import load_recipe
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import num_parameters, write_random_model, write_tiny_model
from actrep_ray.records import LearnerRow
from actrep_ray.run.manifest import hash_of_file
from data_prep.schema import Clip
from data_prep.video_writer import encode_mp4

_NUM_ROWS = 4


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--quick", action="store_true", help="a smaller model, fewer turns")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as root:
        worker, rows = start(Path(root), args.quick)
        result = measure(worker, rows, Path(root) / "saved", 3 if args.quick else 7)
        worker.shutdown()
    print(json.dumps({"benchmark": "checkpoint_save", "quick": args.quick, **result}))


def start(root: Path, is_quick: bool) -> tuple[LearnerWorker, list[LearnerRow]]:
    """A rank that holds the model, and rows to train on."""
    write_model(root / "model", *((256, 6) if is_quick else (640, 10)))
    return start_rank(root, root / "model", {}, 0, 1, 0, lambda setup: setup())


def write_model(folder: Path, width: int, num_layers: int) -> int:
    """Write a Qwen3-VL with random weights; returns its number of parameters."""
    tiny = folder.with_name(f"{folder.name}-tiny")
    config = json.loads((write_tiny_model(tiny) / "config.json").read_bytes())
    config["text_config"] |= {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 8,
    }
    config["vision_config"]["out_hidden_size"] = width
    return num_parameters(write_random_model(folder, config))


def start_rank(
    root: Path,
    model: Path,
    settings: Mapping[str, object],
    rank: int,
    num_ranks: int,
    port: int,
    around: Callable[[Callable[[], None]], None],
) -> tuple[LearnerWorker, list[LearnerRow]]:
    """A rank that holds a model, and rows to train on.

    Args:
        root: For frames and runs.
        model: See `write_model`.
        settings: Of the recipe, beside those that are the same everywhere.
        rank: Number of the rank, from 0.
        num_ranks: Number of all.
        port: Where they meet on this machine.
        around: Is given what loads the model, and calls it.
    """
    same = {
        "stage": "sft",
        "device": "cpu",
        "model.dtype": "float32",
        "model.path": model,
        "runs_dir": root,
        "video.max_pixels": 1024,
        "video.cache_dir": root / "frames",
        "learner.lr": 1e-6,
        "learner.num_workers": num_ranks,
    }
    recipe = load_recipe(None, [f"{key}={value}" for key, value in {**same, **settings}.items()])
    video = root / f"noise-{rank}.mp4"
    if not video.exists():
        frames = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
        encode_mp4(video, frames, 4)
    clip = Clip("c", "noise", "train", str(video), 0.0, 8.0, 4.0, 32, 32, 32, "unknown", 0)
    plan = QwenVLInputs(model).plan(clip, recipe.video)
    answer = np.arange(7, 71, dtype=np.int32)
    row = LearnerRow("r", "How many?", plan, 0, (answer,), np.ones(1, np.float32))
    worker = LearnerWorker(recipe, str(model), rank, num_ranks, 100)
    around(lambda: worker.setup("127.0.0.1", port))
    return worker, [row] * _NUM_ROWS


def measure(
    worker: LearnerWorker, rows: list[LearnerRow], folder: Path, num_turns: int
) -> dict[str, Any]:
    """Save in turns, both ways."""
    alone, beside, waits, copies, writes = [], [], [], [], []
    num_bytes = 0
    for _ in range(num_turns):
        worker.sft_step(rows)
        alone.append(seconds(lambda: worker.sft_step(rows)))
        folder.mkdir()
        waits.append(seconds(partial(save, worker, folder)))
        shutil.rmtree(folder)
        folder.mkdir()
        began = time.perf_counter()
        copies.append(seconds(lambda: worker.begin_save(folder)))
        beside.append(seconds(lambda: worker.sft_step(rows)))
        worker.finish_save()
        writes.append(time.perf_counter() - began)
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        largest = max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
        size = largest.stat().st_size
        content = largest.read_bytes()
        xxh3 = seconds(partial(hash_of_file, largest))
        sha = seconds(partial(hashlib.sha256, content))
        shutil.rmtree(folder)
    stalls = {"stall_waiting_ms": waits, "stall_copy_ms": copies, "written_after_ms": writes}
    steps = {"step_alone_ms": alone, "step_beside_ms": beside}
    found = {name: round(1000 * median(values), 1) for name, values in (stalls | steps).items()}
    ratio = median(copies) / median(waits)
    print(f"{num_bytes / 1e6:.0f} MB; " + ", ".join(f"{k} {v:g}" for k, v in found.items()))
    return {
        "megabytes": round(num_bytes / 1e6, 1),
        **found,
        "share_of_waiting": round(ratio, 3),
        "xxh3_gb_per_s": round(size / 1e9 / xxh3, 2),
        "sha256_gb_per_s": round(size / 1e9 / sha, 2),
    }


def save(worker: LearnerWorker, folder: Path) -> None:
    """As where `checkpoint.in_background` is off."""
    worker.begin_save(folder)
    worker.finish_save()


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

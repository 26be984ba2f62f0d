"""A Qwen-VL of real width with random weights, and rows for a learner, on a GPU."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noise import noise_rows

from actrep_ray.config import Recipe, load_recipe
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.published import find_config
from actrep_ray.models.tiny import write_random_model
from actrep_ray.records import LearnerRow
from data_prep.schema import Clip
from data_prep.video_writer import encode_mp4


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`random_model("Qwen2.5-VL-3B-Instruct")`: its config, random bfloat16 weights, small tokens.

    The tokenizer is that of the small model, so only token ids below 2,100 occur.
    """
    root = tmp_path_factory.mktemp("models")

    def get(name: str) -> Path:
        folder = root / name
        if folder.exists():
            return folder
        config = find_config(name)[1]
        write_random_model(folder, config, dtype=torch.bfloat16, device="cuda")
        torch.cuda.empty_cache()
        return folder

    return get


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """Eight seconds of noise, 224x224 at 4 fps."""
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (32, 224, 224, 3), np.uint8)
    encode_mp4(path, frames, 4)
    return Clip(
        id="noise", dataset="noise", split="train", video=str(path), start_s=0.0, end_s=8.0,
        video_fps=4.0, num_frames=32, width=224, height=224, action="unknown", count=0,
    )  # fmt: skip


@pytest.fixture
def make_recipe(tmp_path: Path) -> Callable[..., Recipe]:
    """Settings on a GPU in bfloat16."""
    base = ["device=cuda", f"video.cache_dir={tmp_path}", "learner.gradient_checkpointing=true"]
    return lambda *settings: load_recipe(None, [*base, *settings])


@pytest.fixture
def make_worker() -> Iterator[Callable[..., LearnerWorker]]:
    """`make_worker(recipe, model)`: the only rank, ended after the test."""
    workers: list[LearnerWorker] = []

    def make(recipe: Recipe, model: Path) -> LearnerWorker:
        worker = LearnerWorker(recipe, str(model), 0, 1, 10)
        worker.setup("127.0.0.1", 0)
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        worker.shutdown()
    torch.cuda.empty_cache()


@pytest.fixture
def make_rows(clip: Clip) -> Callable[..., list[LearnerRow]]:
    """`make_rows(worker, num_rows, group_size, length)`: groups with random answers."""

    def make(worker: Any, num_rows: int, group_size: int, length: int) -> list[LearnerRow]:
        return noise_rows(
            worker.inputs,
            clip,
            worker.recipe.video,
            num_rows=num_rows,
            group_size=group_size,
            answer_tokens=length,
        )

    return make


@pytest.fixture(scope="session")
def needs_gib() -> Callable[[float], None]:
    """`needs_gib(60)` skips with a reason where the GPU is smaller."""
    found = torch.cuda.get_device_properties(0).total_memory / 2**30

    def need(gib: float) -> None:
        if found < gib:
            pytest.skip(f"needs a GPU of {gib:g} GiB, this one has {found:.0f}")

    return need

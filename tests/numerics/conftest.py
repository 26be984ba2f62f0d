"""Small checkpoints, short videos and rows, shared by the numerical tests of the learner."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actrep_ray.config import Recipe, load_recipe
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import LearnerRow
from data_prep.schema import Clip
from data_prep.video_writer import encode_mp4

MakeRows = Callable[..., list[LearnerRow]]
MakeWorker = Callable[..., LearnerWorker]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model(family, tied=True)` gives a checkpoint folder, written once."""
    root = tmp_path_factory.mktemp("models")

    def get(family: str = "qwen3_vl", *, tied: bool = True) -> Path:
        folder = root / f"{family}-{tied}"
        return folder if folder.exists() else write_tiny_model(folder, family=family, tied=tied)

    return get


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Four videos of noise with 5, 8, 11 and 14 frames at 4 fps."""
    folder = tmp_path_factory.mktemp("videos")
    found = []
    for number, num_frames in enumerate((5, 8, 11, 14)):
        frames = np.random.default_rng(number).integers(0, 256, (num_frames, 56, 56, 3), np.uint8)
        path = folder / f"{number}.mp4"
        encode_mp4(path, frames, 4)
        found.append(
            Clip(
                id=f"clip-{number}",
                dataset="noise",
                split="train",
                video=str(path),
                start_s=0.0,
                end_s=num_frames / 4,
                video_fps=4.0,
                num_frames=num_frames,
                width=56,
                height=56,
                action="unknown",
                count=0,
            )
        )
    return found


@pytest.fixture(scope="session")
def make_recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recipe]:
    """`make_recipe("learner.lr=1e-3", ...)`: float32 on the CPU, frames of 56x56 pixels."""
    cache, runs = tmp_path_factory.mktemp("frames"), tmp_path_factory.mktemp("runs")
    base = [
        "device=cpu",
        "model.dtype=float32",
        "video.max_pixels=4096",
        f"video.cache_dir={cache}",
        f"runs_dir={runs}",
        "learner.timeout_s=120",
    ]
    return lambda *settings: load_recipe(None, [*base, *settings])


@pytest.fixture(scope="session")
def make_rows(clips: list[Clip], make_recipe: Callable[..., Recipe]) -> MakeRows:
    """`make_rows(inputs, num_rows, group_size)`: random answers of ragged length."""
    video = make_recipe().video

    def make(inputs: QwenVLInputs, num_rows: int, group_size: int, seed: int = 0) -> Any:
        rng = np.random.default_rng(seed)
        rows = []
        for number in range(num_rows):
            lengths = rng.integers(1, 12, size=group_size)
            responses = [rng.integers(7, 400, size=n).astype(np.int32) for n in lengths]
            advantages = rng.normal(size=group_size).astype(np.float32)
            rows.append(
                LearnerRow(
                    row_id=f"row-{number}",
                    question="How many times?",
                    plan=inputs.plan(clips[number % len(clips)], video),
                    num_prompt_tokens=0,
                    responses=tuple(responses),
                    advantages=advantages,
                )
            )
        return rows

    return make


@pytest.fixture
def make_worker() -> Iterator[MakeWorker]:
    """`make_worker(recipe, model, total_steps=10)`: the only rank; one at a time."""
    workers: list[LearnerWorker] = []

    def make(
        recipe: Recipe, model: Path, total_steps: int = 10, base_path: Path | None = None
    ) -> LearnerWorker:
        for old in workers:
            old.shutdown()
        worker = LearnerWorker(recipe, str(model), 0, 1, total_steps, str(base_path or model))
        worker.setup("127.0.0.1", 0)
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        worker.shutdown()

"""Two learner ranks as real Ray actors: updates, export, saving, deadlines and death."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actrep_ray.config import Recipe, load_recipe
from actrep_ray.learner.pool import LearnerPool, LearnerWorkerError
from actrep_ray.models.qwen_vl import QwenVLInputs, load_model
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import LearnerRow
from actrep_ray.weights.buckets import unpack_weights
from data_prep.schema import Clip
from data_prep.video_writer import encode_mp4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    settings = [
        "stage=grpo",
        "device=cpu",
        "model.dtype=float32",
        "video.max_pixels=1024",
        f"video.cache_dir={tmp_path_factory.mktemp('frames')}",
        "learner.num_workers=2",
        "learner.lr=1e-3",
        "learner.timeout_s=180",
        "train.num_updates_per_batch=2",
        "train.prompts_per_step=4",
        "train.group_size=2",
    ]
    return load_recipe(None, settings)


@pytest.fixture(scope="module")
def rows(model: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[LearnerRow]:
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    rng = np.random.default_rng(0)
    encode_mp4(path, rng.integers(0, 256, (8, 32, 32, 3), np.uint8), 4)
    clip = Clip("c", "noise", "train", str(path), 0.0, 2.0, 4.0, 8, 32, 32, "unknown", 0)
    plan = QwenVLInputs(model).plan(clip, recipe.video)
    return [
        LearnerRow(
            row_id=f"row-{i}",
            question="How many?",
            plan=plan,
            num_prompt_tokens=0,
            responses=tuple(rng.integers(7, 400, n).astype(np.int32) for n in (3 + i, 9)),
            advantages=np.array([1.0, -1.0], np.float32),
        )
        for i in range(3)
    ]


@pytest.fixture(scope="module")
def pool(ray_session: Any, recipe: Recipe, model: Path) -> Iterator[LearnerPool]:
    started = LearnerPool.start(recipe, model, 10)
    yield started
    started.shutdown()


def _weights(pool: LearnerPool, ray: Any) -> dict[str, torch.Tensor]:
    return unpack_weights(ray.get(pool.export_weights_refs()))


def test_two_ranks_train_export_and_go_on(
    pool: LearnerPool, ray_session: Any, rows: list[LearnerRow], tmp_path: Path
) -> None:
    scored = [
        replace(row, rollout_log_probs=values)
        for row, values in zip(rows, pool.log_probs(rows), strict=True)
    ]
    metrics = pool.update(scored, 1)
    assert metrics["log_prob_gap_max"] < 1e-5
    assert metrics["num_response_tokens"] == sum(3 + i + 9 for i in range(3))
    exported = _weights(pool, ray_session)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    assert pool.begin_save(folder) == 2  # ranks that write
    pool.finish_save()
    assert pool.is_saved()
    saved = load_model(folder, dtype="float32").state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in exported.items())
    pool.load_state(folder / "training")
    assert pool.update(scored, 2)["log_prob_gap_mean"] > 1e-4


def test_a_refusal_reaches_the_driver_as_it_was_raised(
    pool: LearnerPool, rows: list[LearnerRow]
) -> None:
    with pytest.raises(ValueError, match="row-1: 2 answers and 1 advantages"):
        pool.update([rows[0], replace(rows[1], advantages=np.ones(1, np.float32))], 1)


def test_a_wait_has_a_deadline_and_says_for_what(
    pool: LearnerPool, rows: list[LearnerRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "timeout_s", 0.001)
    with pytest.raises(TimeoutError, match=r"learner\.timeout_s\) for the update of step 7.*rank"):
        pool.update(rows, 7)


def test_a_dead_rank_is_named(
    ray_session: Any, recipe: Recipe, model: Path, rows: list[LearnerRow]
) -> None:
    single = recipe.model_copy(
        update={"learner": recipe.learner.model_copy(update={"num_workers": 1})}
    )
    pool = LearnerPool.start(single, model, 10)
    ray_session.kill(pool.workers[0])
    with pytest.raises(LearnerWorkerError, match=r"learner rank 0 died in `update`"):
        pool.update(rows, 1)
    pool.shutdown()


def test_a_model_that_is_none_is_refused(ray_session: Any, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a model checkpoint"):
        LearnerPool.start(recipe, tmp_path, 10)

"""The moving average of the weights on one rank; `test_split.py` has every strategy."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actrep_ray.config import Recipe
from actrep_ray.models.qwen_vl import QwenVLInputs, load_model
from actrep_ray.run.checkpoint import CheckpointStore
from actrep_ray.run.model_folder import recipe_of, resolve_model

MakeRecipe = Callable[..., Recipe]
TinyModel = Callable[..., Path]
NAME = "model.language_model.norm.weight"
SETTINGS = ("stage=sft", "learner.lr=1e-2", "model.dtype=bfloat16", "learner.ema_decay=0.75")


@pytest.fixture
def rows(tiny_model: TinyModel, make_rows: Callable[..., list[Any]]) -> list[Any]:
    return make_rows(QwenVLInputs(tiny_model()), 3, 2)


def test_three_steps_by_hand_and_a_folder_of_its_own(
    make_worker: Any,
    make_recipe: MakeRecipe,
    tiny_model: TinyModel,
    rows: list[Any],
    tmp_path: Path,
) -> None:
    """In bfloat16 the average is still float32: 0.75^3 w0 + 0.25 (0.75^2 w1 + 0.75 w2 + w3)."""
    recipe = make_recipe(*SETTINGS)
    worker = make_worker(recipe, tiny_model())
    weights = [_master(worker)]
    for _ in range(3):
        worker.sft_step(rows)
        weights.append(_master(worker))
        worker.sft_loss(rows)  # scoring leaves whole weights behind
    w0, w1, w2, w3 = weights
    expected = 0.421875 * w0 + 0.140625 * w1 + 0.1875 * w2 + 0.25 * w3
    with worker.ema.in_place():
        found = _master(worker)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(_master(worker), w3)
    assert (found - w3).abs().max() > 1e-3

    store = CheckpointStore(tmp_path, keep=1)
    folder = store.write(3, recipe, {}, worker).folder
    average = load_model(resolve_model(folder / "ema"), dtype="float32")
    torch.testing.assert_close(
        average.state_dict()[NAME], expected.bfloat16().float(), rtol=0, atol=0
    )
    assert recipe_of(folder / "ema") == recipe
    files = {path.name for path in folder.iterdir()} - {"training", "ema", "manifest.json"}
    assert {path.name for path in (folder / "ema").iterdir()} == files


def test_going_on_is_exact_and_may_begin_later(
    make_worker: Any,
    make_recipe: MakeRecipe,
    tiny_model: TinyModel,
    rows: list[Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = make_recipe(*SETTINGS)
    worker = make_worker(recipe, tiny_model())
    worker.sft_step(rows)
    worker.save_model(tmp_path / "model")
    worker.save_state(tmp_path / "state")
    worker.sft_step(rows)
    worker.save_state(tmp_path / "expected")

    again = make_worker(recipe, tmp_path / "model")
    again.load_state(tmp_path / "state")
    again.sft_step(rows)
    again.save_state(tmp_path / "found")
    for file in ("learner.safetensors", "ema.safetensors"):
        expected, found = (load_file(tmp_path / name / file) for name in ("expected", "found"))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), file

    (tmp_path / "state" / "ema.safetensors").unlink()
    late = make_worker(recipe, tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        late.load_state(tmp_path / "state")
    assert "begins with these weights" in caplog.text
    with late.ema.in_place():
        found = _master(late)
    assert torch.equal(found, _master(late))


def _master(worker: Any) -> torch.Tensor:
    parameter = dict(worker.policy.model.named_parameters())[NAME]
    master: torch.Tensor = worker.strategy.whole_master(parameter)
    return master.clone()

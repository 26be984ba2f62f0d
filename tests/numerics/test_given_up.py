"""An update that is given up on wish: nothing has changed, and training goes on from there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from actrep_ray.cluster import presence
from actrep_ray.cluster.stopping import AbandonedError
from actrep_ray.models.qwen_vl import QwenVLInputs

SETTINGS = ("learner.lr=1e-3", "learner.micro_batch_tokens=300", "train.group_size=2")


class Wish:
    """Wishes after so many micro-batches, as a driver would from outside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_left = 10**6
        self.num_asked = 0
        monkeypatch.setattr(presence, "is_wished", self.ask)

    def ask(self) -> bool:
        self.num_asked += 1
        self.num_left -= 1
        return self.num_left < 0


def weights_of(worker: Any) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in worker.iter_weights()}


@pytest.mark.parametrize("num_before", [0, 1])
def test_an_update_given_up_changes_nothing(
    num_before: int,
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Any],
    make_rows: Callable[..., Any],
    make_worker: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make_recipe("stage=sft", "sft.clips_per_step=6", *SETTINGS)
    model = tiny_model()
    rows = make_rows(QwenVLInputs(model), 6, 1)
    whole = make_worker(recipe, model)
    losses = [whole.sft_step(rows)["loss"] for _ in range(3)]
    expected = weights_of(whole)

    wish = Wish(monkeypatch)
    worker = make_worker(recipe, model)
    assert worker.sft_step(rows)["loss"] == losses[0]
    assert wish.num_asked > num_before, "fewer micro-batches than the test needs"
    before = weights_of(worker)
    wish.num_left = 0
    with pytest.raises(AbandonedError):
        worker.sft_loss(rows)
    wish.num_left = num_before
    with pytest.raises(AbandonedError):
        worker.sft_step(rows)
    assert worker.num_optimizer_steps == 1
    after = weights_of(worker)
    assert all(torch.equal(after[name], before[name]) for name in before)
    worker.save_model(tmp_path / "saved")
    worker.save_state(tmp_path / "saved" / "training")

    wish.num_left = 10**6
    resumed = make_worker(recipe, tmp_path / "saved")
    resumed.load_state(tmp_path / "saved" / "training")
    assert [resumed.sft_step(rows)["loss"] for _ in range(2)] == losses[1:]
    found = weights_of(resumed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_update_that_has_taken_a_step_is_finished(
    tiny_model: Callable[..., Path],
    make_recipe: Callable[..., Any],
    make_rows: Callable[..., Any],
    make_worker: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = ("train.prompts_per_step=4", "train.mini_batch_size=4", "train.max_log_prob_gap=99")
    recipe = make_recipe("stage=grpo", *train, *SETTINGS)
    model = tiny_model()
    rows = make_rows(QwenVLInputs(model), 4, 2)
    wish = Wish(monkeypatch)
    worker = make_worker(recipe, model)
    whole = worker.update(rows, 1)
    assert whole["num_optimizer_steps"] == 2
    num_asked = wish.num_asked  # before the first step: after it nobody asks
    wish.num_asked, wish.num_left = 0, num_asked
    assert worker.update(rows, 2)["num_optimizer_steps"] == 2
    wish.num_left = num_asked - 1
    with pytest.raises(AbandonedError):
        worker.update(rows, 3)
    assert worker.num_optimizer_steps == 4

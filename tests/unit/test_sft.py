"""The SFT loop over a fake of the learners: order of clips, what is due, and going on."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.cluster.stopping import AbandonedError, StopError
from actrep_ray.config import Recipe, load_recipe, override
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import LearnerRow
from actrep_ray.run.checkpoint import Checkpoint
from actrep_ray.run.metrics import read_metrics
from actrep_ray.sft import SftData, prepare_sft
from data_prep.files import DataError
from data_prep.synthetic.dataset import write_dataset
from tests.unit.saved import SavesConfig


class Learners(SavesConfig):
    """Writes down what it is given; `stops_at` is the step in which it dies."""

    def __init__(self, stops_at: int | None = None, cannot_read: Sequence[str] = ()) -> None:
        self.stops_at = stops_at
        self.cannot_read = cannot_read
        self.batches: list[list[str]] = []
        self.num_validated: list[int] = []
        self.loaded: list[Path] = []

    def sft_step(self, rows: Sequence[LearnerRow]) -> dict[str, float]:
        if len(self.batches) + 1 == self.stops_at:
            raise KeyboardInterrupt
        assert all((row.advantages == 1.0).all() for row in rows)
        self.batches.append([row.row_id for row in rows])
        return {"loss": 1.0 / len(self.batches)}

    def sft_loss(self, rows: Sequence[LearnerRow]) -> dict[str, float]:
        self.num_validated.append(len(rows))
        return {"loss": 0.25}

    def unreadable(self, rows: Sequence[LearnerRow]) -> dict[str, tuple[str, str]]:
        plans = {row.row_id: row.plan for row in rows if row.row_id in self.cannot_read}
        assert None not in plans.values()  # a row without a clip is not asked about
        told = {name: plan.video for name, plan in plans.items() if plan is not None}
        return {name: ("unreadable_video", f"{video}: cut short") for name, video in told.items()}

    def load_state(self, folder: Path) -> None:
        self.loaded.append(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("sft")
    sizes = {"train": 5, "validation": 2}
    data = write_dataset(folder / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    write_tiny_model(folder / "model")
    settings = {
        "stage": "sft",
        "model.path": folder / "model",
        "data.path": data,
        "sft.num_steps": 5,
        "sft.clips_per_step": 3,
        "sft.validate_every": 2,
        "checkpoint.every": 2,
    }
    return load_recipe(None, [f"{key}={value}" for key, value in settings.items()])


def train(recipe: Recipe, learners: Any, *, resume: bool = False) -> Checkpoint:
    return prepare_sft(recipe, resume=resume).run(learners)


class Hurried(Learners):
    """Are asked to stop while they validate, and hurried."""

    def sft_loss(self, rows: Sequence[LearnerRow]) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AbandonedError("given up before an optimiser step was taken")


def test_a_validation_is_given_up_for_a_stop_and_its_step_is_saved(
    base: Recipe, tmp_path: Path
) -> None:
    recipe = override(base, [f"runs_dir={tmp_path}", "checkpoint.every=0"])
    with pytest.raises(StopError, match="stopped by SIGTERM") as raised:
        train(recipe, Hurried())
    assert raised.value.saved_step == 2
    [row] = (row for row in read_metrics(recipe.run_dir / "metrics.jsonl") if row["step"] == 2)
    assert "sft/validation_loss" not in row


def test_a_run_sees_each_clip_once_an_epoch_and_ends_with_a_checkpoint(
    base: Recipe, tmp_path: Path
) -> None:
    recipe = override(base, [f"runs_dir={tmp_path}"])
    learners = Learners()
    checkpoint = train(recipe, learners)
    assert checkpoint.step == 5
    line = [name for batch in learners.batches for name in batch]
    assert len(line) == 15
    epochs = [line[i : i + 5] for i in range(0, 15, 5)]
    assert all(len(set(epoch)) == 5 for epoch in epochs)
    assert learners.num_validated == [2, 2, 2]  # after steps 2, 4 and the last
    rows = read_metrics(recipe.run_dir / "metrics.jsonl")
    assert [row["sft/loss"] for row in rows] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert ["sft/validation_loss" in row for row in rows] == [False, True, False, True, True]


def test_a_resumed_run_goes_on_with_the_clips_that_the_killed_one_would_have_seen(
    base: Recipe, tmp_path: Path
) -> None:
    whole, first, second = Learners(), Learners(stops_at=4), Learners()
    train(override(base, [f"runs_dir={tmp_path / 'whole'}"]), whole)
    recipe = override(base, [f"runs_dir={tmp_path / 'killed'}"])
    with pytest.raises(KeyboardInterrupt):
        train(recipe, first)
    assert train(recipe, second, resume=True).step == 5
    assert [path.parent.name for path in second.loaded] == ["step-000002"]
    assert second.batches == whole.batches[2:]
    steps = [row["step"] for row in read_metrics(recipe.run_dir / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5]


def test_a_resumed_run_reads_the_lists_that_the_killed_one_would_have_read(
    base: Recipe, tmp_path: Path
) -> None:
    recipe = override(base, ["sft.text_lists=2", f"runs_dir={tmp_path}"])
    whole, first, second = Learners(), Learners(stops_at=4), Learners()
    train(override(recipe, ["name=whole"]), whole)
    assert [[len(batch), batch[-1]] for batch in whole.batches] == [
        [4, f"the text lists of step {step}"] for step in range(1, 6)
    ]
    with pytest.raises(KeyboardInterrupt):
        train(recipe, first)
    train(recipe, second, resume=True)
    assert second.batches == whole.batches[2:]


def test_a_clip_that_cannot_be_read_gives_way_to_another_one_of_its_stratum(
    base: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is learned from has the strata that it was to have."""
    settings = [f"runs_dir={tmp_path}", "data.max_quarantined_share=0.5", "sampling.bins=[3]"]
    recipe = override(base, settings)
    whole = Learners()
    train(override(recipe, ["name=whole"]), whole)
    data = SftData.load(recipe, Path(recipe.model.path))
    strata = dict(zip([row.row_id for row in data.train], data.strata, strict=True))
    assert sorted(strata.values()) == ["0-3", "0-3", "0-3", "4+", "4+"]
    gone = whole.batches[0][1]
    valid = data.validation[0].row_id
    learners = Learners(cannot_read=[gone, valid], stops_at=4)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, learners)
    resumed = Learners()  # the videos are there again, and stay where they are
    train(recipe, resumed, resume=True)
    batches = learners.batches[:2] + resumed.batches  # from the checkpoint of step 2
    for found, expected in zip(batches, whole.batches, strict=True):
        assert gone not in found
        assert [strata[name] for name in found] == [strata[name] for name in expected]
        pairs = zip(found, expected, strict=True)
        assert all(name == other for name, other in pairs if other != gone)
    assert resumed.num_validated == [1, 1]
    lines = (recipe.run_dir / "quarantine.jsonl").read_text().splitlines()
    rows = [(json.loads(line)["row"], json.loads(line)["step"]) for line in lines]
    assert rows == [(gone, 1), (valid, 2)]
    assert "2 clips were quarantined (unreadable_video 2): " in capsys.readouterr().out
    assert read_metrics(recipe.run_dir / "metrics.jsonl")[-1]["data/quarantined"] == 2


def test_without_any_clip_left_there_is_nothing_to_learn_from(base: Recipe) -> None:
    data = SftData.load(base, Path(base.model.path))
    with pytest.raises(DataError, match="every clip of train is in quarantine"):
        data.batch(1, {row.row_id for row in data.train})

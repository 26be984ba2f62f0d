"""The best step by its evaluations: which one it is, what is kept of it, when a run ends early."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.cli.main import main
from actrep_ray.config import ConfigError, Recipe, load_recipe, override
from actrep_ray.driver.job import prepare_grpo
from actrep_ray.driver.phases import Phases
from actrep_ray.driver.pools import Pools
from actrep_ray.run.best import BestStep
from actrep_ray.run.checkpoint import CheckpointStore
from actrep_ray.run.metrics import read_metrics
from tests.unit.test_driver import Book, recipe

__all__ = ["recipe"]


def best_of(recipe: Recipe, values: Mapping[int, float], key: str = "eval/obo") -> BestStep:
    best = BestStep(recipe)
    for step, value in values.items():
        best.look(step, {key: value})
    return best


def settings(*more: str) -> Recipe:
    return load_recipe(None, ["eval.every=1", *more])


def test_more_is_better_or_less_as_the_task_says() -> None:
    values = {0: 0.5, 1: 0.7, 2: 0.7, 3: 0.6}
    assert best_of(settings("checkpoint.best_by=obo"), values).step == 1  # a tie is not better
    assert best_of(settings("checkpoint.best_by=mae"), values, "eval/mae").step == 0
    sft = settings("stage=sft", "checkpoint.best_by=validation_loss", "sft.validate_every=1")
    assert best_of(sft, values, "sft/validation_loss").step == 0
    assert best_of(settings(), values).step is None
    assert best_of(settings("checkpoint.best_by=obo"), {1: float("nan"), 2: 0.1}).step == 2


def test_steps_without_an_evaluation_do_not_use_up_patience() -> None:
    best = best_of(settings("checkpoint.best_by=obo", "checkpoint.patience=2"), {0: 0.5, 1: 0.4})
    assert not best.look(2, {"reward/mean": 1.0})
    assert not best.is_over
    assert not best.look(3, {"eval/obo": 0.5})
    assert best.is_over
    told = best.describe()
    assert told.startswith("best by obo: 0.5 at step 0, the model at the start; none of the 2")


def test_a_figure_that_was_not_finite_is_no_better_when_a_run_goes_on(tmp_path: Path) -> None:
    """It is null in the file of the metrics."""
    sft = settings("stage=sft", "checkpoint.best_by=validation_loss", f"runs_dir={tmp_path}")
    key = "sft/validation_loss"
    rows = [{"step": 1, key: None}, {"step": 2, key: 0.5}, {"step": 3, key: None}, {"step": 4}]
    sft.run_dir.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (sft.run_dir / "metrics.jsonl").write_text(lines)
    best = BestStep(override(sft, ["checkpoint.patience=1"]))
    best.restore(2)
    assert (best.step, best.is_over) == (2, False)
    best = BestStep(override(sft, ["checkpoint.patience=1"]))
    best.restore(4)
    assert (best.step, best.is_over) == (2, True)
    inf = {1: float("inf"), 2: 0.5, 3: float("inf")}
    assert best_of(override(sft, ["checkpoint.patience=1"]), inf, key).is_over


def test_it_is_not_told_that_a_checkpoint_is_kept_that_is_not_there(tmp_path: Path) -> None:
    recipe = settings("checkpoint.best_by=obo", f"runs_dir={tmp_path}")
    best = best_of(recipe, {1: 0.5})
    assert best.describe() == "best by obo: 0.5 at step 1, whose checkpoint could not be kept"
    folder = recipe.run_dir / "checkpoints" / "step-000001"
    folder.mkdir(parents=True)
    assert best.describe() == f"best by obo: 0.5 at step 1, kept as {folder}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["checkpoint.best_by=ob"], r"best_by='ob': expected a figure of the task, one of .*obo"),
        (["checkpoint.best_by=obo", "eval.every=0"], r"nothing is evaluated, set eval\.every"),
        (["checkpoint.best_by=obo", "stage=sft"], r"expected 'validation_loss'"),
        (["checkpoint.patience=3"], r"checkpoint\.patience=3: .*set checkpoint\.best_by"),
    ],
)
def test_what_cannot_be_is_refused(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BestStep(settings(*given))


Drive = Callable[..., Recipe]


@pytest.fixture
def drive(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drive:
    """Drive a run whose evaluations find what they are told to."""

    def drive(values: list[float], *more: str, resume: bool = False) -> Recipe:
        fixed = [f"runs_dir={tmp_path}", "eval.every=1", "checkpoint.keep=1", *more]
        mine = override(recipe, ["checkpoint.best_by=obo", "train.num_steps=8", *fixed])
        monkeypatch.setattr(Phases, "evaluate", lambda _, step: {"eval/obo": values[step]})
        book: Any = Book()
        prepare_grpo(mine, resume=resume).driver(Pools(book, book, book, book)).run()
        return mine

    return drive


def kept(recipe: Recipe) -> list[str]:
    return sorted(path.name for path in (recipe.run_dir / "checkpoints").glob("step-*"))


VALUES = [0.1, 0.3, 0.2, 0.5, 0.4, 0.45, 0.2, 0.1, 0.6]


def test_the_best_step_is_written_and_kept_and_patience_ends_a_run(
    drive: Drive, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = drive(VALUES, "checkpoint.every=0", "checkpoint.patience=3")
    assert [row["step"] for row in read_metrics(recipe.run_dir / "metrics.jsonl")][-1] == 6
    assert kept(recipe) == ["step-000003", "step-000006"]  # the best and the last
    best = CheckpointStore(recipe.run_dir, keep=1).best()
    assert best is not None
    assert json.loads((best.folder.parent / "best.json").read_text())["step"] == best.step == 3
    told = " ".join(capsys.readouterr().out.split())
    assert "best by obo: 0.5 at step 3, kept as " in told
    assert "none of the 3 evaluations since was better (checkpoint.patience=3)" in told


def test_a_run_that_goes_on_knows_the_best_and_how_long_ago_it_was(drive: Drive) -> None:
    drive(VALUES, "checkpoint.every=5", "train.num_steps=5", "checkpoint.patience=3")
    recipe = drive(VALUES, "checkpoint.every=5", "checkpoint.patience=3", resume=True)
    assert [row["step"] for row in read_metrics(recipe.run_dir / "metrics.jsonl")][-1] == 6
    assert kept(recipe) == ["step-000003", "step-000006"]
    # With more of it, it goes on to the better one.
    longer = drive(VALUES, "checkpoint.patience=6", resume=True)
    assert CheckpointStore(longer.run_dir, keep=1).best().step == 8  # type: ignore[union-attr]


def test_a_run_that_was_killed_before_it_marked_the_best_step_does_so_when_it_goes_on(
    drive: Drive,
) -> None:
    recipe = drive(VALUES, "checkpoint.every=0", "train.num_steps=3")
    (recipe.run_dir / "checkpoints" / "best.json").unlink()
    drive(VALUES, "checkpoint.every=1", "train.num_steps=6", resume=True)
    assert kept(recipe) == ["step-000003", "step-000006"]


def test_check_tells_of_a_figure_that_there_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("eval: {every: 1}\ncheckpoint: {best_by: accuracy}\n")
    assert main(["check", str(recipe)]) == 2
    assert "best_by='accuracy': expected a figure of the task" in capsys.readouterr().err

"""A task of a user's own, in one file: temporal order of two actions, by a recipe alone."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from actrep_ray.config import ConfigError, Recipe, load_recipe
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.evaluation.scores import score_predictions
from actrep_ray.scoring.worker import GroupScores, GroupTexts, RewardWorker, make_spec
from actrep_ray.tasks.base import labels_of, step_accuracy
from actrep_ray.tasks.loading import load_task
from tests.unit import test_tasks as contract

FILE = Path(__file__).parents[1] / "tasks" / "order.py"
ROOT = Path(__file__).parents[2]
MOST_LINES = 120


def recipe_of(task: str) -> Recipe:
    return load_recipe(None, [f"task={task}", "reward.weights={recognition: 1.0}"])


def test_it_is_short() -> None:
    assert len(FILE.read_text(encoding="utf-8").splitlines()) < MOST_LINES


def test_it_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(f"{FILE}:Order")
    monkeypatch.setattr(contract, "load_task", lambda name: {"order": task}[name])
    contract.test_a_task_keeps_the_contract(task)


def test_it_is_asked_rewarded_and_judged_through_the_recipe() -> None:
    recipe = recipe_of(f"{FILE}:Order")
    task = load_task(recipe.task)
    clip = contract.make_clip(1, None, "squat_then_arm_raise")
    asked = "arm_raise or squat: which comes first? End with <answer>its name</answer>."
    assert task.question(clip, recipe.data) == asked
    assert task.rejection(task.target(clip, recipe.data, 0), clip, recipe.data) is None
    labels = labels_of([clip, replace(clip, id="b", action="arm_raise_then_squat")], task)
    texts = ("<answer>Squat</answer>", "<answer>arm raise</answer>", "squat")
    worker = RewardWorker(make_spec(recipe), recipe.task)
    [scores] = worker.score([GroupTexts(("0", "1", "2"), texts, (labels["a"],) * 3)])
    assert isinstance(scores, GroupScores)
    assert scores.rewards.tolist() == [1.0, 0.0, 0.0]
    assert scores.readings == ("squat", "arm raise", None)
    accuracy = step_accuracy(scores.claims, [labels["a"]] * 3, task)
    assert accuracy == pytest.approx({"accuracy": 1 / 3, "parse_rate": 2 / 3})
    predictions = [Prediction("a", "squat"), Prediction("b", "squat")]
    metrics = score_predictions(predictions, labels, task, num_bootstrap=10)
    assert metrics["accuracy"].value == 0.5


def test_another_process_in_another_folder_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker: the name of the recipe is all that it is sent."""
    monkeypatch.chdir(FILE.parent)
    name = recipe_of("order.py:Order").task
    assert name == f"{FILE}:Order"
    code = f"from actrep_ray.tasks.loading import load_task; print(load_task({name!r}).title)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "Order\n", done.stderr


@pytest.mark.parametrize("task", ["order.py", "order.txt:Order", "order.py:", "order.py:a b", ""])
def test_a_name_that_is_no_task_is_a_mistake_of_the_recipe(task: str) -> None:
    told = r"task=.*: expected counting, recognition, .* or FILE\.py:CLASS"
    with pytest.raises(ConfigError, match=told):
        load_recipe(None, [f"task={task!r}"])


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (None, "no such file"),
        ("import nothing_of_this_name", r"cannot be run \(ModuleNotFoundError: "),
        ("def Own(:", r"cannot be run \(SyntaxError: "),
        ("def Own(): pass", "has no class 'Own'"),
        ("class Own:\n    def __init__(self, a): pass", "cannot be made without arguments"),
        (
            "class Own:\n    @property\n    def name(self): return 1 / 0",
            "a property of it raises \\(ZeroDivisionError: division by zero",
        ),
        ("class Own:\n    name = 'own'", "lacks breakdowns, cell_means, claims, "),
    ],
)
def test_a_file_that_is_no_task_is_one_line(
    tmp_path: Path, source: str | None, problem: str
) -> None:
    path = tmp_path / "own.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(ConfigError, match=rf"task=.*own\.py:Own: .*{problem}") as raised:
        load_task(recipe_of(f"{path}:Own").task)
    assert "\n" not in str(raised.value)

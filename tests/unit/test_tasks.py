"""The boundary of a task: one owner of what is asked and judged, in rooms that name none."""

import ast
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actrep_ray.config import ConfigError, DataConfig, load_recipe
from actrep_ray.config.recipe import TASKS
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.evaluation.scores import score_predictions
from actrep_ray.tasks.base import PARSE_RATE, Task, labels_of, step_accuracy
from actrep_ray.tasks.loading import load_task
from data_prep.references import reference_of
from data_prep.schema import Clip
from rewards.grammar.read import parse
from rewards.reference import Reference

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("driver", "rollout", "scoring", "learner", "weights")
LABELS = ("count", "counts", "cycles")
DRAW_BY_COUNT = ("sampling.py", "cropping.py", "sampling_report.py")  # Random Count Sampling
TASK = load_task("counting")


def trespasses(source: str, *, may_read_labels: bool = False) -> Iterator[str]:
    """What a module that knows no task may not say: names, figures and labels of tasks."""
    figures = {figure.name for name in TASKS for figure in load_task(name).figures}
    tree = ast.parse(source)
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom) and node.module:
                names += [f"{node.module}.{name}" for name in names]
            yield from (f"imports {name}" for name in names if name.split(".")[-1] in TASKS)
            yield from (f"imports {name}" for name in names if ".tasks." in name)
        elif isinstance(node, ast.Attribute):
            if node.attr in LABELS and node not in called and not may_read_labels:
                yield f"line {node.lineno} reads .{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.replace("/", " ").replace("_", " ").lower().split()
            yield from (f"line {node.lineno} names {word}" for word in TASKS if word in words)
            parts = node.value.split("/")
            yield from (f"line {node.lineno} names {part}" for part in parts if part in figures)


def may_import(trespass: str) -> bool:
    """The Protocol and the one place that loads a task."""
    allowed = ("actrep_ray.tasks.base", "actrep_ray.tasks.loading")
    return trespass.startswith("imports ") and trespass.split()[1].startswith(allowed)


@pytest.mark.parametrize("room", ROOMS)
def test_driver_pools_learner_and_engines_know_no_task(room: str) -> None:
    paths = sorted((ROOT / "actrep_ray" / room).rglob("*.py"))
    assert len(paths) > 3
    found = [
        f"{path.relative_to(ROOT)}: {trespass}"
        for path in paths
        for trespass in trespasses(
            path.read_text(encoding="utf-8"),
            may_read_labels=room == "driver" and path.name in DRAW_BY_COUNT,
        )
        if not may_import(trespass)
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "from actrep_ray.tasks.counting import Counting",
        "from actrep_ray.tasks import counting",
        "def f():\n    import actrep_ray.tasks.counting",
        "from actrep_ray.tasks.verl_rows import verl_frame",
        "if recipe.task == 'recognition': pass",
        "n = label.count",
        "n = group.counts[0]",
        "marks = labels['a'].cycles",
        "metrics['train/mae'] = 0.0",
        '"""The counting loop."""',
    ],
)
def test_each_trespass_is_found(source: str) -> None:
    assert [found for found in trespasses(source) if not may_import(found)]


def test_what_is_no_trespass_is_not_found() -> None:
    source = """
from actrep_ray.tasks.base import Task, labels_of
from actrep_ray.tasks.loading import load_task
number = [1, 2].count(1) + next(itertools.count())
text = "accounting/for"
"""
    assert not [found for found in trespasses(source) if not may_import(found)]


def test_marks_are_vetted_in_one_place() -> None:
    callers = [
        path.relative_to(ROOT).as_posix()
        for package in ("actrep_ray", "data_prep", "rewards")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("usable_cycles")
    ]
    assert callers == ["data_prep/references.py"]


def make_clip(count: int, cycles: tuple[tuple[float, float], ...] | None, action: str) -> Clip:
    return Clip(
        id="a",
        dataset="d",
        split="test",
        video="a.mp4",
        start_s=1.0,
        end_s=5.0,
        video_fps=10.0,
        num_frames=80,
        width=64,
        height=64,
        action=action,
        count=count,
        cycles=cycles,
    )


@pytest.mark.parametrize(
    ("cycles", "kept"),
    [
        (((0.5, 1.0), (1.0, 2.5)), True),
        (((0.5, 1.0),), False),  # fewer than the count
        (((0.5, 1.0), (0.9, 2.5)), False),  # overlap
        (None, False),
    ],
)
def test_the_labels_of_a_clip(cycles: tuple[tuple[float, float], ...] | None, kept: bool) -> None:
    clip = make_clip(2, cycles, "arm_raise")
    expected = Reference(2, cycles if kept else None, 4.0, "arm_raise")
    assert labels_of([clip], TASK) == {"a": expected}


def test_an_action_of_blanks_is_no_class() -> None:
    assert reference_of(make_clip(1, None, "  ")).label is None


def test_the_question_names_the_action() -> None:
    cfg = DataConfig(question="How often {action}?")
    assert TASK.question(make_clip(1, None, "arm_raise"), cfg) == "How often arm raise?"


def test_a_recipe_names_its_task_and_no_other() -> None:
    assert load_recipe(None, []).task == "counting"
    with pytest.raises(ConfigError, match="task"):
        load_recipe(None, ["task=juggling"])
    with pytest.raises(ConfigError, match="task='juggling', expected one of counting"):
        load_task("juggling")


@pytest.mark.parametrize("task", [load_task(name) for name in TASKS], ids=lambda task: task.name)
def test_a_task_keeps_the_contract(task: Task) -> None:
    """What the rooms above rely on, for every task that can be loaded."""
    assert load_task(task.name) is task
    assert pickle.loads(pickle.dumps(task)) == task
    names = [figure.name for figure in task.figures]
    assert len(set(names)) == len(names)
    assert PARSE_RATE in task.figures
    references = list(labels_of([make_clip(3, None, "squat")], task).values()) * 3
    truth = task.truth(references[0])
    answers = [parse(f"<answer>{truth}</answer>"), parse("no answer")]
    answers.append(answers[0])
    readings = [task.read(answer) for answer in answers]
    assert readings == [truth, None, truth]
    assert task.constant([truth, truth]) == truth
    assert task.is_right(readings, references[0]).tolist() == [True, False, True]
    claims = [task.claims(answer) for answer in answers]
    assert [made["answer"] for made in claims] == readings
    values = task.contributions(claims, references)
    assert set(values) == set(names)
    assert task.remarks(step_accuracy(claims, references, task)) == ()
    for figure in task.figures:
        assert set(figure.by) <= set(claims[0])
        assert figure.twin in {"", *names}
    for figure in task.figures:
        column = values[figure.name]
        assert column.shape == (3,)
        assert column.dtype == np.float64
        if figure.is_share:
            assert set(column.tolist()) <= {0.0, 1.0}
    assert values[PARSE_RATE.name].tolist() == [1.0, 0.0, 1.0]
    for breakdown in task.breakdowns:
        cell = breakdown.cell_of(references[0])
        assert breakdown.sort([cell]) == [cell]
    for histogram in task.histograms(references).values():
        assert len(histogram) == 3
    assert set(task.cell_means(None, references[0])) == set(task.cell_means(truth, references[0]))


rows = st.lists(
    st.tuples(st.integers(0, 60), st.none() | st.integers(0, 80)), min_size=1, max_size=30
)


@given(rows)
def test_a_step_and_an_evaluation_judge_alike(rows: list[tuple[int, int | None]]) -> None:
    labels = {str(i): Reference(truth, None, 4.0, "squat") for i, (truth, _) in enumerate(rows)}
    readings = [reading for _, reading in rows]
    claims = [{"answer": reading} for reading in readings]
    accuracy = step_accuracy(claims, list(labels.values()), TASK)
    predictions = [Prediction(str(i), reading) for i, reading in enumerate(readings)]
    metrics = score_predictions(predictions, labels, TASK, num_bootstrap=10)
    assert list(accuracy) == ["mae", "obo", "obz", "parse_rate"]
    assert accuracy == pytest.approx({name: metrics[name].value for name in accuracy})


def test_a_step_without_answers_has_no_accuracy() -> None:
    assert step_accuracy([], [], TASK) == {}


def test_the_keys_of_metrics_json_stay() -> None:
    labels = {"a": Reference(3, None, 4.0, "squat"), "b": Reference(7, None, 4.0, "jump")}
    predictions = [Prediction("a", 3), Prediction("b", None)]
    row = score_predictions(predictions, labels, TASK, num_bootstrap=10).to_json()
    figures = ["mae", "obo", "obz", "rmse", "parse_rate"]
    parts = ["parsed_only", "bins", "actions", "histogram"]
    assert list(json.loads(json.dumps(row))) == ["num_clips", *figures, *parts]
    assert list(row["bins"]) == ["1-5", "6-10"]
    assert list(row["actions"]) == ["jump", "squat"]
    assert row["histogram"] == {"3": 1, "unparsed": 1}

"""Predictions of another tool as a row of an evaluation, and the names of several checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.cli.commands import UsageError
from actrep_ray.cli.evaluate import _check_one_task, _name_of, _take_over
from actrep_ray.config import load_recipe
from actrep_ray.evaluation.predictions import Prediction, read_others
from actrep_ray.tasks.counting import Counting
from data_prep.files import DataError

TASK, IDS = Counting(), ("b", "a")


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "theirs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_counts_and_texts_are_read_in_the_order_of_the_clips(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"id": "a", "text": "<think>\nTotal: 4\n</think>\n<answer>5</answer>", "fps": 2},
        {"clip_id": "elsewhere", "count": -3},
        {"clip_id": "b", "count": 7, "score": 0.5},
    )
    found = read_others(path, TASK, IDS)
    assert found[0] == Prediction("b", 7)
    assert (found[1].clip_id, found[1].reading) == ("a", 5)
    none = written(tmp_path, {"id": "a", "count": None}, {"id": "b", "count": 0})
    assert [one.reading for one in read_others(none, TASK, IDS)] == [0, None]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": "a", "count": 1}], "no line about clip 'b', expected every clip"),
        ([{"id": "a", "count": 1}] * 2, ":2: clip 'a' a second time, expected one line each"),
        ([{"id": "a", "count": -1}], ":1: count=-1, expected an integer of at least 0 or null"),
        ([{"id": "a", "count": "3"}], ":1: count='3', expected an integer"),
        ([{"id": "a", "answer": 3}], ":1: neither count nor text, expected one of them"),
    ],
)
def test_what_cannot_be_a_row_is_told(
    rows: list[dict[str, Any]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read_others(written(tmp_path, *rows), TASK, IDS)
    assert words in str(caught.value)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / folder / "out.jsonl" for folder in ("a", "b")]
    with pytest.raises(UsageError, match="two files would be called out"):
        _take_over(files, [], tmp_path, TASK)


def test_checkpoints_are_called_by_run_and_step() -> None:
    folders = [Path("runs/a/checkpoints/step-000010"), Path("runs/b/checkpoints/step-000010")]
    assert [_name_of(one, folders) for one in folders] == ["a-step-000010", "b-step-000010"]
    assert _name_of(Path("models/base"), [Path("models/base")]) == "base"
    # `predictions-200.jsonl` would be a step's, and the middle one of three left out.
    assert _name_of(Path("models/200"), [Path("models/200")]) == "model-200"
    twice = [Path("x/base"), Path("y/base")]
    with pytest.raises(UsageError, match="two checkpoints would be called base"):
        _name_of(twice[0], twice)


def test_checkpoints_of_two_tasks_are_refused() -> None:
    recipes = [load_recipe(None, [f"task={task}"]) for task in ("counting", "recognition")]
    _check_one_task(recipes[:1] * 2)
    with pytest.raises(UsageError, match="of the tasks counting and recognition: one at a time"):
        _check_one_task(recipes)

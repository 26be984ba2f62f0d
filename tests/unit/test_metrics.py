"""Metric files: what is written, what a resume drops, what the console shows."""

import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from actrep_ray.run.metrics import (
    MetricLogger,
    StepLines,
    format_duration,
    read_metrics,
    write_curves,
)


def read_board(run_dir: Path) -> EventAccumulator:
    board = EventAccumulator(str(run_dir / "tb"))
    board.Reload()
    return board


def test_one_json_object_a_step(tmp_path: Path) -> None:
    with MetricLogger(tmp_path / "run") as logger:
        for step in (1, 2):
            with logger.timer("rollout"):
                pass
            # As a learner's numbers come: a scalar of numpy.
            values: dict[str, Any] = {"reward/mean": np.float32(0.5), "dropped/groups": step}
            logger.log(step, values)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["dropped/groups"] == 2.0
    assert rows[0]["reward/mean"] == 0.5
    assert 0 <= rows[0]["time/rollout_s"] <= rows[0]["time/step_s"] <= rows[1]["time_s"] + 1e-3
    board = read_board(tmp_path / "run")
    assert [(e.step, e.value) for e in board.Scalars("reward/mean")] == [(1, 0.5), (2, 0.5)]


def test_a_phase_timed_twice_adds_up_and_is_forgotten_after_the_step(tmp_path: Path) -> None:
    with MetricLogger(tmp_path) as logger:
        for _ in range(2):
            with logger.timer("sync"):
                pass
        logger.log(1, {})
        logger.log(2, {"time/step_s": 7.0})
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first["time/sync_s"] >= 0
    assert "time/sync_s" not in second
    assert second["time/step_s"] == 7.0


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    with MetricLogger(tmp_path) as logger:
        logger.log(1, {"learner/grad_norm": math.inf, "reward/cycles": math.nan, "a/b": 1})
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row["learner/grad_norm"] is None
    assert row["not_finite"] == ["learner/grad_norm", "reward/cycles"]
    assert "reward/cycles" not in read_board(tmp_path).Tags()["scalars"]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"step": 1.0}, "metric key 'step'"),
        ({"a/b": [1.0]}, r"metric a/b=\[1.0\], expected a number"),
        ({"a/b": "1"}, "metric a/b='1', expected a number"),
    ],
)
def test_what_is_no_metric_is_refused(
    tmp_path: Path, metrics: dict[str, float], message: str
) -> None:
    with MetricLogger(tmp_path) as logger, pytest.raises(ValueError, match=message):
        logger.log(1, metrics)


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    with MetricLogger(tmp_path) as logger:
        for step in range(1, 6):
            logger.log(step, {"reward/mean": step / 10})
            logger.text(step, "rollout/0", f"answer {step}")
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 6, "reward/me')  # the kill
    time.sleep(1.1)  # TensorBoard reads its files by name: seconds, then the process's 9 after 10
    with MetricLogger(tmp_path, purge_after_step=3) as logger:
        logger.log(4, {"reward/mean": 9.0})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["reward/mean"]) for row in rows] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
        (4, 9.0),
    ]
    texts = [
        json.loads(line)["text"] for line in (tmp_path / "texts.jsonl").read_text().splitlines()
    ]
    assert texts == ["answer 1", "answer 2", "answer 3"]
    events = read_board(tmp_path).Scalars("reward/mean")
    assert [(e.step, round(e.value, 3)) for e in events] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 9.0)]


def test_rows_of_one_step_are_joined_when_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "a/b": 1}\n{"step": 1, "a/b": 3}\n{"step": 2, "eval/mae": 0.5}\n')
    assert read_metrics(path) == [{"step": 1, "a/b": 3}, {"step": 2, "a/b": 1, "eval/mae": 0.5}]


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"a/b": 1}'])
def test_a_broken_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: "):
        read_metrics(path)


def test_texts_and_histograms_reach_tensorboard(tmp_path: Path) -> None:
    with MetricLogger(tmp_path) as logger:
        logger.text(1, "rollout/0", "<think>\nx\n</think>")
        logger.histogram(1, "sampling/count", [0, 3, 3, 50])
        with pytest.raises(ValueError, match="sampling/count: expected finite numbers"):
            logger.histogram(1, "sampling/count", [])
    tags = read_board(tmp_path).Tags()
    assert tags["histograms"] == ["sampling/count"]
    assert tags["tensors"] == ["rollout/0/text_summary"]


def test_the_console_line_is_readable_without_a_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    metrics = {
        "reward/mean": 0.4321,
        "train/obz": 0.31,
        "rollout/response_tokens": 84.4,
        "learner/clip_fraction": 0.0123,
        "learner/grad_norm": 1.234,
        "time/rollout_s": 3.21,
        "time/learn_s": 4.04,
        "time/step_s": 7.5,
    }
    console = Console(file=out, width=40, force_terminal=False)
    with MetricLogger(tmp_path, num_steps=200, console=console) as logger:
        logger.log(12, metrics)
    assert out.getvalue() == (
        "step  12/200  reward 0.432  exact 0.31  len 84  clip 0.012  grad 1.23  "
        "7.5 s (rollout 3.2 learn 4.0)  left 23 min 30 s\n"
    )


def test_the_time_left_follows_the_newest_steps() -> None:
    out = io.StringIO()
    lines = StepLines("GRPO", 10, Console(file=out, width=200))
    for step, seconds in ((1, 10.0), (2, 5.0), (10, 5.0)):
        lines.show(step, {"time/step_s": seconds})
    left = [line.rsplit("left ", 1)[1] for line in out.getvalue().splitlines()]
    assert left == ["1 min 30 s", "1 min 12 s", "0 s"]  # 9 * 10; 8 * (0.8 * 10 + 0.2 * 5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.6, "1 min 00 s"),
        (59.4, "59 s"),
        (3599, "59 min 59 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_fact_is_no_curve(tmp_path: Path) -> None:
    with MetricLogger(tmp_path) as logger:
        logger.log(0, {"eval/obo": 0.5}, {"data/1-3": 12})
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (row["data/1-3"], row["eval/obo"]) == (12.0, 0.5)
    scalars = read_board(tmp_path).Tags()["scalars"]
    assert "data/1-3" not in scalars
    assert "eval/obo" in scalars


def test_a_mishap_that_never_happened_is_no_curve(tmp_path: Path) -> None:
    """Also after a resume: the curve of losses begins with the step before the first."""
    with MetricLogger(tmp_path) as logger:
        for step in (1, 2, 3):
            values = {"faults/lost": 0.0, "alarms/flat": 0.0, "reward/mean": 0.1 * (step - 1)}
            logger.log(step, {**values, "checkpoint/step": step})
    with MetricLogger(tmp_path, purge_after_step=2) as logger:
        for step, lost in ((3, 0.0), (4, 1.0), (5, 0.0)):
            logger.log(
                step, {"faults/lost": lost, "alarms/flat": 0.0, "reward/mean": 0.1 * (step - 1)}
            )
    board = read_board(tmp_path)
    curves = {
        key: [(e.step, round(e.value, 3)) for e in board.Scalars(key)]
        for key in board.Tags()["scalars"]
        if not key.startswith("time/")
    }
    assert curves == {
        "faults/lost": [(3, 0.0), (4, 1.0), (5, 0.0)],
        "reward/mean": [(1, 0.0), (2, 0.1), (3, 0.2), (4, 0.3), (5, 0.4)],
    }
    rows = read_metrics(tmp_path / "metrics.jsonl")  # the file has every number
    assert [row["alarms/flat"] for row in rows] == [0.0] * 5
    assert [row.get("checkpoint/step") for row in rows] == [1, 2, None, None, None]


def test_curves_of_a_folder_take_the_place_of_those_before(tmp_path: Path) -> None:
    for value in (0.25, 0.5):
        write_curves(tmp_path / "tb", {0: {"eval/obo": 0.0}, 9: {"eval/obo": value, "x": math.nan}})
    board = read_board(tmp_path)
    assert [(e.step, e.value) for e in board.Scalars("eval/obo")] == [(0, 0.0), (9, 0.5)]
    assert board.Tags()["scalars"] == ["eval/obo"]

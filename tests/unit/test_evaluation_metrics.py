"""Figures of counts against numbers worked out by hand."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actrep_ray.evaluation import predictions as predicted
from actrep_ray.evaluation import scores
from actrep_ray.evaluation.intervals import (
    Interval,
    Take,
    bootstrap_intervals,
    wilson_interval,
)
from actrep_ray.evaluation.predictions import (
    Prediction,
    constant_predictions,
    read_predictions,
    write_predictions,
)
from actrep_ray.evaluation.scores import reading_histogram
from actrep_ray.tasks.loading import load_task
from rewards.grammar.write import Response, render
from rewards.reference import Reference

TASK = load_task("counting")
NAMES = [figure.name for figure in TASK.figures if not figure.by]  # of bare counts
score_predictions = partial(scores.score_predictions, task=TASK)
score_cells = partial(scores.score_cells, task=TASK)
paired_difference = partial(scores.paired_difference, task=TASK)
prediction_of_text = partial(predicted.prediction_of_text, task=TASK)


def make_labels(*counts: int, actions: tuple[str, ...] = ()) -> dict[str, Reference]:
    names = actions or ("squat",) * len(counts)
    return {
        f"c{i}": Reference(count, None, 10.0, action)
        for i, (count, action) in enumerate(zip(counts, names, strict=True))
    }


def make_predictions(*counts: int | None) -> list[Prediction]:
    return [Prediction(f"c{i}", count) for i, count in enumerate(counts)]


# true 4 0 10 50; predicted 5 0 unparsed 47:
#   |p - g|         1    0    10 (p = 0)   3
#   / (g + 0.1)     1/4.1 0   10/10.1      3/50.1
LABELS = make_labels(4, 0, 10, 50, actions=("squat", "still", "squat", "jump"))
PREDICTIONS = make_predictions(5, 0, None, 47)


def test_figures_by_hand() -> None:
    metrics = score_predictions(PREDICTIONS, LABELS)
    assert metrics.num_clips == 4
    assert metrics["mae"].value == pytest.approx((1 / 4.1 + 10 / 10.1 + 3 / 50.1) / 4)
    assert metrics["obo"].value == 0.5
    assert metrics["obz"].value == 0.25
    assert metrics["rmse"].value == pytest.approx(math.sqrt((1 + 100 + 9) / 4))
    assert metrics["parse_rate"].value == 0.75


def test_parsed_only_leaves_the_unread_out() -> None:
    parsed = score_predictions(PREDICTIONS, LABELS).parsed_only
    assert parsed is not None
    assert parsed.num_clips == 3
    assert parsed["mae"].value == pytest.approx((1 / 4.1 + 3 / 50.1) / 3)
    assert parsed["obo"].value == pytest.approx(2 / 3)
    assert parsed["obz"].value == pytest.approx(1 / 3)
    assert parsed["rmse"].value == pytest.approx(math.sqrt(10 / 3))
    assert parsed["parse_rate"] == Interval(1.0, 1.0, 1.0, "definition")


def test_an_unread_answer_is_wrong_even_where_zero_is_right() -> None:
    metrics = score_predictions(make_predictions(None, None), make_labels(0, 1))
    assert metrics["obo"].value == metrics["obz"].value == 0.0
    assert metrics["mae"].value == pytest.approx((0 + 1 / 1.1) / 2)
    assert metrics.parsed_only is None


def test_bins_and_actions() -> None:
    metrics = score_predictions(PREDICTIONS, LABELS)
    assert {name: f.num_clips for name, f in metrics.breakdowns["bins"].items()} == {
        "0": 1,
        "1-5": 1,
        "6-10": 1,
        "41+": 1,
    }
    assert metrics.breakdowns["bins"]["41+"]["mae"].value == pytest.approx(3 / 50.1)
    assert list(metrics.breakdowns["actions"]) == ["jump", "squat", "still"]
    assert metrics.breakdowns["actions"]["squat"].num_clips == 2
    assert metrics.breakdowns["actions"]["squat"]["parse_rate"].value == 0.5
    assert metrics.histogram == {"0": 1, "5": 1, "47": 1, "unparsed": 1}


def test_the_constant_predictor_of_a_paper() -> None:
    # MAE and OBO of "3" on counts 1, 3, 4, 30.
    labels = make_labels(1, 3, 4, 30)
    metrics = score_predictions(constant_predictions(labels, 3), labels)
    assert metrics["mae"].value == pytest.approx((2 / 1.1 + 0 + 1 / 4.1 + 27 / 30.1) / 4)
    assert metrics["obo"].value == 0.5
    assert metrics["obz"].value == 0.25


@pytest.mark.parametrize(
    ("counts", "median"), [([7], 7), ([1, 9, 3], 3), ([1, 9, 3, 4], 3), ([5, 5, 1, 1], 1)]
)
def test_the_train_median_is_a_count_that_exists(counts: list[int], median: int) -> None:
    assert TASK.constant(counts) == median


def test_no_median_of_nothing() -> None:
    with pytest.raises(ValueError, match="no median"):
        TASK.constant([])


# By hand: (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) with z = 1.95996.
# n = 20: z^2 / n = 0.192073, so 0 of 20 ends at 0.192073 / 1.192073 and 20 of 20 begins at
# 1 / 1.192073; 10 of 20: 0.5 -+ 1.95996 sqrt(0.0125 + 0.0024009) / 1.192073 = 0.5 -+ 0.200702.
@pytest.mark.parametrize(
    ("num_right", "low", "high"),
    [(20, 0.838875, 1.0), (0, 0.0, 0.161125), (10, 0.299298, 0.700702)],
)
def test_wilson_by_hand(num_right: int, low: float, high: float) -> None:
    interval = wilson_interval(num_right, 20)
    assert interval.value == num_right / 20
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-6)
    assert interval.method == "wilson"


def test_all_right_is_no_certainty() -> None:
    metrics = score_predictions(make_predictions(*range(20)), make_labels(*range(20)))
    assert (
        str(metrics["obz"])
        == str(metrics["obo"])
        == str(metrics["parse_rate"])
        == "1.000 [0.839, 1.000]"
    )
    assert metrics["mae"] == metrics["rmse"] == Interval(0.0, 0.0, 0.0, "bootstrap")
    none = score_predictions(make_predictions(*[None] * 20), make_labels(*range(20)))
    assert str(none["obz"]) == "0.000 [0.000, 0.161]"


def test_each_figure_says_where_its_interval_comes_from() -> None:
    row = score_predictions(PREDICTIONS, LABELS).to_json()
    methods = {"mae": "bootstrap", "rmse": "bootstrap"}
    methods |= dict.fromkeys(("obo", "obz", "parse_rate"), "wilson")
    for part in (row, row["bins"]["41+"], row["actions"]["squat"]):
        assert {name: part[name]["method"] for name in NAMES} == methods
    changed = paired_difference(PREDICTIONS, PREDICTIONS, LABELS)
    assert {interval.method for interval in changed.values()} == {"bootstrap"}


@pytest.mark.parametrize(("num_right", "num_clips"), [(0, 0), (3, 2), (-1, 2)])
def test_a_share_of_nothing_is_an_error(num_right: int, num_clips: int) -> None:
    with pytest.raises(ValueError):
        wilson_interval(num_right, num_clips)


def test_cells_are_scored_apart() -> None:
    cells = {"c0": "a", "c1": "b", "c2": "a", "c3": "b"}
    figures = score_cells(PREDICTIONS, LABELS, cells)
    assert list(figures) == ["a", "b"]
    assert figures["a"]["mae"].value == pytest.approx((1 / 4.1 + 10 / 10.1) / 2)
    assert figures["a"]["parse_rate"].value == 0.5
    assert figures["b"]["obz"].value == 0.5


def test_interval_of_a_share_agrees_with_theory() -> None:
    labels = make_labels(*([5] * 200))
    predictions = make_predictions(*([5] * 140 + [9] * 60))
    obz = score_predictions(predictions, labels)["obz"]
    half = 1.96 * math.sqrt(0.7 * 0.3 / 200)
    assert obz.value == 0.7
    assert obz.low == pytest.approx(0.7 - half, abs=0.01)
    assert obz.high == pytest.approx(0.7 + half, abs=0.01)


def test_the_seed_decides() -> None:
    labels = make_labels(*range(50))
    predictions = make_predictions(*(i + i % 3 for i in range(50)))
    first = score_predictions(predictions, labels, seed=3)
    assert score_predictions(predictions, labels, seed=3) == first
    assert score_predictions(predictions, labels, seed=4)["mae"] != first["mae"]


def test_the_size_of_a_block_does_not_decide() -> None:
    table = np.random.default_rng(0).normal(size=(50, 2))

    def means(take: Take) -> np.ndarray:
        found: np.ndarray = take(table).mean(axis=-2)
        return found

    whole, small = (
        bootstrap_intervals(means, 50, num_bootstrap=400, seed=3, most_rows=most_rows)
        for most_rows in (400_000, 1_000)
    )
    for one, other in zip(whole, small, strict=True):
        assert other.value == one.value
        assert (other.low, other.high) == pytest.approx((one.low, one.high))
    # The mean of 50 normal values is within 1.96 / sqrt(50) of 0; the interval is as wide.
    assert whole[0].high - whole[0].low == pytest.approx(2 * 1.96 / math.sqrt(50), rel=0.15)


def test_paired_difference_is_exact_and_narrower_than_the_two_intervals() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 30, 200)
    errors = rng.integers(0, 6, 200)
    labels = make_labels(*(int(g) for g in truth))
    before = make_predictions(*(int(g + e) for g, e in zip(truth, errors, strict=True)))
    after = make_predictions(*(int(g + max(e - 1, 0)) for g, e in zip(truth, errors, strict=True)))
    a, b = (score_predictions(p, labels) for p in (before, after))
    changed = paired_difference(before, after[::-1], labels)
    assert set(changed) == set(NAMES)
    for name in NAMES:
        value = b[name].value - a[name].value
        assert changed[name].value == pytest.approx(value)
    assert changed["mae"].is_below_zero
    assert changed["obo"].is_above_zero
    assert changed["mae"].high - changed["mae"].low < a["mae"].high - a["mae"].low
    assert changed["parse_rate"] == Interval(0.0, 0.0, 0.0)


def test_no_difference_to_oneself() -> None:
    changed = paired_difference(PREDICTIONS, PREDICTIONS, LABELS)
    assert all(interval == Interval(0.0, 0.0, 0.0) for interval in changed.values())


@pytest.mark.lengthy
@given(
    st.lists(
        st.tuples(st.integers(0, 80), st.none() | st.integers(0, 200)), min_size=1, max_size=20
    )
)
@settings(max_examples=60)
def test_figures_stay_in_range_and_intervals_around_them(
    rows: list[tuple[int, int | None]],
) -> None:
    labels = make_labels(*(g for g, _ in rows))
    metrics = score_predictions(make_predictions(*(p for _, p in rows)), labels, num_bootstrap=50)
    assert sum(f.num_clips for f in metrics.breakdowns["bins"].values()) == len(rows)
    assert sum(metrics.histogram.values()) == len(rows)
    assert metrics["obz"].value <= metrics["obo"].value <= metrics["parse_rate"].value <= 1
    for name in NAMES:
        interval = metrics[name]
        assert 0 <= interval.low <= interval.high
        assert math.isfinite(interval.value)
    row = json.loads(json.dumps(metrics.to_json(), allow_nan=False))
    assert {name: Interval(**row[name]) for name in NAMES} == metrics.values
    for cell, figures in metrics.breakdowns["bins"].items():
        assert Interval(**row["bins"][cell]["mae"]) == figures["mae"]
    assert row["histogram"] == metrics.histogram


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], "no predictions to score"),
        (make_predictions(1), r"clip 'c1' has no prediction \(and 0 more\)"),
        (make_predictions(1, 2, 3), "clip 'c2' has a prediction and no label"),
        ([*make_predictions(1, 2), Prediction("c0", 1)], "clip 'c0' has 2 predictions"),
    ],
)
def test_rows_do_not_vanish(predictions: list[Prediction], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_predictions(predictions, make_labels(1, 2))


def test_pairs_need_the_same_clips() -> None:
    with pytest.raises(ValueError, match="clip 'c1' is answered before and not after"):
        paired_difference(make_predictions(1, 2), make_predictions(1), make_labels(1, 2))


def test_as_dict_names_the_phase() -> None:
    values = score_predictions(PREDICTIONS, LABELS).as_dict("eval")
    assert values["eval/obo"] == 0.5
    assert values["eval/num_clips"] == 4.0
    assert values["eval/obo_low"] <= 0.5 <= values["eval/obo_high"]


# --- predictions


def test_predictions_survive_their_file(tmp_path: Path) -> None:
    answer = render(Response("A person squats.", "down and up", ((0.5, 1.2),), "even", 1, 1))
    predictions = [
        prediction_of_text("a", answer, num_tokens=40),
        prediction_of_text("b", "half a character \ud83d, ２²", is_truncated=True),
        Prediction("c", 3),
    ]
    path = tmp_path / "deep" / "predictions.jsonl"
    assert write_predictions(path, predictions, TASK) == 3
    assert read_predictions(path, TASK) == predictions
    assert predictions[0].reading == 1
    assert predictions[0].cycles == ((0.5, 1.2),)
    assert predictions[0].problem is None
    assert predictions[1].reading is None
    assert predictions[1].problem == "missing"
    assert reading_histogram(predictions) == {"1": 1, "3": 1, "unparsed": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "not JSON"),
        ("[1]", "expected a JSON object"),
        ('{"clip_id": "a", "count": 1, "label": 2}', "unknown key 'label'"),
        ('{"count": 1}', "clip_id=None"),
        ('{"clip_id": "a"}', "count=None"),
        ('{"clip_id": "a", "count": 1.5}', "count=1.5, expected an integer"),
        ('{"clip_id": "a", "count": true}', "count=True"),
        ('{"clip_id": "a", "count": -1}', "count=-1"),
        ('{"clip_id": "a", "count": 1, "cycles": [[1]]}', r"cycles holds \[1\]"),
    ],
)
def test_a_bad_row_of_predictions_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(f'{{"clip_id": "ok", "count": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"predictions\.jsonl:2: .*{message}"):
        read_predictions(path, TASK)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_predictions(tmp_path / "none.jsonl", TASK)

"""Samples of an evaluation: how they vote, what pass@k they come to, and the rows of a report."""

import io
import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from actrep_ray.cli.main import main
from actrep_ray.evaluation.answer_figures import pass_at_each_k, sampled_answers
from actrep_ray.evaluation.predictions import (
    Prediction,
    prediction_of_text,
    read_predictions,
    write_predictions,
)
from actrep_ray.evaluation.report import print_report, write_report
from actrep_ray.evaluation.run_results import ReportInput, write_metrics
from actrep_ray.evaluation.voting import majority_of, median_of, rules_of, speaker, voted
from actrep_ray.tasks.loading import load_task
from data_prep.schema import Clip
from rewards.reference import Reference

COUNTING, RECOGNITION = load_task("counting"), load_task("recognition")
LISTED = "<think>\nrep1: 0.5-1.2s\nrep2: 1.2-2.0s\nTotal: {total}\n</think>\n<answer>2</answer>"

said = st.lists(st.none() | st.integers(0, 9), max_size=9)


def answer(clip_id: str, count: int | None) -> Prediction:
    return prediction_of_text(
        clip_id, "?" if count is None else f"<answer>{count}</answer>", COUNTING
    )


def sampled(clip_id: str, greedy: int, *counts: int | None) -> Prediction:
    samples = tuple(answer(clip_id, count) for count in counts)
    return Prediction(clip_id, greedy, samples=samples)


# Right: 4 and 2. Of the first 2 of 4 are right, of the second 1 of 4.
ANSWERS = [sampled("a", 3, 4, 5, None, 4), sampled("b", 2, 3, 3, 2, 1)]
LABELS = {"a": Reference(count=4), "b": Reference(count=2)}


def test_votes_by_hand() -> None:
    assert majority_of([5, 4, None, 4]) == 4
    assert majority_of([5, 4, None, None, 4, 5]) == 5  # of equals the first
    assert median_of([9, None, 3, 4, 3]) == 3  # 3 3 4 9: of two in the middle the lower
    assert median_of([9, 3, 4]) == 4
    assert majority_of([None, None]) is median_of([None]) is median_of([]) is None
    assert median_of(["run", "jump", "jump"]) == "jump"
    assert list(rules_of(COUNTING)) == ["majority", "median"]
    assert list(rules_of(RECOGNITION)) == ["majority"]


@given(said)
def test_a_vote_is_for_something_that_was_said(readings: list[int | None]) -> None:
    given_ = [reading for reading in readings if reading is not None]
    majority, median = majority_of(readings), median_of(readings)
    if not given_:
        assert majority is None
        assert median is None
        return
    assert isinstance(majority, int)
    assert isinstance(median, int)
    assert given_.count(majority) == Counter(given_).most_common(1)[0][1]
    assert median in given_
    below = sum(reading < median for reading in given_)
    above = sum(reading > median for reading in given_)
    assert below < len(given_) / 2
    assert above <= len(given_) / 2


def test_the_answer_that_speaks_does_not_contradict_itself_if_it_can_help_it() -> None:
    texts = ["<answer>3</answer>", LISTED.format(total=5), LISTED.format(total=2)]
    answers = [prediction_of_text("a", text, COUNTING) for text in texts]
    assert speaker(answers, 2, COUNTING) is answers[2]
    assert speaker(answers[:2], 2, COUNTING) is answers[1]
    [chosen] = voted([Prediction("a", 3, samples=tuple(answers))], majority_of, COUNTING)
    assert chosen is answers[2]


def test_pass_at_k_of_two_clips_by_hand() -> None:
    found = pass_at_each_k(sampled_answers(ANSWERS, LABELS, COUNTING), num_bootstrap=100, seed=0)
    # a: 1 - C(2,k)/C(4,k) = 1/2, 5/6, 1, 1    b: 1 - C(3,k)/C(4,k) = 1/4, 1/2, 3/4, 1
    means = {1: 3 / 8, 2: 2 / 3, 3: 7 / 8, 4: 1.0}
    assert {k: interval.value for k, interval in found.items()} == pytest.approx(means)
    assert found[1].low == pytest.approx(1 / 4)
    assert found[1].high == pytest.approx(1 / 2)
    assert (found[1].method, found[4].method) == ("bootstrap", "wilson")
    assert found[4].low < 1  # two right ones of two do not prove that all are


def test_samples_survive_their_file(tmp_path: Path) -> None:
    texts = [LISTED.format(total=2), "half \ud83d"]
    samples = tuple(prediction_of_text("a", text, COUNTING, num_tokens=9) for text in texts)
    written = [Prediction("a", 3, samples=samples), Prediction("b", 4)]
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, written, COUNTING)
    assert read_predictions(path, COUNTING) == written
    first, second = map(json.loads, path.read_text().splitlines())
    assert [row["count"] for row in first["samples"]] == [2, None]
    assert "clip_id" not in first["samples"][0]
    assert "samples" not in second  # nothing changes where nothing was sampled


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ('"many"', "samples='many', expected a list of answers"),
        ("[3]", r"samples=\[3\], expected a list of answers"),
        ('[{"count": 1}, {"count": -1}]', r"samples\[1\]: count=-1, expected an integer"),
        ('[{"count": 1, "samples": []}]', "samples inside of samples"),
        ('[{"count": 1, "label": 2}]', r"samples\[0\]: unknown key 'label'"),
    ],
)
def test_bad_samples_are_named(samples: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(f'{{"clip_id": "a", "count": 1, "samples": {samples}}}\n')
    with pytest.raises(ValueError, match=rf"predictions\.jsonl:1: {words}"):
        read_predictions(path, COUNTING)


def clip(name: str, count: int) -> Clip:
    return Clip(
        id=name, dataset="test", split="test", video="none.mp4", start_s=0.0, end_s=8.0,
        video_fps=10.0, num_frames=80, width=64, height=64, action="squat", count=count,
    )  # fmt: skip


@pytest.mark.lengthy
def test_votes_are_rows_and_pass_at_k_is_a_table(tmp_path: Path) -> None:
    other = [Prediction("a", 1), Prediction("b", 1)]
    given_ = ReportInput(
        "run", COUNTING, [clip("a", 4), clip("b", 2)], {"one": ANSWERS, "two": other},
        num_bootstrap=50,
    )  # fmt: skip
    report = write_report(given_, tmp_path)
    assert list(report.metrics) == ["one", "one, majority of 4", "one, median of 4", "two"]
    exact = {name: metrics["obz"].value for name, metrics in report.metrics.items()}
    # a: 4 4 5, majority and median 4, right; b: 1 2 3 3, majority 3, median 2
    assert exact == {"one": 0.5, "one, majority of 4": 0.5, "one, median of 4": 1.0, "two": 0.0}
    assert list(report.differences) == [
        "one → two",
        "one → one, majority of 4",
        "one → one, median of 4",
    ]
    rows = pd.read_csv(tmp_path / "tables" / "pass_at.csv")
    assert rows["k"].tolist() == [1, 2, 3, 4]
    assert rows["pass_at_k"].tolist() == pytest.approx([3 / 8, 2 / 3, 7 / 8, 1])
    out = io.StringIO()
    print_report(report, Console(file=out, width=80))
    assert "pass@1" in out.getvalue()
    assert "pass@4" in out.getvalue()
    assert "pass@3" not in out.getvalue()  # of many samples not every k is shown
    assert "one, median of 4" in out.getvalue()

    write_metrics(tmp_path, report.to_json(), "one")
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert list(written["predictors"]) == list(report.metrics)
    assert written["obz"] == written["predictors"]["one"]["obz"]  # as of one alone
    assert written["predictors"]["one"]["pass_at"]["2"]["value"] == pytest.approx(2 / 3)
    assert "pass_at" not in written["predictors"]["two"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--samples", "1"], "--samples 1: expected 2 (one has no majority) to 256"),
        (["--samples", "100000"], "--samples 100000: expected 2"),
        (["--temperature", "0.5"], "--temperature belongs to --samples"),
        (["--samples", "4", "--method", "periodicity"], "--samples and --temperature belong to"),
    ],
)
def test_samples_that_make_no_sense_are_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--data", "clips.jsonl", *words]) == 2
    assert told in capsys.readouterr().err

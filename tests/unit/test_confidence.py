"""How sure several answers are, held against truth; numbers worked out by hand."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from actrep_ray.evaluation.confidence import (
    agreed,
    bins_of,
    calibration_error,
    fit,
    read_calibration,
    reliability,
    write_calibration,
)
from actrep_ray.evaluation.predictions import (
    Prediction,
    prediction_of_text,
    read_predictions,
    write_predictions,
)
from actrep_ray.evaluation.report import print_report, write_report
from actrep_ray.evaluation.run_results import ReportInput
from actrep_ray.tasks.loading import load_task
from tests.unit.test_samples import ANSWERS, LISTED, clip

TASK = load_task("counting")


def said(*counts: int | None) -> list[Prediction]:
    texts = ["?" if count is None else f"<answer>{count}</answer>" for count in counts]
    return [prediction_of_text("a", text, TASK) for text in texts]


@pytest.mark.parametrize(
    ("answers", "reading", "confidence"),
    [
        (said(10, 11, 10, None, 10), 10, 4 / 7),
        (said(4), 4, 2 / 3),
        (said(4, 5), 4, 2 / 4),
        (said(None, None), None, 0.0),
        ([prediction_of_text("a", LISTED.format(total=5), TASK)], 2, 1 / 3),  # contradicts itself
        ([prediction_of_text("a", LISTED.format(total=2), TASK)], 2, 2 / 3),
    ],
)
def test_confidence_by_hand(
    answers: list[Prediction], reading: int | None, confidence: float
) -> None:
    found = agreed(answers, TASK)
    assert found.reading == reading
    assert found.confidence == pytest.approx(confidence)


def test_reliability_and_its_error_by_hand() -> None:
    found = reliability([0.6, 0.65, 0.9, 0.9, 1.0], [True, False, True, False, False], 3)
    low, high = found.bins
    assert (low.low, low.num_clips, high.low, high.num_clips) == (0.6, 2, 0.9, 3)
    assert (low.confidence, low.right.value) == pytest.approx((0.625, 1 / 2))
    assert (high.confidence, high.right.value) == pytest.approx((2.8 / 3, 1 / 3))
    # 2/5 of |0.5 - 0.625|, 3/5 of |1/3 - 2.8/3|
    assert found.error == pytest.approx(0.4 * 0.125 + 0.6 * 0.6)
    assert found.bins[0].right.low == pytest.approx(0.0945, abs=1e-3)  # Wilson, 1 of 2


def test_a_calibration_is_the_nearest_rising_function() -> None:
    sure = np.array([0.2, 0.4, 0.4, 0.6, 0.8, 0.8])
    right = np.array([0.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    # 0.4: 1/2 and 0.6: 0 fall, so they are pooled to 1/3; ends are 1/8 from 0 and 1 of 6 clips.
    found = fit(sure, right)
    expected = [(0.2, 1 / 8), (0.4, 1 / 3), (0.6, 1 / 3), (0.8, 7 / 8)]
    assert np.array(found.points) == pytest.approx(np.array(expected))
    assert found.num_clips == 6
    assert found(0.0) == pytest.approx(1 / 8)
    assert found(0.5) == pytest.approx(1 / 3)
    assert found(0.7) == pytest.approx((1 / 3 + 7 / 8) / 2)


def test_what_is_too_sure_is_told_as_often_as_it_is_right() -> None:
    """A predictor that says 0.9 and 0.6 and is right in 60% and 20%: errors 0.3 and 0.4."""
    random = np.random.default_rng(0)
    sure = np.where(random.random(4000) < 0.5, 0.9, 0.6)
    right = random.random(4000) < np.where(sure == 0.9, 0.6, 0.2)
    found = reliability(sure.tolist(), right.tolist(), 8)
    assert found.error == pytest.approx(0.35, abs=0.03)
    assert found.crossed is not None
    assert found.crossed < 0.03
    assert found.calibration(0.9) == pytest.approx(0.6, abs=0.03)


def test_a_calibration_of_nothing_does_not_look_good_on_other_clips() -> None:
    """Each clip of its own confidence, right by a coin: fitted anew on the other half, it errs."""
    random = np.random.default_rng(1)
    sure, right = random.random(60), (random.random(60) < 0.5).astype(np.float64)
    found = reliability(sure.tolist(), (right > 0).tolist(), 2)
    assert found.crossed is not None
    told = np.array([found.calibration(one) for one in sure])
    assert calibration_error(bins_of(told, right)) < found.crossed - 0.1


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 0.3, 4 / 7, 0.7, 1.0]), st.booleans()), min_size=1
    )
)
def test_bins_hold_every_clip_and_calibrations_rise(clips: list[tuple[float, bool]]) -> None:
    sure, right = zip(*clips, strict=True)
    found = reliability(sure, right, 5)
    assert sum(bin_.num_clips for bin_ in found.bins) == len(clips)
    assert 0 <= found.error <= 1
    shares = [share for _, share in found.calibration.points]
    assert shares == sorted(shares)
    assert all(0 < share < 1 for share in shares)
    json.dumps(found.to_json(), allow_nan=False)


def test_a_calibration_is_read_for_its_own_checkpoint_alone(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    found = reliability([0.5, 0.7, 0.7], [False, True, True], 5)
    drawn = {"num": 5, "temperature": 1.0, "top_p": 1.0}
    write_calibration(path, found, "abc", drawn)
    assert read_calibration(path, "abc", drawn) == found.calibration
    with pytest.raises(ValueError, match=r"calibration\.json: is of another checkpoint"):
        read_calibration(path, "other", drawn)
    for other in ({"num": 3}, {"temperature": 0.3}, {"top_p": 0.9}):
        with pytest.raises(ValueError, match=r"calibration\.json: is of answers drawn with"):
            read_calibration(path, "abc", drawn | other)
    content = json.loads(path.read_text())
    for points in ([], [[0.5, 2]], [[0.5, 0.2], [0.4, 0.3]], [[0.5, True]], "x", [[0.1, 0.5, 1]]):
        path.write_text(json.dumps({**content, "points": points}))
        with pytest.raises(ValueError, match=r"calibration\.json: points="):
            read_calibration(path, "abc", drawn)


@pytest.mark.lengthy
def test_a_report_tells_reliability(tmp_path: Path) -> None:
    clips = [clip("a", 4), clip("b", 2)]
    given_ = ReportInput("run", TASK, clips, {"one": ANSWERS}, num_bootstrap=20)
    report, out = write_report(given_, tmp_path), io.StringIO()
    # a: 4 5 - 4, median 4, 2 of 4: confidence 3/6, right; b: 3 3 2 1, median 2, 1 of 4: 2/6, right.
    found = report.to_json()["one"]["confidence"]
    assert [(b["num_clips"], b["right"]["value"]) for b in found["bins"]] == [(1, 1.0), (1, 1.0)]
    assert found["error"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["num_answers"] == 4
    print_report(report, Console(file=out, width=80))
    assert "one: confidence of 4 answers" in out.getvalue()
    assert "error 0.583" in " ".join(out.getvalue().split())
    assert report.pictures["confidence"].read_bytes().startswith(b"\x89PNG")
    assert "Expected calibration error 0.583" in report.page.read_text(encoding="utf-8")
    rows = (tmp_path / "tables" / "confidence.csv").read_text().splitlines()
    assert rows[0] == (
        "predictor,beside,samples,from,to,clips,confidence,right,right_at_least,right_at_most"
    )
    assert len(rows) == 3


@pytest.mark.lengthy
def test_a_report_tells_reliability_beside_the_detector(tmp_path: Path) -> None:
    """It counts the same in a, with odds of 4 to 1, and something else in b."""
    clips = [clip("a", 4), clip("b", 2)]
    seen = [Prediction("a", 4, confidence=0.8), Prediction("b", 3, confidence=0.6)]
    path = tmp_path / "predictions-periodicity.jsonl"
    write_predictions(path, seen, TASK)
    seen = read_predictions(path, TASK)
    sets = {"periodicity": seen, "one": ANSWERS}
    report = write_report(ReportInput("run", TASK, clips, sets, num_bootstrap=20), tmp_path)
    found = report.checked["one"]
    # a: odds 1 of the answers by 4; b: odds 1/2 by 4/6
    assert [b.confidence for b in found.bins] == pytest.approx([1 / 4, 4 / 5])
    assert found.error == pytest.approx((3 / 4 + 1 / 5) / 2)
    assert report.to_json()["one"]["confidence_beside_detector"]["error"] == found.error
    page = report.page.read_text(encoding="utf-8")
    assert "Beside the detector: 0.475" in page
    path.write_text('{"clip_id": "a", "count": 4, "confidence": 2}\n')
    with pytest.raises(ValueError, match=r"jsonl:1: confidence=2, expected a number from 0 to 1"):
        read_predictions(path, TASK)

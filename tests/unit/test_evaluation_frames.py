"""Evaluations as data frames, and what is written of them."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from actrep_ray.evaluation.frame_files import to_latex, to_markdown, write_frame
from actrep_ray.evaluation.frames import (
    breakdown_frame,
    conditions_frame,
    differences_frame,
    errors_frame,
    predictors_frame,
)
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.evaluation.scores import paired_difference, score_predictions
from actrep_ray.tasks.base import labels_of
from actrep_ray.tasks.loading import load_task
from data_prep.schema import Clip


def make_clip(number: int, dataset: str, action: str, count: int) -> Clip:
    return Clip(
        id=f"c{number}",
        dataset=dataset,
        split="test",
        video="v.mp4",
        start_s=0.0,
        end_s=8.0,
        video_fps=10.0,
        num_frames=80,
        width=64,
        height=64,
        action=action,
        count=count,
    )


TASK = load_task("counting")
# Two sets; in "quva" two squats in bin 1-5 and one in bin 6-10.
CLIPS = [
    make_clip(0, "ucf", "squat", 3),
    make_clip(1, "quva", "squat", 10),
    make_clip(2, "quva", "squat", 2),
    make_clip(3, "quva", "squat", 4),
    make_clip(4, "quva", "<jump>_up", 50),
]
COUNTS = (3, 12, 3, None, 50)
KEYS = ["predictor", "dataset", "action", "bin"]


def predictions(*counts: int | None) -> list[Prediction]:
    return [Prediction(f"c{i}", count) for i, count in enumerate(counts)]


@pytest.fixture
def frame() -> pd.DataFrame:
    sets = {"b": predictions(*COUNTS), "a": predictions(*(clip.count for clip in CLIPS))}
    return breakdown_frame(sets, CLIPS, TASK, num_bootstrap=50)


def test_the_breakdown_by_hand(frame: pd.DataFrame) -> None:
    cells = [tuple(row) for row in frame[KEYS].astype(str).to_numpy().tolist()]
    assert cells == [
        (name, *cell)
        for name in ("b", "a")  # as given; bins by count and not by letter
        for cell in (
            ("quva", "<jump>_up", "41+"),
            ("quva", "squat", "1-5"),
            ("quva", "squat", "6-10"),
            ("ucf", "squat", "1-5"),
        )
    ]
    two = frame.iloc[1]
    assert (two["clips"], two["true_count"], two["predicted_count"]) == (2, 3.0, 3.0)
    assert two["mae"] == pytest.approx((1 / 2.1 + 4 / 4.1) / 2)  # 3 for 2, unread for 4
    assert (two["obo"], two["obz"], two["parse_rate"]) == (0.5, 0.0, 0.5)
    # Wilson, 1 of 2: 0.5 -+ 1.95996 sqrt(0.125 + 3.84146 / 16) / (1 + 3.84146 / 2)
    assert (two["obo_low"], two["obo_high"]) == pytest.approx((0.0945, 0.9055), abs=1e-4)
    assert two["mae_low"] < two["mae"] < two["mae_high"]
    assert frame["clips"].sum() == 2 * len(CLIPS)


def test_one_clip_has_no_bootstrap_interval(frame: pd.DataFrame) -> None:
    one = frame.iloc[2]
    assert one["mae"] == pytest.approx(2 / 10.1)
    assert np.isnan([one["mae_low"], one["mae_high"], one["rmse_low"], one["rmse_high"]]).all()
    assert one["obo_high"] == pytest.approx(0.7935, abs=1e-4)  # 3.84146 / 4.84146


def test_where_nothing_is_read_there_is_no_mean(frame: pd.DataFrame) -> None:
    unread = breakdown_frame({"m": predictions(*[None] * 5)}, CLIPS, TASK, num_bootstrap=50)
    assert unread["predicted_count"].isna().all()
    assert unread["true_count"].notna().all()
    with pytest.raises(ValueError, match="clip 'c4' has no prediction"):
        breakdown_frame({"m": predictions(1, 2, 3, 4)}, CLIPS, TASK)


def test_the_csv_is_read_back_with_every_digit(frame: pd.DataFrame, tmp_path: Path) -> None:
    csv, markdown, latex = write_frame(frame, tmp_path / "tables" / "by.bin", TASK)
    assert [path.name for path in (csv, markdown, latex)] == [
        "by.bin.csv",
        "by.bin.md",
        "by.bin.tex",
    ]
    read = pd.read_csv(csv)
    numbers = [column for column in frame if column not in KEYS]
    pd.testing.assert_frame_equal(read[numbers], frame[numbers], check_exact=True)
    assert read["bin"].tolist() == frame["bin"].astype(str).tolist()
    assert markdown.read_text(encoding="utf-8") == to_markdown(frame, TASK)


def test_markdown_is_one_table_that_names_its_intervals(frame: pd.DataFrame) -> None:
    lines = to_markdown(frame, TASK).splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "MAE ↓ (95% bootstrap)" in lines[0]
    assert "OBO ↑ (95% Wilson)" in lines[0]
    assert "&lt;jump&gt;\\_up" in lines[2]
    assert "| 0.500 (0.095, 0.905) |" in lines[3]
    assert "nan" not in "".join(lines)
    assert lines[1].startswith("| :-- | :-- | :-- | :-- | --: | --: |")


def test_names_cannot_break_a_table() -> None:
    names = ["a|b", "[x](y)", "*a_b*", "line\nbreak", "50% & $x$ #1 {z} \\~^"]
    frame = pd.DataFrame({"predictor": names, "clips": range(len(names))})
    markdown = to_markdown(frame, TASK).splitlines()
    assert len(markdown) == 2 + len(names)
    assert markdown[2] == "| a\\|b | 0 |"
    assert markdown[3] == "| \\[x\\](y) | 1 |"
    assert markdown[5] == "| line break | 3 |"
    latex = to_latex(frame, TASK)
    assert "{[}x{]}(y) & 1 \\\\" in latex
    assert r"*a\_b* & 2 \\" in latex
    assert (
        r"50\% \& \$x\$ \#1 \{z\} \textbackslash{}\textasciitilde{}\textasciicircum{} & 4" in latex
    )
    assert latex.count("\\\\\n") == 1 + len(names)
    assert r"\begin{tabular}{lr}" in latex


def test_latex_has_no_bare_character_of_its_own(frame: pd.DataFrame) -> None:
    latex = to_latex(frame, TASK)
    assert r"\textless{}jump\textgreater{}\_up" in latex
    assert r"MAE $\downarrow$ (95\% bootstrap)" in latex
    body = latex.split(r"\midrule")[1]
    assert not re.search(r"(?<!\\)[_%#]", body)
    assert io.StringIO(latex).readline().startswith("% needs")


def test_predictors_side_by_side() -> None:
    labels = labels_of(CLIPS, TASK)
    metrics = score_predictions(predictions(*COUNTS), labels, TASK, num_bootstrap=50)
    frame = predictors_frame({"m": metrics})
    assert frame.loc[0, "clips"] == 5
    assert frame.loc[0, "obz"] == metrics["obz"].value == 0.4
    assert frame.loc[0, "mae_high"] == metrics["mae"].high


def test_differences_are_judged_by_what_is_better() -> None:
    labels = labels_of(CLIPS, TASK)
    before, after = predictions(3, 10, 2, 4, 9), predictions(9, 10, 2, 4, None)
    options = {"num_bootstrap": 50, "seed": 0}
    worse = paired_difference(before, predictions(*[None] * 5), labels, TASK, **options)
    unsure = paired_difference(before, after, labels, TASK, **options)
    frame = differences_frame({"a": worse, "b": unsure}, TASK).set_index(["predictors", "figure"])
    verdicts = frame["verdict"]
    assert [verdicts["a", name] for name in ("mae", "obz", "parse_rate")] == ["worse"] * 3
    assert verdicts["b", "parse_rate"] == "not sure"
    assert frame.loc[("a", "parse_rate"), "change"] == -1.0


def test_errors_as_papers_print_them_by_hand() -> None:
    clips = [make_clip(0, "a", "squat", 0), make_clip(1, "a", "squat", 4)]
    labels = labels_of(clips, TASK)
    found = errors_frame({"one": predictions(1, None)}, labels, num_bootstrap=50).iloc[0]
    assert found["mae"] == pytest.approx((1 / 0.1 + 4 / 4.1) / 2)
    assert found["mae_max1"] == pytest.approx((1 / 1 + 4 / 4) / 2)
    assert found["mae_raw"] == pytest.approx((1 + 4) / 2)
    assert found["mae_raw_low"] == 1.0
    assert found["mae_raw_high"] == 4.0


def test_conditions_of_clips_by_hand() -> None:
    clips = [
        replace(CLIPS[0], end_s=5.0, count=2, cycles=((0.0, 1.0), (1.0, 2.0))),  # 1 s each
        replace(CLIPS[1], end_s=4.9, count=10),  # 0.49 s each, if they fill the clip
        replace(CLIPS[2], end_s=100.0, video_fps=29.97, count=0),
    ]
    frame = conditions_frame({"one": predictions(2, 10, 5)}, clips, TASK, num_bootstrap=50)
    cells = {
        by: dict(zip(rows["cell"], zip(rows["clips"], rows["obz"], strict=True), strict=True))
        for by, rows in frame.groupby("by", sort=False)
    }
    assert cells == {
        "data set": {"quva": (2, 0.5), "ucf": (1, 1.0)},
        "true count": {"0": (1, 0.0), "1-5": (1, 1.0), "6-10": (1, 1.0)},
        "length": {"0 to 5 s": (1, 1.0), "5 to 10 s": (1, 1.0), "80 s and more": (1, 0.0)},
        "length of a repetition": {
            "no repetition": (1, 0.0),
            "0 to 0.5 s": (1, 1.0),
            "1 to 2 s": (1, 1.0),
        },
        "frames a second": {"10": (2, 1.0), "30": (1, 0.0)},
    }
    assert list(cells["length"]) == ["0 to 5 s", "5 to 10 s", "80 s and more"]

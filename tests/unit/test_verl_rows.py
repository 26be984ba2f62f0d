"""Clips as verl's rows: read back from Parquet, and scored by the reward that verl is given."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from actrep_ray.cli.main import main
from actrep_ray.config import Recipe
from actrep_ray.tasks.verl_rows import write_verl_parquet
from data_prep.files import DataError
from data_prep.schema import Clip, write_clips
from data_prep.shown import ShownImage
from rewards.compute_score import compute_score
from rewards.grammar.write import Response, render

CYCLES = ((0.5, 1.7), (1.7, 3.0), (3.4, 4.4))
MARKED = Clip(
    id="a",
    dataset="repcount",
    split="train",
    video="/data/a.mp4",
    start_s=2.0,
    end_s=9.5,
    video_fps=30.0,
    num_frames=300,
    width=640,
    height=360,
    action="push_up",
    count=3,
    cycles=CYCLES,
    cycles_source="annotation",
)
COUNTED = replace(MARKED, id="b", dataset="countix", count=7, cycles=None, cycles_source=None)
# Marks that disagree with the count are evidence of neither.
WRONG_MARKS = replace(MARKED, id="c", count=9)

RECIPE = Recipe.model_validate(
    {"data": {"question": "How often {action}?"}, "video": {"fps": 2.0, "max_frames": 64}}
)


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    path = tmp_path / "deep" / "train.parquet"
    assert write_verl_parquet([MARKED, COUNTED, WRONG_MARKS], RECIPE, path) == 3
    assert [file.name for file in path.parent.iterdir()] == ["train.parquet"]
    return pd.read_parquet(path)


def test_a_row_holds_what_verl_reads(frame: pd.DataFrame) -> None:
    row = frame.iloc[0]
    assert list(row["prompt"]) == [{"role": "user", "content": "<video>How often push up?"}]
    (video,) = row["videos"]
    assert video == {
        "video": "/data/a.mp4",
        "video_start": 2.0,
        "video_end": 9.5,
        "fps": 2.0,
        "min_frames": 4,
        "max_frames": 64,
        "min_pixels": 32 * 32,
        "max_pixels": 224 * 224,
    }
    assert row["data_source"] == "repcount"
    assert row["reward_model"]["style"] == "rule"
    assert json.loads(row["reward_model"]["ground_truth"]) == {
        "count": 3,
        "cycles": [list(cycle) for cycle in CYCLES],
    }
    assert row["extra_info"] == {
        "index": 0,
        "split": "train",
        "clip_id": "a",
        "action": "push_up",
        "duration_s": 7.5,
    }


def test_rows_are_numbered_and_doubtful_marks_stay_out(frame: pd.DataFrame) -> None:
    assert [extra["index"] for extra in frame["extra_info"]] == [0, 1, 2]
    truths = [json.loads(model["ground_truth"]) for model in frame["reward_model"]]
    assert truths[1:] == [{"count": 7}, {"count": 9}]


def test_verls_reward_scores_answers_by_a_row(frame: pd.DataFrame) -> None:
    def score(row: pd.Series, answer: str) -> dict[str, float]:
        return compute_score(
            row["data_source"], answer, row["reward_model"]["ground_truth"], row["extra_info"]
        )

    right = render(Response("A person pushes up.", "down and up", CYCLES, "even", 3, 3))
    marked, counted, _ = (row for _, row in frame.iterrows())
    assert score(marked, right)["score"] == pytest.approx(1.0)
    assert score(marked, right)["acc"] == 1.0
    assert score(counted, right)["acc"] == 0.0
    assert score(counted, right)["score"] < 0.7
    assert score(marked, "nothing")["score"] == 0.0
    late = render(
        Response("x", "y", tuple((a + 4, b + 4) for a, b in CYCLES), "even", 3, 3)
    )  # ends after the clip, whose length is in extra_info
    assert score(marked, late)["score"] < score(marked, right)["score"]


def test_a_question_cannot_ask_for_media_of_its_own(tmp_path: Path) -> None:
    clip = replace(MARKED, action="<image> squat")
    with pytest.raises(DataError, match="clip 'a': its question holds <image>"):
        write_verl_parquet([clip], RECIPE, tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_one_video_file_alone_is_not_exported(tmp_path: Path) -> None:
    shown = replace(MARKED, images=(ShownImage("/data/a.png", 64, 64),))
    with pytest.raises(DataError, match="clip 'a': shows images before it, which other trainers'"):
        write_verl_parquet([shown], RECIPE, tmp_path / "x.parquet")
    with pytest.raises(DataError, match="clip 'a': shows a folder of frames, which"):
        write_verl_parquet([replace(MARKED, video=str(tmp_path))], RECIPE, tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


def test_prepare_verl_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = replace(COUNTED, id="t", split="test")
    write_clips(tmp_path / "clips.jsonl", [MARKED, COUNTED, replace(test, video="videos/t.mp4")])
    out = tmp_path / "test.parquet"
    allowed = "--set=data.allow_outside=[/data]"
    command = ["prepare", "verl", str(tmp_path / "clips.jsonl"), allowed, "--out", str(out)]
    question = "data.question=Count."
    assert main([*command, "--split", "test", "--set", question, "--set", "video.fps=8"]) == 0
    assert "1 rows for verl" in capsys.readouterr().out
    (row,) = (row for _, row in pd.read_parquet(out).iterrows())
    assert row["prompt"][0]["content"] == "<video>Count."
    assert row["videos"][0]["fps"] == 8.0
    assert row["videos"][0]["video"] == str(tmp_path / "videos" / "t.mp4")
    assert main([*command, "--overwrite"]) == 0
    assert "2 rows" in capsys.readouterr().out
    assert main([*command, "--overwrite", "--split", "validation"]) == 2
    assert "no clip has split='validation'" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path)]) == 2
    assert f"{tmp_path}: is a folder" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = tmp_path / "clips.jsonl"
    write_clips(clips, [MARKED])
    command = ["prepare", "verl", str(clips), "--split", "train", "--out", "/proc/x.parquet"]
    command.append("--set=data.allow_outside=[/data]")
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("actrep: error: /proc/x.parquet: ")

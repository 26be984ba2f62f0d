"""What clips look like: distances by hand, drawn clips and filmed ones told apart."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.files import DataError
from data_prep.looks import (
    FEWEST_CLIPS,
    FILE,
    MOST_CLIPS,
    NUM_NUMBERS,
    SLACK,
    Looks,
    look_of,
    looks_of,
    some_of,
)
from data_prep.schema import Clip, read_clips
from data_prep.synthetic.dataset import write_dataset
from data_prep.video import FramePlan, clip_of_video, plan_frames
from data_prep.video_writer import encode_mp4


def plan_of(clip: Clip) -> FramePlan:
    return plan_frames(
        clip, fps=4.0, min_frames=4, max_frames=64, min_pixels=16, max_pixels=64 * 64, factor=2
    )


def test_the_distance_by_hand() -> None:
    looks = Looks((1.0, 2.0), ((4.0, 0.0), (0.0, 1.0)), limit=0.5, num_clips=20)
    # sqrt((1 * 4 * 1 + 2 * 1 * 2) / 2) = 2, and four times what the most unusual clip has
    assert looks.distance(np.array([2.0, 4.0])) == pytest.approx(4.0)
    assert looks.distance(np.array([1.0, 2.0])) == 0.0


@settings(max_examples=30, deadline=None)
@given(st.integers(FEWEST_CLIPS, 30), st.integers(0, 1000))
def test_the_limit_is_how_far_one_is_from_the_others(num_clips: int, seed: int) -> None:
    rows = list(np.random.default_rng(seed).normal(0, 2, (num_clips, 5)))
    looks = Looks.of(rows)
    assert max(looks.distance(row) for row in rows) < 1.0  # it is nearer to what it is part of
    alone = [Looks.of(rows[:i] + rows[i + 1 :]) for i in range(num_clips)]
    own = [one.distance(row) * one.limit for one, row in zip(alone, rows, strict=True)]
    assert looks.limit == pytest.approx(max(own))


@pytest.mark.parametrize(("num", "wanted"), [(0, 0), (5, 5), (MOST_CLIPS, MOST_CLIPS), (999, 48)])
def test_some_rows_of_all(num: int, wanted: int) -> None:
    chosen = some_of(range(num))
    assert len(set(chosen)) == wanted
    assert not chosen or (chosen[0], chosen[-1]) == (0, num - 1)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("drawn")
    write_dataset(folder, level="easy", num_clips={"train": 60}, seed=4, num_processes=2)
    return list(read_clips(folder / "clips.jsonl"))


def filmed(path: Path, seed: int) -> Clip:
    """Something as detailed, colourful and unevenly lit as what a camera sees."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((120, 160, 3), np.float32)
    for side in (4, 8, 15, 30, 60):
        coarse = rng.normal(0, 1, (side, side * 4 // 3, 3)).astype(np.float32)
        picture += cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC) * (60 / side**0.5)
    frames = [np.roll(picture, t, axis=1) + rng.normal(0, 4, picture.shape) for t in range(20)]
    encode_mp4(path, np.clip(np.stack(frames) + 110, 0, 255).astype(np.uint8), 10)
    return clip_of_video(path)


@pytest.mark.lengthy
def test_filmed_clips_are_told_from_drawn_ones(drawn: list[Clip], tmp_path: Path) -> None:
    looks = looks_of([plan_of(clip) for clip in drawn[:40]])
    assert looks is not None
    assert looks.num_clips == 40
    others = [looks.distance(look_of(plan_of(clip))) for clip in drawn[40:]]
    assert np.mean([one <= SLACK for one in others]) >= 0.9
    for seed in range(3):
        assert looks.distance(look_of(plan_of(filmed(tmp_path / f"{seed}.mp4", seed)))) > SLACK


@pytest.mark.lengthy
def test_what_cannot_be_read_is_left_out(drawn: list[Clip]) -> None:
    plans = [plan_of(clip) for clip in drawn[:FEWEST_CLIPS]]
    gone = replace(plans[0], video="/gone.mp4")
    found = looks_of([*plans, gone])
    assert found is not None
    assert found.num_clips == FEWEST_CLIPS
    assert looks_of([*plans[1:], gone]) is None
    assert looks_of([]) is None


def test_they_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert Looks.read(tmp_path) is None
    looks = Looks.of(list(np.random.default_rng(0).normal(size=(20, NUM_NUMBERS))))
    looks.write(tmp_path)
    assert Looks.read(tmp_path) == looks
    record = json.loads((tmp_path / FILE).read_text())
    for change in ({"mean": [1.0]}, {"limit": "far"}, {"inverse": 3}):
        (tmp_path / FILE).write_text(json.dumps(record | change))
        with pytest.raises(DataError, match=FILE):
            Looks.read(tmp_path)

"""The clips of a quickstart: two sets in one file, which is never another's."""

from collections import Counter
from pathlib import Path

import pytest

from actrep_ray.quickstart.data import COUNTED, MARKED, of_levels, write_data
from data_prep.files import DataError
from data_prep.schema import read_clips
from data_prep.synthetic.levels import LEVELS

pytestmark = pytest.mark.lengthy

FEW = {MARKED: {"train": 7, "test": 1}, COUNTED: {"train": 6, "test": 1}}


def test_marks_are_only_where_they_are_learned_from_or_judged_by(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    write_data(path, FEW, overwrite=False)
    clips = list(read_clips(path))
    found = Counter((clip.dataset, clip.split, clip.cycles is not None) for clip in clips)
    assert found == {
        (MARKED, "train", True): 7,
        (MARKED, "test", True): 1,
        (COUNTED, "train", False): 6 + 2,  # a quarter is of the marked kind
        (COUNTED, "test", True): 1,
    }
    assert all(Path(clip.video).is_file() for clip in clips)
    assert len({clip.id for clip in clips}) == len(clips)


def test_a_quarter_of_what_is_practised_on_is_of_the_marked_kind(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    write_data(path, FEW, overwrite=False)
    clips = [clip for clip in read_clips(path) if clip.split == "train"]
    marked = {clip.video: clip.count for clip in clips if clip.dataset == MARKED}
    kept = [clip for clip in clips if clip.dataset == COUNTED and clip.video in marked]
    assert len(kept) == 2
    assert all(clip.count == marked[clip.video] and clip.cycles is None for clip in kept)


def test_no_clip_is_taken_twice_where_few_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actrep_ray.quickstart.data.KEPT", 0.6)  # 3 of 5, and 2 are there
    path = tmp_path / "clips.jsonl"
    write_data(path, {MARKED: {"train": 2}, COUNTED: {"train": 2}}, overwrite=False)
    assert len({clip.id for clip in read_clips(path)}) == 6


def test_marked_clips_are_easy_and_a_few_are_long() -> None:
    assert of_levels(MARKED, {"train": 2400, "test": 240, "validation": 3}) == {
        "easy": {"train": 2280, "test": 228, "validation": 3},
        "long": {"train": 120, "test": 12, "validation": 0},
    }
    assert LEVELS["long"].max_count == LEVELS["medium"].max_count  # what is counted has been shown


def test_a_file_of_others_stays_and_ours_may_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    path.write_text("{}\n")
    with pytest.raises(DataError, match=r"clips.jsonl: holds other clips"):
        write_data(path, FEW, overwrite=False)
    assert path.read_text() == "{}\n"
    write_data(path, FEW, overwrite=True)
    first = path.read_bytes()
    write_data(path, FEW, overwrite=False)
    assert path.read_bytes() == first

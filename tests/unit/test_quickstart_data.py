"""The clips of a quickstart: two sets in one file, which is never another's."""

from pathlib import Path

import pytest

from actrep_ray.quickstart.data import COUNTED, MARKED, write_data
from data_prep.files import DataError
from data_prep.schema import read_clips

pytestmark = pytest.mark.lengthy

FEW = {MARKED: {"train": 2, "test": 1}, COUNTED: {"train": 2, "test": 1}}


def test_marks_are_only_where_they_are_learned_from_or_judged_by(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    write_data(path, FEW, overwrite=False)
    clips = list(read_clips(path))
    assert [(clip.dataset, clip.split, clip.cycles is not None) for clip in clips] == [
        (MARKED, "train", True),
        (MARKED, "train", True),
        (MARKED, "test", True),
        (COUNTED, "train", False),
        (COUNTED, "train", False),
        (COUNTED, "test", True),
    ]
    assert all(Path(clip.video).is_file() for clip in clips)


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

"""Which clips of a file a recipe takes."""

from pathlib import Path

import pytest

from actrep_ray.config import load_recipe
from actrep_ray.tasks.loading import load_clips
from data_prep.files import DataError
from data_prep.schema import Clip, write_clips


def make_clip(name: str, dataset: str, split: str) -> Clip:
    return Clip(
        id=name,
        dataset=dataset,
        split=split,
        video="v.mp4",
        start_s=0.0,
        end_s=8.0,
        video_fps=10.0,
        num_frames=80,
        width=64,
        height=64,
        action="squat",
        count=3,
    )


def test_a_recipe_takes_the_clips_of_the_data_sets_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    write_clips(
        path,
        [
            make_clip(f"{name}-{i}", name, split)
            for name in ("marked", "counted")
            for i, split in enumerate(("train", "train", "test"))
        ],
    )

    def ids(names: str, split: str) -> list[str]:
        options = [f"data.path={path}", f"data.datasets={names}", "data.check_videos=false"]
        return [clip.id for clip in load_clips(load_recipe(None, options), split)]

    assert ids("[]", "train") == ["marked-0", "marked-1", "counted-0", "counted-1"]
    assert ids("[counted]", "train") == ["counted-0", "counted-1"]
    assert ids("[counted, marked]", "test") == ["marked-2", "counted-2"]
    with pytest.raises(DataError, match=r"'cuonted', expected one of counted, marked"):
        ids("[cuonted]", "train")
    with pytest.raises(DataError, match=r"split='validation' and dataset=marked"):
        ids("[marked]", "validation")

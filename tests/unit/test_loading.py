"""Which clips of a file a recipe takes."""

from pathlib import Path

import pytest

from actrep_ray.cli.evaluate import settings_of
from actrep_ray.cli.main import build_parser
from actrep_ray.cli.prepare.rcs import read_split
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


def test_draws_and_rows_for_verl_are_of_the_same_clips(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    write_clips(path, [make_clip(name, name, "train") for name in ("marked", "counted")])
    recipe = load_recipe(None, ["data.datasets=[counted]"])
    assert [clip.id for clip in read_split(path, "train", recipe)] == ["counted"]
    with pytest.raises(DataError, match=r"clips\.jsonl: no clip has split='test' and dataset=co"):
        read_split(path, "test", recipe)


def test_a_model_is_judged_by_every_clip_of_the_file_whatever_it_learned_from(
    tmp_path: Path,
) -> None:
    """The data sets that its run took out of its own file are no names in another one."""
    (tmp_path / "recipe.json").write_text('{"data": {"path": "a", "datasets": ["marked"]}}')

    def datasets_of(*options: str) -> tuple[str, ...]:
        args = build_parser().parse_args(
            ["evaluate", "--checkpoint", str(tmp_path), "--data", "b.jsonl", *options]
        )
        return settings_of(args, tmp_path).data.datasets

    assert datasets_of() == ()
    assert datasets_of("--set", "data.datasets=[counted]") == ("counted",)
    of_recipe = tmp_path / "own.yaml"
    of_recipe.write_text("data: {datasets: [mine]}")
    assert datasets_of("--recipe", str(of_recipe)) == ("mine",)

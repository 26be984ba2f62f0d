"""Rows by kind: an image need not pretend to be a clip, and clips are read as before."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.config import ConfigError, Recipe, SamplingConfig, load_recipe
from actrep_ray.driver.dealing import SampledClip
from actrep_ray.driver.strata import ReadingSampler, make_sampler, strata_of
from actrep_ray.tasks.loading import load_clips, load_task
from data_prep.files import DataError
from data_prep.images import LabelledImage
from data_prep.references import reference_of
from data_prep.rows import (
    clips_among,
    files_of,
    parse_row,
    portable_row,
    read_rows,
    write_rows,
)
from data_prep.schema import Clip, RowError, read_clips
from data_prep.shown import ShownImage
from data_prep.video import VideoError, check_videos
from rewards.reference import Reference
from tests.images import draw_image
from tests.unit.test_schema import CLIP

ORDER = f"{Path(__file__).parents[1] / 'tasks' / 'order.py'}:Order"
IMAGE = LabelledImage(
    id="i",
    dataset="test",
    split="train",
    image="images/i.png",
    width=128,
    height=96,
    label="arms_up",
    aliases=("hands up",),
    description="Both arms point up.",
)


def row(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(IMAGE.to_json())
    return values | changes


def test_clips_and_images_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert write_rows(path, [CLIP, IMAGE]) == 2
    clip, image = read_rows(path)
    assert clip == replace(CLIP, video=str(tmp_path / "videos/a.mp4"))
    assert image == replace(IMAGE, image=str(tmp_path / "images/i.png"))
    assert [one.file for one in (clip, image)] == [
        str(tmp_path / "videos/a.mp4"),
        str(tmp_path / "images/i.png"),
    ]
    assert [one.kind for one in (clip, image)] == ["video", "image"]
    assert clips_among([clip]) == [clip]
    with pytest.raises(DataError, match=r"row 'i': kind='image', expected a clip of a video"):
        clips_among([clip, image])
    with pytest.raises(DataError, match=r"jsonl:2: kind='image', expected a clip of a video"):
        list(read_clips(path))


def test_a_row_of_a_checkpoint_is_read_back() -> None:
    for one in (CLIP, IMAGE):
        assert parse_row(json.loads(json.dumps(vars(one))), "checkpoint") == one


SHOWN = {"image": "images/ready.png", "width": 128, "height": 96}


@pytest.mark.parametrize("line", [IMAGE, CLIP], ids=["image", "video"])
def test_images_before_a_row_are_read_back(tmp_path: Path, line: Clip | LabelledImage) -> None:
    assert '"images"' not in line.to_json()
    values = json.loads(line.to_json()) | {"images": [SHOWN, SHOWN]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(values) + "\n")
    [found] = read_rows(path)
    shown = ShownImage(str(tmp_path / "images/ready.png"), 128, 96)
    assert found.images == (shown, shown)
    assert list(read_rows(path)) == [parse_row(json.loads(found.to_json()), "a")]
    assert parse_row(dict(vars(found)), "checkpoint") == found
    path.write_text(json.dumps(values | {"images": [SHOWN, SHOWN | {"image": "../a.png"}]}))
    with pytest.raises(RowError, match=r"jsonl:1: images\[1\]\.image='../a\.png', expected a path"):
        list(read_rows(path))


@pytest.mark.parametrize("line", [IMAGE, CLIP], ids=["image", "video"])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("a.png", r"images='a\.png', expected a list of at most 64 images"),
        ([SHOWN] * 65, "expected a list of at most 64 images"),
        (["a.png"], r"images\[0\]='a\.png', expected an object with the keys image, width, height"),
        ([SHOWN | {"label": "x"}], r"images\[0\]=\{.*\}, expected an object with the keys"),
        ([SHOWN, SHOWN | {"image": " "}], r"images\[1\]\.image=' ', expected a string of more"),
        ([SHOWN | {"width": True}], r"images\[0\]\.width=True, expected an integer from 1"),
        ([SHOWN | {"height": 0}], r"images\[0\]\.height=0, expected an integer from 1"),
    ],
)
def test_bad_images_before_a_row_are_told(
    line: Clip | LabelledImage, images: Any, message: str
) -> None:
    with pytest.raises(RowError, match=message):
        parse_row(json.loads(line.to_json()) | {"images": images}, "a")


def test_images_before_a_row_are_opened_and_need_room(tmp_path: Path) -> None:
    for name in ("i", "ready"):
        draw_image(tmp_path / f"{name}.png", 0, (96, 128))
    shown = ShownImage("ready.png", 128, 96)
    rows: list[Clip | LabelledImage] = [replace(IMAGE, image="i.png", images=(shown,))]
    recognition = recipe_of(tmp_path, rows, "task=recognition")
    told = r"rollout\.max_images=1: row 'i' of .* shows 2 still images; set rollout\.max_images=2"
    with pytest.raises(ConfigError, match=told):
        load_clips(recognition, "train")
    enough = recipe_of(tmp_path, rows, "task=recognition", "rollout.max_images=2")
    assert load_clips(enough, "train")[0].images[0].image == str(tmp_path / "ready.png")
    assert load_clips(recipe_of(tmp_path, rows, "task=recognition", "rollout.engine=hf"), "train")
    (tmp_path / "ready.png").unlink()
    with pytest.raises(VideoError, match=r"ready\.png: no such image \[clip 'i'\]"):
        load_clips(enough, "train")


def test_a_broken_image_condemns_its_own_row_alone(tmp_path: Path) -> None:
    for name in ("i", "ready"):
        draw_image(tmp_path / f"{name}.png", 0, (96, 128))
    good, bad = ShownImage("ready.png", 128, 96), ShownImage("gone.png", 128, 96)
    one = replace(IMAGE, image="i.png")
    rows: list[Clip | LabelledImage] = [
        replace(one, id=f"i{k}", images=(bad if k >= 2 else good,)) for k in range(4)
    ]
    recipe = recipe_of(tmp_path, rows, "task=recognition", "rollout.max_images=2")
    found = load_clips(recipe, "train", max_unreadable_share=0.5)
    assert len(found) == 4  # they are left out later, unless their frames are cached
    with pytest.raises(DataError, match=r"gone\.png: no such.*; 2 of 4 rows cannot be used"):
        load_clips(recipe, "train", max_unreadable_share=0.25)


def test_rows_are_written_by_paths_that_move_with_their_file(tmp_path: Path) -> None:
    shown = ShownImage("images/ready.png", 128, 96)
    write_rows(tmp_path / "rows.jsonl", [replace(one, images=(shown,)) for one in (CLIP, IMAGE)])
    rows = list(read_rows(tmp_path / "rows.jsonl"))
    ready = str(tmp_path / "images/ready.png")
    assert files_of(rows) == [rows[0].file, ready, rows[1].file, ready]
    here = [portable_row(row, tmp_path) for row in rows]
    assert files_of(here) == ["videos/a.mp4", "images/ready.png", "images/i.png", shown.image]
    assert [row.with_root(tmp_path) for row in here] == rows
    inside = [portable_row(row, tmp_path / "images") for row in rows]
    assert files_of(inside) == [rows[0].file, "ready.png", "i.png", "ready.png"]
    dotted = portable_row(replace(IMAGE, image=f"{tmp_path}/..a/i.png"), tmp_path)
    assert dotted.file == "..a/i.png"


def test_what_may_be_left_out_is() -> None:
    short = {key: row()[key] for key in ("kind", "id", "dataset", "split", "image", "label")}
    assert parse_row(short | {"width": 8, "height": 8}, "a") == LabelledImage(
        "i", "test", "train", "images/i.png", 8, 8, "arms_up"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "sound"}, "kind='sound', expected 'image', or no such key for a clip"),
        ({"count": 3}, "unknown key 'count' of an image"),
        ({"label": " "}, "label=' ', expected a string of more than blanks"),
        ({"label": None}, "label=None, expected a string"),
        ({"split": "dev"}, "split='dev', expected one of train, validation, test"),
        ({"width": 0}, "width=0, expected an integer from 1 to 65536"),
        ({"height": True}, "height=True, expected an integer"),
        ({"aliases": "up"}, "aliases='up', expected a list of strings"),
        ({"aliases": [""]}, "expected a list of strings of more than blanks"),
        ({"description": 3}, "description=3, expected a string of more than blanks, or null"),
    ],
)
def test_a_bad_image_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        parse_row(row(**changes), "a")
    without = row()
    del without["width"]
    with pytest.raises(RowError, match="key 'width' is missing"):
        parse_row(without, "a")


def test_an_image_outside_the_folder_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [replace(IMAGE, image="../i.png")])
    with pytest.raises(RowError, match=r"jsonl:1: image='../i.png', expected a path in"):
        list(read_rows(tmp_path / "rows.jsonl"))


def test_images_are_opened_and_measured(tmp_path: Path) -> None:
    path = draw_image(tmp_path / "i.png", 0, (96, 128))
    image = replace(IMAGE, image=str(path))
    check_videos([image])
    with pytest.raises(VideoError, match=r"is 128x96 pixels, its row says 96x128 \[clip 'i'\]"):
        check_videos([replace(image, width=96, height=128)])
    path.unlink()
    with pytest.raises(VideoError, match="no such image"):
        check_videos([image])


def test_the_labels_of_an_image() -> None:
    assert reference_of(IMAGE) == Reference(label="arms_up", aliases=("hands up",))


def recipe_of(folder: Path, rows: list[Clip | LabelledImage], *settings: str) -> Recipe:
    write_rows(folder / "rows.jsonl", rows)
    return load_recipe(None, [f"data.path={folder / 'rows.jsonl'}", *settings])


def test_a_task_is_given_rows_of_its_kinds_alone(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, [CLIP, IMAGE])
    told = r"row 'i' is of kind 'image', and task=counting asks about 'video'"
    with pytest.raises(DataError, match=told):
        load_clips(recipe, "train")


def test_images_without_room_in_the_engine_are_refused_at_once(
    tmp_path: Path,
) -> None:
    source = Path(ORDER.removesuffix(":Order")).read_text(encoding="utf-8")
    (tmp_path / "shown.py").write_text(source.replace('("video",)', '("video", "image")'))
    task = f"task={tmp_path / 'shown.py'}:Order"
    draw_image(tmp_path / "i.png", 0, (96, 128))
    rows: list[Clip | LabelledImage] = [replace(IMAGE, image="i.png")]
    with pytest.raises(ConfigError, match=r"rollout\.takes_images=false: row 'i' of .* image"):
        load_clips(recipe_of(tmp_path, rows, task), "train")
    for setting in ("rollout.takes_images=true", "rollout.engine=hf"):
        assert len(load_clips(recipe_of(tmp_path, rows, task, setting), "train")) == 1


def clips_of(actions: dict[str, int]) -> list[Clip]:
    return [
        replace(CLIP, id=f"{action}-{i}", action=action, video=f"{action}-{i}.mp4")
        for action, number in actions.items()
        for i in range(number)
    ]


FIRST = {"squat_then_jump": 30, "jump up_then_squat": 5, "wave_then_jump": 1}


def test_a_task_that_does_not_count_is_drawn_for_by_its_right_readings(tmp_path: Path) -> None:
    clips = clips_of(FIRST)
    recipe = load_recipe(None, [f"task={ORDER}", "sampling.power=0"])
    sampler = make_sampler(clips, recipe)
    assert isinstance(sampler, ReadingSampler)
    assert sampler.num_clips == {"jump_up": 5, "squat": 30, "wave": 1}
    assert strata_of(clips[29:31], recipe) == ["squat", "jump_up"]
    drawn = sampler.take(600)
    shares = Counter(one.stratum for one in drawn)
    assert all(150 < number < 250 for number in shares.values()), shares  # a third each
    rare = [one.clip.id for one in drawn if one.stratum == "jump_up"][:10]
    assert Counter(rare) == {clip.id: 2 for clip in clips[30:35]}  # dealt once a pass
    assert not any(one.is_crop for one in drawn)
    assert {one.stratum for one in sampler.take_from("wave", 3)} == {"wave"}
    assert sampler.histogram == {name: shares[name] + 3 * (name == "wave") for name in shares}


def test_a_sampler_of_readings_goes_on_where_it_was() -> None:
    clips, task = clips_of(FIRST), load_task(ORDER)

    def make(clips: list[Clip], power: float = 1.0) -> ReadingSampler[Clip]:
        return ReadingSampler(clips, SamplingConfig(power=power), 3, task)

    def ids(drawn: list[SampledClip[Clip]]) -> list[str]:
        return [one.clip.id for one in drawn]

    first = make(clips)
    first.take(7)
    again = make(clips)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert ids(again.take(20)) == ids(first.take(20))
    for other in (make(clips[1:]), make([*clips[:-1], replace(clips[-1], action="a_then_b")])):
        with pytest.raises(ConfigError, match="sampler state: fingerprint="):
            other.load_state_dict(first.state_dict())
    with pytest.raises(ConfigError, match="sampler state: fingerprint="):
        make(clips, power=0.5).load_state_dict(first.state_dict())

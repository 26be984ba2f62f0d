"""Rows of images: drawn ones, those of folders and tables, and few shots of either."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actrep_ray.cli.main import main
from data_prep.activities.dataset import write_activities
from data_prep.activities.drawing import STYLES, draw_pose
from data_prep.activities.poses import POSES
from data_prep.activities.shots import SHOTS, choose_classes, take_shots
from data_prep.activities.sources import (
    Found,
    images_of_folder,
    images_of_rows,
    images_of_table,
    read_images,
)
from data_prep.activities.video_frames import images_of_videos
from data_prep.files import DataError
from data_prep.images import LabelledImage
from data_prep.rows import images_among, read_rows, write_rows
from data_prep.shown import ShownImage
from data_prep.video import check_videos
from data_prep.video_writer import encode_mp4
from tests.images import draw_image
from tests.unit.test_rows import IMAGE


def rows_of(num_each: dict[str, int], split: str = "train") -> list[LabelledImage]:
    return [
        replace(IMAGE, id=f"{split}-{label}-{i}", label=label, split=split)
        for label, number in num_each.items()
        for i in range(number)
    ]


def ids(rows: list[LabelledImage], split: str) -> set[str]:
    return {row.id for row in rows if row.split == split}


# ------------------------------------------------------------------------------- drawn ones


def test_there_are_enough_classes_and_words_tell_them_apart() -> None:
    assert len(POSES) >= 12
    assert list(POSES) == sorted(POSES)
    assert len({pose.words for pose in POSES.values()}) == len(POSES)


@pytest.mark.parametrize("style", STYLES)
def test_a_drawing_is_of_its_seed_and_lies_in_the_picture(style: str) -> None:
    for name in POSES:
        for seed in range(8):
            image = draw_pose(name, style, 64, np.random.default_rng(seed))
            again = draw_pose(name, style, 64, np.random.default_rng(seed))
            assert image.shape == (64, 64, 3)
            assert np.array_equal(image, again)
            if style == "line":  # its ground is plain: what is drawn does not touch the edge
                ground = image[0, 0]
                edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
                assert (edge == ground).all(), name
                assert 100 < (image != ground).any(axis=-1).sum() < 1600, name


def test_styles_differ_and_so_do_classes() -> None:
    pictures = {
        (name, style): draw_pose(name, style, 64, np.random.default_rng(1)).astype(float)
        for name in POSES
        for style in STYLES
    }
    assert all(
        np.abs(pictures[name, "line"] - pictures[name, "block"]).mean() > 2 for name in POSES
    )
    names = list(POSES)
    for i, first in enumerate(names):  # same colours and size: only the pose is another
        for second in names[i + 1 :]:
            gap = np.abs(pictures[first, "line"] - pictures[second, "line"]).mean()
            assert gap > 0.5, (first, second)


def test_the_nearest_of_other_drawings_tells_most_classes() -> None:
    """The classes can be told by what is drawn, within a style and across the two."""

    def mask(name: str, style: str, seed: int) -> np.ndarray:
        """Where the figure is, of both mirror images: the ground's colour is taken off."""
        image = draw_pose(name, style, 48, np.random.default_rng((seed, style == "block")))
        ground = np.median(image.reshape(-1, 3), axis=0)
        found = (np.abs(image - ground).sum(axis=-1) > 110).astype(float)
        return np.asarray(found + found[:, ::-1]).ravel()

    def share(train: str, test: str) -> float:
        known = {name: [mask(name, train, seed) for seed in range(24)] for name in POSES}
        right = 0
        for name in POSES:
            for seed in range(100, 106):
                shown = mask(name, test, seed)
                gaps = {n: min(float(np.abs(shown - m).sum()) for m in known[n]) for n in known}
                right += min(gaps, key=lambda n: gaps[n]) == name
        return right / (6 * len(POSES))

    assert share("line", "line") > 0.9
    assert share("line", "block") > 0.7


def test_a_drawn_set_is_written_and_opens(tmp_path: Path) -> None:
    numbers = {"train": 2, "test": 1}
    path = write_activities(tmp_path / "a", style="block", num_images=numbers, seed=3)
    rows = images_among(read_rows(path))
    check_videos(rows)
    assert Counter(row.split for row in rows) == {"train": 2 * len(POSES), "test": len(POSES)}
    assert {row.dataset for row in rows} == {"sticks-block"}
    assert {row.label: row.description for row in rows}["bow"] == "The back bent."
    with pytest.raises(DataError, match="is not empty; give --overwrite"):
        write_activities(tmp_path / "a", style="block", num_images=numbers, seed=3)
    again = write_activities(tmp_path / "b", style="block", num_images={"train": 1}, seed=3)
    name = "images/train-wave-0000.png"
    assert (again.parent / name).read_bytes() == (path.parent / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"style": "oil"}, "style='oil', expected one of line, block"),
        ({"seed": -1}, "seed=-1, size=64: expected 0 or more"),
        ({"size": 8}, "size=8: expected 0 or more, and 16 to 1024 pixels"),
        ({"num_images": {"dev": 3}}, r"num_images=\{'dev': 3\}, expected images of train"),
        ({"num_images": {"train": 0}}, r"num_images=\{'train': 0\}, expected images of"),
    ],
)
def test_a_set_that_cannot_be_drawn_is_told(
    tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    wanted: dict[str, object] = {"style": "line", "num_images": {"train": 1}, "seed": 0, "size": 64}
    with pytest.raises(DataError, match=told):
        write_activities(tmp_path / "a", **(wanted | changes))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- few shots


@pytest.mark.parametrize("num_shots", SHOTS)
def test_shots_are_balanced_and_the_rest_is_scored(num_shots: int) -> None:
    rows = rows_of({"bow": 30, "kick": 40, "Kick ": 3})  # two spellings of one class
    taken = take_shots(rows, num_shots, seed=1, has_splits=False)
    assert [row.id for row in taken] == [row.id for row in rows]
    of_class = {"bow": 30, "kick": 43}
    for split, number in (("train", num_shots), ("validation", min(num_shots, 4))):
        found = Counter(row.label.strip().lower() for row in taken if row.split == split)
        assert found == dict.fromkeys(of_class, number)
    assert Counter(row.split for row in taken)["test"] == 73 - 2 * (num_shots + min(num_shots, 4))


def test_shots_of_a_seed_are_nested_and_do_not_depend_on_other_classes() -> None:
    rows = rows_of({"bow": 30, "kick": 30})
    known = {k: ids(take_shots(rows, k, seed=5, has_splits=False), "train") for k in SHOTS}
    for few, more in pairwise(SHOTS):
        assert known[few] < known[more]
    alone = take_shots(rows_of({"bow": 30}), 4, seed=5, has_splits=False)
    assert ids(alone, "train") == {name for name in known[4] if "bow" in name}
    other = ids(take_shots(rows, 4, seed=6, has_splits=False), "train")
    assert other != known[4]


def test_known_splits_stay_and_shots_are_of_train() -> None:
    rows = rows_of({"bow": 9, "kick": 4}) + rows_of({"bow": 2, "kick": 2}, "test")
    taken = take_shots(rows, 4, seed=0, has_splits=True)
    assert Counter((row.split, row.label) for row in taken) == {
        ("train", "bow"): 4,
        ("train", "kick"): 4,
        ("test", "bow"): 2,
        ("test", "kick"): 2,
    }


def test_too_few_images_are_told() -> None:
    with pytest.raises(DataError, match="class 'kick' has 8 images, 4 shots need 9 in all"):
        take_shots(rows_of({"bow": 20, "kick": 8}), 4, seed=0, has_splits=False)
    with pytest.raises(DataError, match="class 'kick' has 3 images, 4 shots need 4 of train"):
        take_shots(rows_of({"bow": 4, "kick": 3}), 4, seed=0, has_splits=True)
    with pytest.raises(DataError, match="class 'sit' has 0 images, 1 shots need 1 of train"):
        take_shots(rows_of({"bow": 4}) + rows_of({"sit": 4}, "test"), 1, seed=0, has_splits=True)
    with pytest.raises(DataError, match="no image of split 'test'"):
        take_shots(rows_of({"bow": 4}), 1, seed=0, has_splits=True)
    with pytest.raises(DataError, match="0 shots, expected at least 1"):
        take_shots(rows_of({"bow": 4}), 0, seed=0, has_splits=False)


def test_base_and_new_classes_are_halves_of_the_names() -> None:
    rows = rows_of(dict.fromkeys(("wave", "bow", "Kick", "sit", "lie"), 1))
    base, new = choose_classes(rows, "base"), choose_classes(rows, "new")
    assert [row.label for row in base] == ["bow", "Kick", "lie"]
    assert [row.label for row in new] == ["wave", "sit"]
    assert choose_classes(rows, "all") == rows
    with pytest.raises(DataError, match=r"1 class \(bow\), expected two or more"):
        choose_classes(rows_of({"bow": 3}), "all")


# ------------------------------------------------------------------------------- a user's own


def make_folder(root: Path, names: dict[str, int]) -> Path:
    seed = 0
    for name, number in names.items():
        (root / name).mkdir(parents=True)
        for i in range(number):
            seed += 1
            draw_image(root / name / f"{i}.png", seed, (24, 32))
    return root


def test_a_folder_for_each_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "photos", {"Sit down": 6, "wave": 7})
    (root / "wave" / "6.png").write_bytes((root / "wave" / "0.png").read_bytes())
    (root / "wave" / "broken.jpg").write_bytes(b"no image")
    (root / "wave" / "notes.txt").write_text("not looked at")
    out = root / "shots.jsonl"
    command = ["prepare", "recognition", "--folder", str(root), "--shots", "2", "--out", str(out)]
    main(command)
    told = capsys.readouterr()
    assert f"{out}: 12 images of 2 classes (4 train, 4 validation, 4 test)" in told.out
    assert "left out 1 (unreadable), the first: " in told.err
    assert "left out 1 (duplicate), the first: " in told.err
    rows = images_among(read_rows(out))
    check_videos(rows)
    assert {row.dataset for row in rows} == {"photos"}
    assert {(row.width, row.height) for row in rows} == {(32, 24)}
    assert rows[0].id == "all-Sit_down-0"
    assert main(command) == 2
    assert "is there already; give --overwrite" in capsys.readouterr().err
    base = root / "base.jsonl"
    main(["prepare", "recognition", "--rows", str(out), "--classes", "base", "--out", str(base)])
    assert images_among(read_rows(base)) == [row for row in rows if row.label == "Sit down"]


def test_folders_of_splits(tmp_path: Path) -> None:
    names = {"train/bow": 2, "val/bow": 1, "test/bow": 1, "train/sit": 2, "test/sit": 1}
    root = make_folder(tmp_path / "set", names)
    images = read_images(images_of_folder(root), dataset="set", out=tmp_path / "rows.jsonl")
    assert images.has_splits
    found = Counter((row.split, row.label) for row in images.rows)
    assert found == {
        ("train", "bow"): 2,
        ("validation", "bow"): 1,
        ("test", "bow"): 1,
        ("train", "sit"): 2,
        ("test", "sit"): 1,
    }
    assert images.rows[0].image == "set/test/bow/0.png"
    elsewhere = read_images(images_of_folder(root), dataset="set", out=tmp_path / "a" / "r.jsonl")
    assert elsewhere.rows[0].image == str(root / "test/bow/0.png")
    make_folder(root, {"kick": 1})
    with pytest.raises(DataError, match=r"has folders of splits \(test\) and others \(kick\)"):
        images_of_folder(root)


def test_a_table(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 3})
    (tmp_path / "mine.csv").write_text(
        "\ufeffFile,Class,split,aliases,description\n"
        "a/0.png,wave,train,waving; hello,One arm up.\n"
        "\n"
        'a/1.png,"sit, down",test,,\n',
        encoding="utf-8",
    )
    found = images_of_table(tmp_path / "mine.csv")
    first = Found(tmp_path / "a/0.png", "wave", "train", ("waving", "hello"), "One arm up.")
    assert found == [first, Found(tmp_path / "a/1.png", "sit, down", "test")]
    images = read_images(found, dataset="mine", out=tmp_path / "rows.jsonl")
    assert [row.aliases for row in images.rows] == [("waving", "hello"), ()]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("", "no column image or file or path or filename in its header"),
        ("image\na.png\n", "no column label or class or activity or action in image"),
        ("image,label\n", "has no row below its header"),
        ("image,label\na.png,\n", r"mine\.csv:2: label is empty"),
        ("image,label,split\na.png,wave,dev\n", r"mine\.csv:2: split='dev', expected one of train"),
    ],
)
def test_a_bad_table_is_told(tmp_path: Path, table: str, told: str) -> None:
    (tmp_path / "mine.csv").write_text(table)
    with pytest.raises(DataError, match=told):
        images_of_table(tmp_path / "mine.csv")


def test_sources_that_hold_nothing_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder, expected one with a folder for each"):
        images_of_folder(tmp_path / "none")
    (tmp_path / "wave").mkdir()
    with pytest.raises(DataError, match="holds no image of a class, expected CLASS/NAME"):
        images_of_folder(tmp_path)
    with pytest.raises(DataError, match=r"no image can be used: .*no such image"):
        read_images([Found(tmp_path / "a.png", "a")], dataset="d", out=tmp_path / "r.jsonl")
    draw_image(tmp_path / "a.png", 0)
    draw_image(tmp_path / "b.png", 1)
    some = [Found(tmp_path / "a.png", "a", "train"), Found(tmp_path / "b.png", "b")]
    with pytest.raises(DataError, match="1 images say their split and 1 do not"):
        read_images(some, dataset="d", out=tmp_path / "r.jsonl")


def test_without_splits_and_shots_nothing_says_what_to_train_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "photos", {"sit": 2, "wave": 2})
    out = str(root / "rows.jsonl")
    assert main(["prepare", "recognition", "--folder", str(root), "--out", out]) == 2
    assert "nothing says which images to train on: give --shots K" in capsys.readouterr().err


# ------------------------------------------------------------------------- frames of videos


def write_video(path: Path, first: int, num: int = 8) -> None:
    """Frames of one grey each, from `first` on, 20 apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    greys = np.arange(first, first + 20 * num, 20, dtype=np.uint8)
    encode_mp4(path, np.tile(greys[:, None, None, None], (1, 64, 64, 3)), 8)


def test_frames_of_ucf101_are_split_by_group(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k, action in enumerate(("ApplyLipstick", "YoYo")):
        for group in (1, 7, 8, 25):
            name = f"v_{action}_g{group:02}_c01.mp4"
            write_video(tmp_path / "ucf" / action / name, 4 * k + group % 8)
    (tmp_path / "ucf" / "YoYo" / "v_YoYo_g09_c01.mp4").write_bytes(b"no video")
    out = tmp_path / "rows.jsonl"
    command = ["prepare", "recognition", "--videos", str(tmp_path / "ucf"), "--frames", "2"]
    assert main([*command, "--shots", "1", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "10 images of 2 classes (2 train, 8 test)" in told.out
    assert "left out 1 (unreadable)" in told.err
    rows = images_among(read_rows(out))
    check_videos(rows)
    assert Counter((row.label, row.split) for row in rows) == {
        ("apply_lipstick", "train"): 1, ("yo_yo", "train"): 1,
        ("apply_lipstick", "test"): 4, ("yo_yo", "test"): 4,
    }  # fmt: skip
    for row in rows:
        is_test = "_g01_" in row.id or "_g07_" in row.id
        assert row.split == ("test" if is_test else "train")
        # 1 s of 8 frames: those at 0.25 s and 0.75 s, the third and the seventh.
        first = 4 * (row.label == "yo_yo") + int(row.id.split("_g")[1][:2]) % 8
        expected = first + 20 * (2 if row.id.endswith("-0") else 6)
        with Image.open(row.image) as image:
            assert abs(int(np.asarray(image)[32, 32, 0]) - expected) < 8


def test_of_videos_without_groups_one_frame_each_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("wave", "sit"):
        for i in range(4):
            write_video(tmp_path / "mine" / label / f"{i}.mp4", 5 * i + (label == "sit"), 4)
    command = ["prepare", "recognition", "--videos", str(tmp_path / "mine"), "--shots", "1"]
    out = ["--out", str(tmp_path / "rows.jsonl")]
    assert main([*command, *out]) == 0
    rows = images_among(read_rows(tmp_path / "rows.jsonl"))
    assert Counter(row.split for row in rows) == {"train": 2, "validation": 2, "test": 4}
    capsys.readouterr()
    assert main([*command, "--frames", "2", *out, "--overwrite"]) == 2
    assert "--frames 2: expected 1, of videos that no group tells apart" in capsys.readouterr().err
    assert main([*command, "--frames", "0", *out, "--overwrite"]) == 2
    assert "--frames 0: expected at least 1" in capsys.readouterr().err
    write_video(tmp_path / "mine" / "v_YoYo_g09_c01.mp4", 0, 4)
    assert main([*command, *out, "--overwrite"]) == 2
    assert "is named as a video of UCF101 and 0.mp4 is not" in capsys.readouterr().err
    folder = ["prepare", "recognition", "--folder", str(tmp_path), "--frames", "2", *out]
    assert main([*folder, "--overwrite"]) == 2
    assert "--frames belongs to --videos" in capsys.readouterr().err


def test_frames_of_two_videos_never_have_one_name(tmp_path: Path) -> None:
    names = ["train/wave/7.mp4", "test/wave/7.mp4", "val/wave/a/7.mp4", "val/sit/7.mp4"]
    names += ["val/sit/7.mkv", "val/sit/.7.mp4"]
    for i, name in enumerate(names):
        write_video(tmp_path / "mine" / name, 5 * i, 1)
    taken = images_of_videos(tmp_path / "mine", num_frames=1, out=tmp_path / "rows.jsonl")
    assert not taken.unreadable
    found = {
        str(one.path.relative_to(tmp_path / "frames")): (one.label, one.split)
        for one in taken.found
    }
    assert found == {
        "wave/train-7-0.jpg": ("wave", "train"),
        "wave/test-7-0.jpg": ("wave", "test"),
        "wave/val-a-7-0.jpg": ("wave", "validation"),
        "sit/val-7.mp4-0.jpg": ("sit", "validation"),
        "sit/val-7.mkv-0.jpg": ("sit", "validation"),
    }
    images = read_images(taken.found, dataset="mine", out=tmp_path / "rows.jsonl")
    assert (len(images.rows), images.has_splits, images.left_out) == (5, True, Counter())


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["wave/1.mp4", "2.mp4"], r"2\.mp4: lies in no folder of a class, expected CLASS/2\.mp4"),
        (["train/1.mp4"], r"1\.mp4: lies in no folder of a class, expected CLASS/1\.mp4"),
        (
            ["train/wave/1.mp4", "wave/1.mp4"],
            r"train/wave/1\.mp4 lies in the folder of a split and wave/1\.mp4 does not",
        ),
        (
            ["wave/a/b-1.mp4", "wave/a-b/1.mp4", "sit/1.mp4"],
            r"wave/a/b-1\.mp4 and wave/a-b/1\.mp4 would both be called a-b-1\.mp4, rename one",
        ),
        (
            ["test/v_YoYo_g09_c01.avi", "train/v_YoYo_g09_c02.avi"],
            r"c02\.avi: is of train, and v_YoYo_g09_c01\.avi of the same recording "
            r"\(v_YoYo_g09\) of test, expected one split",
        ),
    ],
)
def test_videos_that_nothing_sorts_are_refused(tmp_path: Path, names: list[str], told: str) -> None:
    for name in names:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).touch()
    with pytest.raises(DataError, match=told):
        images_of_videos(tmp_path / "mine", num_frames=1, out=tmp_path / "rows.jsonl")


def test_videos_of_ucf101_need_no_folder(tmp_path: Path) -> None:
    for i, name in enumerate(("v_YoYo_g01_c01.mp4", "a/v_YoYo_g08_c01.mp4")):
        write_video(tmp_path / "ucf" / name, 5 * i, 1)
    taken = images_of_videos(tmp_path / "ucf", num_frames=1, out=tmp_path / "rows.jsonl")
    assert {(one.path.name, one.label, one.split) for one in taken.found} == {
        ("v_YoYo_g01_c01-0.jpg", "yo_yo", "test"),
        ("a-v_YoYo_g08_c01-0.jpg", "yo_yo", "train"),
    }


def test_images_before_rows_move_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "old" / "rows.jsonl"
    shown = ShownImage("ready.png", 128, 96)
    old = [
        replace(IMAGE, id=label, label=label, image=f"{label}.png", images=(shown,))
        for label in ("sit", "wave")
    ]
    write_rows(rows, old)
    image = images_of_rows(rows, out=tmp_path / "new.jsonl").rows[0]
    assert (image.image, image.images[0].image) == ("old/sit.png", "old/ready.png")
    command = ["prepare", "recognition", "--rows", str(rows)]
    assert main([*command, "--out", str(tmp_path / "new.jsonl")]) == 0
    assert list(read_rows(tmp_path / "new.jsonl")) == list(read_rows(rows))
    assert "allow_outside" not in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "other" / "new.jsonl")]) == 0
    assert f"data.allow_outside=[{rows.parent}]" in capsys.readouterr().out

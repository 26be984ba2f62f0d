"""Videos stay in the data's folder, in every command that reads a file of clips."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actrep_ray.cli.main import main
from actrep_ray.config import load_recipe
from actrep_ray.tasks.loading import load_clips
from data_prep.converters.rows import BadRowError
from data_prep.converters.videos import VideoFolder
from data_prep.files import DataError
from data_prep.roots import VideoRoots
from data_prep.schema import read_clips
from data_prep.video_writer import encode_mp4

ROW = {
    "id": "a", "dataset": "test", "split": "train", "start_s": 0.0, "end_s": 2.0, "video_fps": 12.0,
    "num_frames": 24, "width": 64, "height": 64, "action": "squat", "count": 2,
    "cycles": [[0.1, 0.9], [1.0, 1.9]],
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of data, beside it one of other files, and links from the one to the other."""
    folder, private = tmp_path / "data", tmp_path / "private"
    for where in (folder, folder / "videos", private):
        where.mkdir()
        frames = np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), dtype=np.uint8)
        encode_mp4(where / "a.mp4", frames, 12)
    (folder / "link.mp4").symlink_to(private / "a.mp4")
    (folder / "linked").symlink_to(private)
    (folder / "videos/deep").mkdir()
    (folder / "near").symlink_to("videos/deep")
    (folder / "inside.mp4").symlink_to("videos/a.mp4")
    (tmp_path / "data-too").symlink_to(private)
    return folder


def write_rows(folder: Path, video: str, **other: Any) -> Path:
    path = folder / "clips.jsonl"
    rows = [ROW | other | {"video": video}]
    rows += [row | {"id": f"{split}", "split": split} for row in rows for split in ("test",)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ESCAPES: dict[str, Callable[[Path], str]] = {
    "absolute": lambda data: str(data.parent / "private/a.mp4"),
    "parent": lambda data: "../private/a.mp4",
    "parent in the middle": lambda data: "videos/../../private/a.mp4",
    "a name that begins alike": lambda data: f"{data}-too/a.mp4",
    "link": lambda data: "link.mp4",
    "link of a folder": lambda data: "linked/a.mp4",
    "parent of a folder that is linked inside": lambda data: "near/../../private/a.mp4",
    "a file that is not there": lambda data: "/nowhere/a.mp4",
}


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES)
def test_a_path_that_leaves_the_folder_is_refused_by_file_and_line(
    data: Path, escape: Callable[[Path], str]
) -> None:
    path = write_rows(data, escape(data))
    with pytest.raises(
        DataError, match=rf"clips\.jsonl:1: video='.*, expected a path in {data}, or in a folder"
    ):
        list(read_clips(path))


@pytest.mark.parametrize(
    "video",
    [
        "a.mp4",
        "videos/a.mp4",
        "./videos/../a.mp4",
        "inside.mp4",
        "linked/../a.mp4",
        "videos/no.mp4",
    ],
)
def test_paths_and_links_inside_are_read(data: Path, video: str) -> None:
    assert len(list(read_clips(write_rows(data, video)))) == 2
    path = write_rows(data, str(data / video))
    assert len(list(read_clips(path))) == 2


@pytest.mark.parametrize("escape", list(ESCAPES.values())[:-1], ids=list(ESCAPES)[:-1])
def test_a_folder_that_is_allowed_is_read(data: Path, escape: Callable[[Path], str]) -> None:
    path = write_rows(data, escape(data))
    allowed = (str(data.parent / "private"),)
    assert len(list(read_clips(path, allow_outside=allowed))) == 2
    recipe = load_recipe(None, [f"data.path={path}", f"data.allow_outside=[{allowed[0]}]"])
    assert len(load_clips(recipe, "train")) == 1
    with pytest.raises(DataError, match="expected a path in"):
        load_clips(load_recipe(None, [f"data.path={path}"]), "train")


def test_the_whole_disk_can_be_allowed(data: Path) -> None:
    assert VideoRoots(data, ["/"]).problem("../private/a.mp4") == ""


def test_a_loop_of_links_is_told_by_who_opens_it(data: Path) -> None:
    (data / "loop.mp4").symlink_to("loop.mp4")
    assert VideoRoots(data).problem("loop.mp4") == ""


def commands(path: Path, out: Path, allowed: Path | None) -> dict[str, list[str]]:
    settings = [f"--set=data.allow_outside=[{allowed}]"] if allowed else []
    option = [f"--allow-outside={allowed}"] if allowed else []
    return {
        "cot": ["cot", str(path), "--out", str(out / "cot.jsonl"), *option],
        "cot periodicity": [
            "cot", str(path), "--teacher", "periodicity", "--out", str(out / "p.jsonl"), *option,
        ],
        "validate": ["validate", str(path), "--out", str(out / "report"), "--workers=1", *settings],
        "evaluate": [
            "evaluate", "--data", str(path), "--method", "periodicity", "--split", "test",
            "--out", str(out / "evaluation"), *settings,
        ],
        "rcs-report": [
            "prepare", "rcs-report", str(path), "--draws", "4", "--out", str(out / "a.png"),
            *settings,
        ],
        "rcs-export": [
            "prepare", "rcs-export", str(path), "--num", "4", "--out", str(out / "b.jsonl"),
            *settings,
        ],
        "verl": ["prepare", "verl", str(path), "--out", str(out / "c.parquet"), *settings],
    }  # fmt: skip


@pytest.mark.parametrize(
    "command", ["cot", "validate", "evaluate", "rcs-report", "rcs-export", "verl"]
)
def test_every_command_refuses_a_link_out_of_the_folder(
    data: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(data, "link.mp4")
    out = tmp_path / "out"
    out.mkdir()
    assert main(commands(path, out, None)[command]) == 2
    told = capsys.readouterr()
    assert "expected a path in" in " ".join((told.out + told.err).split())


@pytest.mark.parametrize(
    "command", ["cot", "validate", "evaluate", "rcs-report", "rcs-export", "verl"]
)
def test_every_command_reads_what_is_allowed(data: Path, tmp_path: Path, command: str) -> None:
    path = write_rows(data, "link.mp4", cycles=ROW["cycles"])
    rows = path.read_text().splitlines()
    path.write_text(rows[command == "evaluate"] + "\n")  # of its split
    out = tmp_path / "out"
    out.mkdir()
    assert main(commands(path, out, data.parent / "private")[command]) in (0, None)


def test_the_validator_does_not_open_what_lies_outside(data: Path, tmp_path: Path) -> None:
    path = write_rows(data, "link.mp4")
    path.write_text(path.read_text().splitlines()[0] + "\n")
    main(commands(path, tmp_path, None)["validate"])
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert {kind["kind"] for kind in report["kinds"]} == {"path_outside_folder"}
    assert report["videos"] == {"files": 0, "decoded": 0, "frames_decoded": 0}


def test_a_converter_follows_links_to_allowed_folders_only(data: Path) -> None:
    assert VideoFolder(data).find(["inside.mp4"]) == "inside.mp4"
    with pytest.raises(BadRowError, match=r"'link\.mp4' \(leads to '.*private/a\.mp4'\)"):
        VideoFolder(data).find(["link.mp4"])
    allowed = VideoFolder(data, [str(data.parent / "private")])
    assert allowed.find(["linked/a.mp4"]) == "linked/a.mp4"


def test_a_converter_says_how_to_read_videos_that_lie_elsewhere(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("video,count,split\na.mp4,2,train\n")
    out = tmp_path / "converted"
    given = ["prepare", "csv", str(table), "--videos", str(data), "--out", str(out)]
    assert main(given) == 0
    assert f"read it with data.allow_outside=[{data}]" in capsys.readouterr().out
    assert main([*given[:-1], str(data)]) == 0
    assert "allow_outside" not in capsys.readouterr().out
    with pytest.raises(DataError, match="expected a path in"):
        list(read_clips(out / "clips.jsonl"))
    assert len(list(read_clips(out / "clips.jsonl", allow_outside=[str(data)]))) == 1

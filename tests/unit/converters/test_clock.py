"""Frame numbers of annotations become the times at which the file presents those frames."""

import json
from pathlib import Path

from data_prep.converters.conversion import convert
from data_prep.converters.repcount import repcount
from data_prep.converters.table import TableFormat, table
from tests.unit.video.coded import Kind, write_coded

H264 = (("preset", "ultrafast"),)
# Ten frames of 40 ms, then ten of 200 ms: frame 10 is shown at 0.4 s, frame 12 at 0.8, 15 at 1.4.
UNEVEN = (*range(0, 400, 40), *range(400, 2400, 200))


def rows_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]


def test_marks_in_frames_follow_the_clock_of_an_uneven_file(tmp_path: Path) -> None:
    write_coded(tmp_path / "phone.mp4", Kind(options=H264, times_ms=UNEVEN), num_frames=20)
    (tmp_path / "train.csv").write_text(
        "type,name,count,L1,L2,L3,L4\nsquat,phone.mp4,2,0,10,10,15\n"
    )
    convert(repcount([tmp_path / "train.csv"]), videos=tmp_path, out=tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row["cycles"] == [[0.0, 0.4], [0.4, 1.4]]  # by 20 / 2.28 s: 1.14 and 1.71
    assert row["times_source"] == "time_stamps"
    assert (row["start_s"], row["end_s"]) == (0.0, 2.24)  # its last frame lasts as most do


def test_a_cut_file_counts_from_the_first_frame_that_is_shown(tmp_path: Path) -> None:
    write_coded(tmp_path / "cut.mp4", Kind(options=H264, num_b=2, cut_ms=1040), num_frames=60)
    (tmp_path / "train.csv").write_text("type,name,count,L1,L2\nsquat,cut.mp4,1,10,30\n")
    convert(repcount([tmp_path / "train.csv"]), videos=tmp_path, out=tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert (row["num_frames"], row["end_s"]) == (34, 1.36)
    assert row["cycles"] == [[0.4, 1.2]]


def test_marks_of_another_copy_follow_the_rate_of_the_table(tmp_path: Path) -> None:
    """The table was made of a copy with 30 frames a second, the file here has 25."""
    write_coded(tmp_path / "a.mp4", Kind(options=H264), num_frames=50)
    (tmp_path / "t.csv").write_text("video,count,split,fps,cycles\na.mp4,1,train,30,15-45\n")
    layout = TableFormat(unit="frames")
    convert(table([tmp_path / "t.csv"], layout=layout), videos=tmp_path, out=tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row["cycles"] == [[0.5, 1.5]]
    assert row["times_source"] == "rate"
    assert row["flags"] == ["fps_differs_from_video"]


def test_seconds_stay_seconds(tmp_path: Path) -> None:
    write_coded(tmp_path / "a.mp4", Kind(options=H264, times_ms=UNEVEN), num_frames=20)
    (tmp_path / "t.csv").write_text("video,count,split,cycles\na.mp4,1,train,0.5-1.5\n")
    convert(table([tmp_path / "t.csv"]), videos=tmp_path, out=tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert (row["cycles"], row["times_source"]) == ([[0.5, 1.5]], "seconds")

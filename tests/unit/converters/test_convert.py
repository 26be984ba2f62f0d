"""The conversion itself: streaming, atomic, repeatable, missing videos, headers, the command."""

import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actrep_ray.cli.main import main
from actrep_ray.run.program import program
from data_prep.converters.annotation import Annotation, Source
from data_prep.converters.clips import clean_cycles, to_clip
from data_prep.converters.conversion import MissingVideosError, Summary, convert
from data_prep.converters.remarks import FLAGS, REASONS
from data_prep.converters.repcount import repcount
from data_prep.converters.rows import BadRowError, Record, read_json_array
from data_prep.converters.videos import VideoFolder
from data_prep.files import DataError
from data_prep.schema import parse_clip, read_clips
from data_prep.strata import BINS, stratum_of
from data_prep.video import Orientation, Probe

MakeVideo = Callable[..., Path]
TABLE = """type,name,count,L1,L2,L3,L4
squat,a.mp4,2,30,60,60,120
squat,b.mp4,1,30,60,,
squat,b.mp4,,30,60,,
squat,gone.mp4,1,30,60,,
squat,gone.mp4,2,30,60,,
pushups,lost/too.mp4,1,30,60,,
"""


@pytest.fixture
def folder(tmp_path: Path, make_video: MakeVideo) -> Path:
    """A table of six rows in `train.csv`; of its videos two are there and two are missing."""
    make_video(tmp_path / "videos" / "a.mp4", 30, 300)
    make_video(tmp_path / "videos" / "b.mp4", 30, 300)
    (tmp_path / "train.csv").write_text(TABLE)
    return tmp_path


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def convert_table(folder: Path, *, allow_missing: bool = False) -> Summary:
    source = repcount([folder / "train.csv"])
    return convert(
        source, videos=folder / "videos", out=folder / "out", allow_missing=allow_missing
    )


def test_missing_videos_fail_the_conversion_and_are_listed(folder: Path) -> None:
    message = (
        r"2 videos are missing in .*videos \(3 of 6 rows\): train/gone.mp4, train/lost/too.mp4;"
        r" all are listed in .*missing.txt; no clips were written; give --allow-missing"
    )
    with pytest.raises(MissingVideosError, match=message):
        convert_table(folder)
    assert files_in(folder / "out") == {"missing.txt": b"train/gone.mp4\ntrain/lost/too.mp4\n"}


def test_a_failed_conversion_leaves_the_last_good_one(folder: Path) -> None:
    convert_table(folder, allow_missing=True)
    before = files_in(folder / "out")
    (folder / "videos" / "a.mp4").unlink()
    with pytest.raises(MissingVideosError, match="3 videos are missing"):
        convert_table(folder)
    after = files_in(folder / "out")
    assert after.pop("missing.txt") != before.pop("missing.txt")
    assert after == before


def test_allowed_missing_videos_are_rejected_with_their_reason(folder: Path) -> None:
    summary = convert_table(folder, allow_missing=True)
    assert (summary.num_read, summary.num_written, summary.num_rejected) == (6, 2, 4)
    assert dict(summary.rejected) == {"missing_video": 3, "count_empty": 1}
    lines = (folder / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {
        "source": "train.csv",
        "row": 5,
        "reason": "missing_video",
        "detail": f"'train/gone.mp4' is not in {folder / 'videos'}",
        "values": {"type": "squat", "name": "gone.mp4", "count": "1", "L1": "30", "L2": "60"},
    }
    assert json.loads((folder / "out" / "summary.json").read_text()) == {
        "dataset": "repcount",
        "num_read": 6,
        "num_written": 2,
        "num_rejected": 4,
        "num_flagged": 0,
        "num_missing_videos": 2,
        "num_cycles": 3,
        "splits": {"train": 2},
        "flags": {},
        "rejected": {"missing_video": 3, "count_empty": 1},
        "counts": {"0": 0, "1-5": 2, "6-10": 0, "11-20": 0, "21-40": 0, "41+": 0},
    }


def test_a_second_run_writes_the_same_bytes_and_forgets_what_was_found(
    folder: Path, make_video: MakeVideo
) -> None:
    convert_table(folder, allow_missing=True)
    before = files_in(folder / "out")
    convert_table(folder, allow_missing=True)
    assert files_in(folder / "out") == before
    make_video(folder / "videos" / "train" / "gone.mp4", 30, 300)
    make_video(folder / "videos" / "lost" / "too.mp4", 30, 300)
    summary = convert_table(folder)
    assert (summary.num_written, dict(summary.rejected)) == (
        3,
        {"count_empty": 1, "conflicting_counts": 2},
    )
    assert set(files_in(folder / "out")) == {"clips.jsonl", "rejected.jsonl", "summary.json"}


def test_a_crash_on_the_way_leaves_nothing_behind(folder: Path) -> None:
    def records() -> Iterator[Record]:
        yield Record("x", 1, {"name": "a.mp4", "count": "1"}, "train")
        raise OSError("the disk went away")

    source = Source("repcount", records(), repcount([folder / "train.csv"]).parse, 1)
    with pytest.raises(OSError, match="the disk went away"):
        convert(source, videos=folder / "videos", out=folder / "out")
    assert files_in(folder / "out") == {}


def rows(number: int, missing: int) -> Iterator[Record]:
    for i in range(number):
        name = f"gone{i}.mp4" if i % missing == 0 else "a.mp4"
        yield Record("x", i, {"name": name, "id": f"a-clip-with-a-long-name-{i}"}, "train", i)


def parse(record: Record) -> Annotation:
    return Annotation(
        name=record.values["id"], split="train", videos=(record.values["name"],),
        action=record.values["id"],
        count=3, cycles=((0, 30), (30, 60), (60, 90)),
    )  # fmt: skip


@pytest.mark.lengthy
def test_a_longer_table_needs_no_more_memory(folder: Path) -> None:
    peaks = []
    for number in (3_000, 600, 3_000):  # the first fills caches
        source = Source("x", rows(number, missing=3), parse, number)
        tracemalloc.start()
        summary = convert(source, videos=folder / "videos", out=folder / "x", allow_missing=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert summary.num_read == number
        assert summary.num_missing_videos == summary.num_rejected == number // 3
    assert peaks[2] < peaks[1] + 60_000  # ids alone would be 240,000 bytes


def test_rows_are_written_as_they_are_read(folder: Path) -> None:
    """No more than the row at hand is asked for: the reader is one ahead of the writer."""
    asked = [0]

    def counted() -> Iterator[Record]:
        for record in rows(100, missing=200):
            asked[0] += 1
            yield record

    done: list[int] = []

    def progress(position: int, size: int) -> None:
        assert size == 100
        assert asked[0] == len(done) + 1
        done.append(position)

    source = Source("x", counted(), parse, 100)
    convert(source, videos=folder / "videos", out=folder / "x", allow_missing=True,
            progress=progress)  # fmt: skip
    assert done == list(range(100))


@pytest.mark.lengthy
def test_the_progress_of_a_table_ends_at_its_size(folder: Path) -> None:
    lines = "".join(f"squat,a.mp4,{i},30,60,,\n" for i in range(1500))
    (folder / "train.csv").write_text(TABLE + lines)
    (folder / "test.csv").write_text(TABLE)
    seen: list[int] = []
    source = repcount([folder / "train.csv", folder / "test.csv"])
    convert(
        source, videos=folder / "videos", out=folder / "out", allow_missing=True,
        progress=lambda position, size: seen.append(position),
    )  # fmt: skip
    assert seen == sorted(seen)
    assert len(set(seen)) > 3
    assert seen[-1] == source.size == sum((folder / f).stat().st_size for f in
                                          ("train.csv", "test.csv"))  # fmt: skip


def test_the_file_of_a_larger_json_array_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    elements = [{"i": i, "text": "x" * (i % 700)} for i in range(3000)]
    path.write_text(json.dumps(elements, indent=2))
    read = list(read_json_array(path))
    assert [element for _, element, _ in read] == elements
    assert [number for number, _, _ in read] == list(range(1, 3001))
    assert read[0][2] < path.stat().st_size / 5
    path.write_text(json.dumps(elements)[:-1000])
    with pytest.raises(DataError, match="not JSON"):
        list(read_json_array(path))


# --- headers


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), np.float32), format="fltp", layout="mono"
        )
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(BadRowError, match=r"a\.mp4: .*no video stream in it"):
        VideoFolder(tmp_path).probe(path.name)


def test_a_link_is_followed_to_a_folder_that_is_allowed(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    make_video(tmp_path / "disk" / "a.mp4", 25, 10)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "train").symlink_to(tmp_path / "disk")
    with pytest.raises(BadRowError, match=r"'train/a\.mp4' \(leads to "):
        VideoFolder(tmp_path / "videos").find(["a.mp4", "train/a.mp4"])
    folder = VideoFolder(tmp_path / "videos", [str(tmp_path / "disk")])
    assert folder.find(["a.mp4", "train/a.mp4"]) == "train/a.mp4"
    assert folder.probe("train/a.mp4").num_frames == 10


def test_a_video_is_looked_at_once_for_all_of_its_rows(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    make_video(tmp_path / "a.mp4", 25, 10)
    folder = VideoFolder(tmp_path)
    assert folder.probe("a.mp4") is folder.probe("a.mp4")


# --- arithmetic


def even_probe(fps: float, num_frames: int) -> Probe:
    """A video of 48x32 pixels whose frames lie at equal distances."""
    return Probe(
        path="a.mp4",
        container="mp4",
        codec="h264",
        stream=0,
        times_s=np.arange(num_frames) / fps,
        end_s=num_frames / fps,
        lead_s=0.0,
        fps=fps,
        first_pts=0,
        time_base_s=1 / fps,
        keyframes_s=np.zeros(1),
        width=48,
        height=32,
        orientation=Orientation(),
        counts_frames=False,
        is_risky=False,
    )


def test_seconds_are_those_of_a_player_and_frames_those_of_the_video() -> None:
    """Sound starts 0.5 s before the pictures: a player shows the first of them at 0.5 s."""
    late = replace(even_probe(fps=20.0, num_frames=200), lead_s=0.5)
    marked = Annotation(
        "a", "train", ("a.mp4",), "squat", 1, ((1.0, 2.5),), start=1.0, end=4.0, unit="seconds"
    )
    clip = to_clip(marked, late, dataset="x", video="a.mp4")
    assert (clip.start_s, clip.end_s, clip.cycles) == (0.5, 3.5, ((0.0, 1.5),))
    framed = replace(marked, cycles=((20, 50),), start=20, end=79, unit="frames")
    clip = to_clip(framed, late, dataset="x", video="a.mp4")
    assert (clip.start_s, clip.end_s, clip.cycles) == (1.0, 4.0, ((0.0, 1.5),))


HEADER = even_probe(fps=20.0, num_frames=200)
MARK = st.one_of(st.integers(0, 400), st.floats(0, 400))


@given(
    cycles=st.none() | st.lists(st.tuples(MARK, MARK), max_size=8).map(tuple),
    count=st.integers(0, 10),
    start=st.none() | MARK,
    end=st.none() | MARK,
    unit=st.sampled_from(["frames", "seconds"]),
    fps=st.none() | st.floats(1.0, 60.0),
)
def test_any_annotation_is_a_valid_clip_or_a_stated_reason(
    cycles: tuple[tuple[float, float], ...] | None,
    count: int,
    start: float | None,
    end: float | None,
    unit: Literal["frames", "seconds"],
    fps: float | None,
) -> None:
    annotation = Annotation(
        "a",
        "train",
        ("a.mp4",),
        "x",
        count,
        cycles,
        start,
        end,
        unit,
        0,
        fps,
    )
    try:
        clip = to_clip(annotation, HEADER, dataset="d", video="a.mp4")
    except BadRowError as error:
        assert error.reason in ("bad_time", "outside_video")  # noqa: PT017
        return
    assert parse_clip(json.loads(clip.to_json()), "here") == clip
    assert 0.0 <= clip.start_s < clip.end_s <= 10.0
    marks = clip.cycles or ()
    assert all(0.0 <= a < b <= clip.duration_s + 1e-5 for a, b in marks)
    assert list(marks) == sorted(marks)
    disagrees = clip.cycles is not None and len(marks) != count
    assert ("count_differs_from_cycles" in clip.flags) == disagrees


def test_marks_within_a_frame_of_the_ends_are_no_remark() -> None:
    flags: list[str] = []
    cycles = clean_cycles([(-0.04, 1.0), (9.0, 10.04)], 10.0, 0.05, flags)
    assert (cycles, flags) == (((0.0, 1.0), (9.0, 10.0)), [])
    cycles = clean_cycles([(-0.06, 1.0)], 10.0, 0.05, flags)
    assert (cycles, flags) == (((0.0, 1.0),), ["cycle_outside_clip"])


def test_bins_of_the_histogram() -> None:
    counts = [0, 1, 5, 6, 10, 11, 20, 21, 40, 41, 302]
    assert [stratum_of(count, BINS).name for count in counts] == [
        "0", "1-5", "1-5", "6-10", "6-10", "11-20", "11-20", "21-40", "21-40", "41+", "41+",
    ]  # fmt: skip


# --- the command


def test_the_command_fails_on_missing_videos_and_says_how_to_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "repcount", str(folder / "train.csv"), "--videos",
               str(folder / "videos"), "--out", str(folder / "out")]  # fmt: skip
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("actrep: error: 2 videos are missing in")
    assert err.count("\n") == 1
    assert main([*command, "--allow-missing"]) == 0
    out, err = capsys.readouterr()
    assert "6  rows read" in out
    assert "2  written, 3 cycles marked" in out
    assert "3  missing_video: no such file in the folder of videos" in out
    assert len(list(read_clips(folder / "out" / "clips.jsonl", allow_outside=["/"]))) == 2


def test_the_command_fails_if_no_row_can_be_used(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train.csv").write_text("name,count\na.mp4,many\n")
    command = ["prepare", "repcount", str(folder / "train.csv"), "--videos",
               str(folder / "videos"), "--out", str(folder / "out")]  # fmt: skip
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert "1  count_not_a_number" in out
    assert err == (
        "actrep: no row could be used; the first: train.csv:2: count_not_a_number: "
        "count='many', expected a number\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repcount", "nowhere.csv"], "nowhere.csv: no such file"),
        (["ucfrep", "nowhere"], "nowhere: no such file"),
        (["quva", "EMPTY"], "holds no .npy files"),
        (["ovr", "EMPTY"], "holds no .json or .jsonl files"),
        (["csv", "TABLE", "--column", "video"], "--column 'video', expected FIELD=COLUMN"),
        (["csv", "TABLE", "--column", "vidoe=name"], "column 'vidoe': expected one of video"),
        (["csv", "TABLE"], "no column 'video'"),
        (["repcount", "TABLE", "--videos", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty").mkdir()
    names = {"TABLE": str(folder / "train.csv"), "EMPTY": str(folder / "empty")}
    command = [names.get(argument, argument) for argument in arguments]
    if "--videos" not in command:
        command += ["--videos", str(folder / "videos")]
    assert main(["prepare", *command, "--out", str(folder / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("actrep: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list((folder / "out").glob("*"))


@pytest.mark.parametrize("name", ["repcount", "ucfrep", "countix", "quva", "ovr", "actrep", "csv"])
def test_help_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["prepare", name, "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert f"example:\n  {program('actrep')} prepare {name}" in out
    assert f"data/{name}" in out


def test_the_documentation_names_every_reason_and_flag() -> None:
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    assert not [name for name in (*REASONS, *FLAGS) if f"`{name}`" not in text]

"""Rows that are of one clip, contradict each other, or share a name: none is silently lost."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actrep_ray.cli.main import main
from data_prep.converters.actrep import actrep
from data_prep.converters.annotation import Annotation, Source
from data_prep.converters.conversion import convert
from data_prep.converters.countix import countix
from data_prep.converters.ovr import ovr
from data_prep.converters.repcount import repcount
from data_prep.converters.rows import Record
from data_prep.converters.same_clips import CONFLICTS, Conflicts
from data_prep.converters.table import table
from data_prep.schema import Clip, read_clips
from data_prep.validation.validate import Decoding, validate_file
from data_prep.validation.view import View

pytestmark = pytest.mark.lengthy

MakeVideo = Callable[..., Path]
VIEW = View(4.0, 4, 256, 1024, 4096, 32, 2, None)
COUNTIX = "video_id,class,kinetics_start,kinetics_end,repetition_start,repetition_end,count\n"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name in ("a.mp4", "a.avi", "b.mp4", "ID_000009_000019.mp4", "OTHER_000000_000010.mp4"):
        make_video(folder / name, 30, 300)
    make_video(folder / "train" / "b.mp4", 30, 300)
    return folder


def rejected_in(folder: Path) -> list[tuple[int, str, str]]:
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    return [(row["row"], row["reason"], row["detail"]) for row in map(json.loads, lines)]


def clips_in(folder: Path) -> list[Clip]:
    return list(read_clips(folder / "clips.jsonl", allow_outside=["/"]))


def own(folder: Path, *lines: str, header: str = "video,count,start,end,action") -> Source:
    path = folder / "train.csv"
    path.write_text("\n".join((header, *lines)) + "\n")
    return table([path])


# --- clips that differ


def test_countix_windows_of_one_start_are_two_clips(videos: Path, tmp_path: Path) -> None:
    path = tmp_path / "countix_train.csv"
    path.write_text(
        COUNTIX + "ID,front crawl,9,19,9.000000,17.866667,4\nID,front crawl,9,19,9.0,18.966667,5\n"
        "OTHER,jumping jacks,0,10,0.0,10.0,2\nOTHER,jumping jacks,0,10,0.0,10.0,3\n"
        "OTHER,jumping jacks,0,10,2.0,10.0,3\n"
    )
    summary = convert(countix([path]), videos=videos, out=tmp_path)
    assert (summary.num_read, summary.num_written) == (5, 3)
    assert [(clip.id, clip.end_s, clip.count) for clip in clips_in(tmp_path)] == [
        ("countix-train-ID_000009_00000-0-8.866667", 8.866667, 4),
        ("countix-train-ID_000009_00000-0-9.966667", 9.966667, 5),
        ("countix-train-OTHER_000000_02000", 10.0, 3),  # a name of its own stays as it was
    ]
    assert rejected_in(tmp_path) == [
        (4, "conflicting_counts", "count=2, but countix_train.csv:5 gives the same clip 3"),
        (5, "conflicting_counts", "count=3, but countix_train.csv:4 gives the same clip 2"),
    ]


def test_ends_actions_and_suffixes_tell_clips_apart(videos: Path, tmp_path: Path) -> None:
    source = own(
        tmp_path, "a.mp4,3,0,4,squat", "a.mp4,5,0,8,squat", "a.mp4,4,0,4,jump", "a.avi,4,0,4,jump",
        "b.mp4,1,0,4,squat",
    )  # fmt: skip
    assert convert(source, videos=videos, out=tmp_path).num_written == 5
    assert [clip.id for clip in clips_in(tmp_path)] == [
        "csv-train-a-0.mp4-0-4-squat",
        "csv-train-a-0.mp4-0-8-squat",
        "csv-train-a-0.mp4-0-4-jump",
        "csv-train-a-0.avi-0-4-jump",
        "csv-train-b-0",
    ]


def test_suffixes_and_folders_tell_videos_of_public_sets_apart(
    videos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "train.csv"
    path.write_text("type,name,count\nsquat,a.mp4,2\nsquat,a.avi,3\njump,a.avi,3\n")
    convert(repcount([path]), videos=videos, out=tmp_path)
    assert [clip.id for clip in clips_in(tmp_path)] == [
        "repcount-train-a.mp4-squat", "repcount-train-a.avi-squat", "repcount-train-a.avi-jump",
    ]  # fmt: skip
    path.write_text("video_id,split,action,count\na,train,squat,2\na.avi,train,squat,2\n")
    convert(actrep([path]), videos=videos, out=tmp_path)
    assert [clip.id for clip in clips_in(tmp_path)] == ["actrep-train-a.mp4", "actrep-train-a.avi"]
    path.write_text("video,count,id\nb.mp4,2,x\ntrain/b.mp4,2,x\n")
    convert(table([path]), videos=videos, out=tmp_path)
    assert [clip.id for clip in clips_in(tmp_path)] == [
        "csv-train-x-b.mp4", "csv-train-x-train/b.mp4",
    ]  # fmt: skip


def test_a_video_that_is_listed_twice_keeps_all_of_its_windows(
    videos: Path, tmp_path: Path
) -> None:
    def entry(end: float, count: int) -> dict[str, Any]:
        window = {"start_time": 0, "end_time": end, "count": count, "split": "train"}
        return {"video_id": "a", "ovr_annotations": [{**window, "description": "a man jumping"}]}

    path = tmp_path / "ovr.json"
    path.write_text(json.dumps([entry(4, 2), entry(8, 4), entry(4, 2)]))
    convert(ovr([path]), videos=videos, out=tmp_path)
    assert [clip.id for clip in clips_in(tmp_path)] == ["ovr-train-a-0-0-4", "ovr-train-a-0-0-8"]
    assert rejected_in(tmp_path) == [
        (3, "duplicate_row", "ovr.json:1 has the same video, window, action and count")
    ]


def test_an_extended_name_is_never_that_of_another_row(videos: Path, tmp_path: Path) -> None:
    source = own(
        tmp_path, "x,a.mp4,1,0,4", "x,a.mp4,1,0,8", "x-0-4,a.mp4,1,0,5", "x-0-4-2,a.mp4,1,0,6",
        header="id,video,count,start,end",
    )  # fmt: skip
    assert convert(source, videos=videos, out=tmp_path).num_written == 4
    assert [clip.id for clip in clips_in(tmp_path)] == [
        "csv-train-x-0-4-3", "csv-train-x-0-8", "csv-train-x-0-4", "csv-train-x-0-4-2",
    ]  # fmt: skip


def test_the_same_row_in_another_split_is_for_validate_to_tell(
    videos: Path, tmp_path: Path
) -> None:
    lines = ["a.mp4,3,train", "a.mp4,3,test", "a.mp4,3,test"]
    convert(own(tmp_path, *lines, header="video,count,split"), videos=videos, out=tmp_path)
    assert [clip.split for clip in clips_in(tmp_path)] == ["train", "test"]
    assert [row[:2] for row in rejected_in(tmp_path)] == [(4, "duplicate_row")]
    found = validate_file(
        tmp_path / "clips.jsonl", VIEW, Decoding(1, 60.0, is_on=False), allow_outside=("/",)
    ).findings
    assert {finding.kind for finding in found} >= {"leak_of_video"}


# --- rows that contradict each other


CONTRADICTION = ("a.mp4,2,0,4,squat", "b.mp4,2,0,4,squat", "a.mp4,4,0,4,squat", "a.mp4,2,0,4,squat")


@pytest.mark.parametrize(
    ("conflicts", "kept", "details"),
    [
        ("drop", [], [
            "count=2, but train.csv:4 gives the same clip 4",
            "count=4, but train.csv:2 gives the same clip 2",
        ]),
        ("first", [2], ["count=4, but train.csv:2 gives the same clip 2; train.csv:2 is kept"]),
        ("mean", [3], [
            "count=4, but train.csv:2 gives the same clip 2; train.csv:2 is kept with the mean 3"
        ]),
    ],
)  # fmt: skip
def test_the_policy_decides_on_contradictions_and_names_both_lines(
    conflicts: Conflicts, kept: list[int], details: list[str], videos: Path, tmp_path: Path
) -> None:
    source = own(tmp_path, *CONTRADICTION)
    summary = convert(source, videos=videos, out=tmp_path, conflicts=conflicts)
    clips = {clip.id: clip for clip in clips_in(tmp_path)}
    assert [clip.count for name, clip in clips.items() if name == "csv-train-a-0"] == kept
    assert clips["csv-train-b-0"].flags == ()
    assert summary.rejected == {"conflicting_counts": len(details), "duplicate_row": 1}
    assert [row[2] for row in rejected_in(tmp_path)][:-1] == details
    assert summary.flags == Counter({"conflicting_counts": len(kept)})
    lines = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert json.loads(lines[-2])["values"] == {
        "video": "a.mp4", "count": "4", "start": "0", "end": "4", "action": "squat",
    }  # fmt: skip
    found = validate_file(
        tmp_path / "clips.jsonl", VIEW, Decoding(1, 60.0, is_on=False), allow_outside=("/",)
    ).findings
    assert not [finding for finding in found if finding.level == "error"]


def test_a_mean_that_is_no_whole_number_is_none(videos: Path, tmp_path: Path) -> None:
    source = own(tmp_path, "a.mp4,2,0,4,squat", "a.mp4,3,0,4,squat", "b.mp4,3,0,4,squat")
    summary = convert(source, videos=videos, out=tmp_path, conflicts="mean")
    assert (summary.num_written, dict(summary.rejected)) == (1, {"conflicting_counts": 2})
    assert rejected_in(tmp_path)[0][2].endswith("; the mean 2.5 is no whole number")


def test_a_mean_follows_the_marks_only_if_it_is_their_number(videos: Path, tmp_path: Path) -> None:
    header = "video,count,cycles"
    lines = ['a.mp4,2,"0-1; 1-2"', "a.mp4,6,", 'a.avi,2,"0-1; 1-2"', "a.avi,0,", "b.mp4,3,0-1",
             "b.mp4,0,", "b.mp4,1,0-1", "b.mp4,0,"]  # fmt: skip
    convert(own(tmp_path, *lines, header=header), videos=videos, out=tmp_path, conflicts="mean")
    assert [(clip.count, clip.flags) for clip in clips_in(tmp_path)] == [
        (4, ("count_differs_from_cycles", "conflicting_counts")),
        (1, ("count_differs_from_cycles", "conflicting_counts")),
    ]  # the mean of 3, 0 and 1 is no whole number


def test_the_command_says_so(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own(tmp_path, *CONTRADICTION)
    command = ["prepare", "csv", str(tmp_path / "train.csv"), "--videos", str(videos), "--out",
               str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "2  conflicting_counts: another row gives the same clip another count" in told
    assert "1  duplicate_row: an earlier row has the same video, window, action and count" in told
    assert main([*command, "--conflicts", "first", "--overwrite"]) == 0
    assert "2  written" in capsys.readouterr().out


def test_the_command_offers_the_policies_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "csv", "--help"])
    assert f"--conflicts {{{','.join(CONFLICTS)}}}" in capsys.readouterr().out


# --- every row is accounted for


ROW = st.tuples(
    st.sampled_from(["a.mp4", "a.avi", "b.mp4"]),
    st.sampled_from(["", "x", "x-0-4", "x.mp4"]),  # the id
    st.sampled_from(["train", "test"]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, 4, 5, 20]),
    st.sampled_from(["squat", "jump"]),
    st.sampled_from(["0", "2", "3", "4", ""]),
)


@given(rows=st.lists(ROW, min_size=1, max_size=25), conflicts=st.sampled_from(CONFLICTS))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_every_row_is_written_or_rejected_and_no_clip_is_there_twice(
    rows: list[tuple[Any, ...]],
    conflicts: Conflicts,
    videos: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    lines = [",".join("" if cell is None else str(cell) for cell in row) for row in rows]
    source = own(folder, *lines, header="video,id,split,start,end,action,count")
    summary = convert(source, videos=videos, out=folder, conflicts=conflicts)
    clips = clips_in(folder)
    rejected = rejected_in(folder)
    assert (summary.num_read, summary.num_written) == (len(rows), len(clips))
    assert len(clips) + len(rejected) == len(rows)
    assert Counter(reason for _, reason, _ in rejected) == summary.rejected
    assert [number for number, _, _ in rejected] == sorted(number for number, _, _ in rejected)
    assert len({clip.id for clip in clips}) == len(clips)
    windows = [(clip.video, clip.start_s, clip.end_s, clip.action, clip.split) for clip in clips]
    assert len(set(windows)) == len(windows)
    counts: dict[tuple[Any, ...], set[int]] = {}
    for clip in clips:
        counts.setdefault((clip.video, clip.start_s, clip.end_s, clip.action), set()).add(
            clip.count
        )
    assert all(len(of_clip) == 1 for of_clip in counts.values())
    # What each row that is gone says is so.
    with_count = {i + 2: row for i, row in enumerate(rows)}
    for number, reason, detail in rejected:
        row = with_count[number]
        if reason == "count_empty":
            assert row[-1] == ""
            continue
        other = with_count[int(detail.split("train.csv:")[1].split()[0])]
        assert (row[0], row[5]) == (other[0], other[5])
        assert (row[-1] == other[-1]) == (reason == "duplicate_row")


def test_a_table_of_the_size_of_countix_loses_no_row(
    videos: Path, tmp_path: Path, make_video: MakeVideo
) -> None:
    """8,000 rows: windows of their own, of the same start, contradictions, duplicates, others."""
    random_ = random.Random(0)
    kinds: Counter[str] = Counter()
    lines: list[str] = []
    video = 0
    while len(lines) < 8000:
        video += 1
        start = random_.randint(0, 90)
        label = random_.choice(("jumping jacks", "front crawl"))
        front, at, end = f"ID,{label},{start},{start + 10}", start + 0.001 * video, start + 9.0
        kind = random_.choice(("alone",) * 6 + ("same start", "conflict", "duplicate", "missing"))
        rows = [(front, at, end, 3)]
        if kind == "same start":
            rows.append((front, at, end - 0.1, 3))
        elif kind == "conflict":
            rows.append((front, at, end, 4))
        elif kind == "duplicate":
            rows.append((front, at, end, 3))
        elif kind == "missing":
            rows = [(front.replace("ID", "GONE"), at, end, 3)]
        if len(lines) + len(rows) > 8000:
            continue
        kinds[kind] += 1
        lines += [f"{a},{b:.6f},{c:.6f},{count}\n" for a, b, c, count in rows]
    (tmp_path / "countix_train.csv").write_text(COUNTIX + "".join(lines))
    make_video(tmp_path / "videos" / "ID.mp4", 30, 6000)
    source = countix([tmp_path / "countix_train.csv"], full_videos=True)
    summary = convert(source, videos=tmp_path / "videos", out=tmp_path, allow_missing=True)
    assert summary.num_read == 8000
    assert summary.rejected == {
        "conflicting_counts": 2 * kinds["conflict"],
        "duplicate_row": kinds["duplicate"],
        "missing_video": kinds["missing"],
    }
    assert summary.num_written == kinds["alone"] + 2 * kinds["same start"] + kinds["duplicate"]
    assert len(clips_in(tmp_path)) == summary.num_written


def test_comparing_a_longer_table_needs_no_more_memory(videos: Path, tmp_path: Path) -> None:
    import tracemalloc

    def records(number: int) -> Iterator[Record]:
        for i in range(number):
            yield Record("x", i, {"kind": i % 4, "group": i // 4})

    def parse(record: Record) -> Annotation:
        """A window of its own, one of the same name, and two that contradict each other."""
        kind, group = record.values["kind"], record.values["group"]
        return Annotation(
            name=f"a-clip-with-a-long-name-{group}", split="train", videos=("a.mp4",),
            action=f"{group}", count=kind, start=0.0, end=min(5 + kind, 7), unit="seconds",
        )  # fmt: skip

    peaks = []
    for number in (2_000, 2_000, 8_000):  # the first fills caches
        tracemalloc.start()
        source = Source("x", records(number), parse, number)
        summary = convert(source, videos=videos, out=tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert summary.num_written == summary.num_rejected == number // 2
    assert peaks[2] < peaks[1] + 60_000

"""Forms in which people have tables: read rightly, or answered in one line with the remedy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.cli.main import main
from data_prep.converters.conversion import convert
from data_prep.converters.countix import countix
from data_prep.converters.repcount import repcount
from data_prep.converters.table import TableFormat, table
from data_prep.converters.ucfrep import ucfrep
from data_prep.converters.values import number
from data_prep.schema import Clip, read_clips

MakeVideo = Callable[..., Path]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "a.mp4", 30, 300)
    make_video(folder / "long.mp4", 10, 3000)  # five minutes
    return folder


def converted(content: bytes | str, videos: Path, folder: Path, **options: Any) -> list[Clip]:
    path = folder / "train.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = table([path], layout=TableFormat(**options))
    convert(source, videos=videos, out=folder)
    return list(read_clips(folder / "clips.jsonl", allow_outside=["/"]))


def rejected_in(folder: Path) -> list[tuple[int, str, str]]:
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    return [(row["row"], row["reason"], row["detail"]) for row in map(json.loads, lines)]


PLAIN = "video,count,start,end,action\na.mp4,3,1.5,4,über squat\n"
GERMAN = "video;count;start;end;action\na.mp4;3;1,5;4,0;über squat\n"
FORMS = {
    "plain": PLAIN.encode(),
    "semicolons and decimal commas": GERMAN.encode(),
    "tabs": PLAIN.replace(",", "\t").encode(),
    "tabs and decimal commas": GERMAN.replace(";", "\t").encode(),
    "bars": PLAIN.replace(",", "|").encode(),
    "sep=;": ("sep=;\r\n" + GERMAN.replace("\n", "\r\n")).encode(),
    "sep= in quotes behind a mark": ('"sep=;"\n' + GERMAN).encode("utf-8-sig"),
    "SEP=, in front of commas": ("SEP=,\n" + PLAIN).encode(),
    "UTF-16": PLAIN.encode("utf-16"),
    "UTF-16, tabs, CRLF: a spreadsheet's Unicode text": PLAIN.replace(",", "\t")
    .replace("\n", "\r\n")
    .encode("utf-16"),
    "UTF-16 of the other order": b"\xfe\xff" + GERMAN.replace("\n", "\r").encode("utf-16-be"),
    "capitals": PLAIN.replace("video,count,start,end,action", "Video,COUNT,Start,End,Action")
    .encode(),
    "spaces": PLAIN.replace("video,count,start", " Video , Count ,\u00a0start").encode(),
    "quoted header": PLAIN.replace("video,count", '"Video","Count"').encode(),
    "minutes": PLAIN.replace("1.5,4", "0:01.5,00:00:04").encode(),
    "minutes and decimal commas": GERMAN.replace("1,5;4,0", "0:01,5;0:04").encode(),
}  # fmt: skip


@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS)
def test_every_form_says_the_same(content: bytes, videos: Path, tmp_path: Path) -> None:
    (clip,) = converted(content, videos, tmp_path)
    assert (clip.count, clip.start_s, clip.end_s, clip.split) == (3, 1.5, 4.0, "train")
    assert (clip.action, Path(clip.video).name) == ("über_squat", "a.mp4")


def test_clock_times_are_seconds(videos: Path, tmp_path: Path) -> None:
    times = ("1:02.5,4:10", "00:01:02.500,0:04:10", "0:62,3:00", "1:02:03,2:00:00", "1:2,4:00")
    content = "video,count,start,end\n" + "".join(f"long.mp4,3,{pair}\n" for pair in times)
    clips = converted(content, videos, tmp_path)
    assert {(clip.start_s, clip.end_s) for clip in clips} == {(62.5, 250.0)}
    assert [row[:2] for row in rejected_in(tmp_path)] == [
        (3, "duplicate_row"), (4, "bad_time"), (5, "outside_video"), (6, "bad_time"),
    ]  # fmt: skip
    assert rejected_in(tmp_path)[1][2] == "start='0:62', expected a number or [hh:]mm:ss"
    assert number("90:30", "x", "bad_time", allows_clock=True) == 5430.0
    assert number("1:00:00,5", "x", "bad_time", allows_clock=True) == 3600.5


def test_marks_may_be_clock_times_with_decimal_commas(videos: Path, tmp_path: Path) -> None:
    cells = ("0:01-0:02,5; 0:02,5-0:04", "1-2,5; 2,5-4", "1-2.5; 2.5-4")
    for cell in cells:
        (clip,) = converted(f'video;count;cycles\na.mp4;2;"{cell}"\n', videos, tmp_path)
        assert clip.cycles == ((1.0, 2.5), (2.5, 4.0))
    content = "video;count;m1;M2;m3;m4\na.mp4;2;0:01;2,5;2,5;0:04\n"
    (clip,) = converted(content, videos, tmp_path, marks="M")
    assert clip.cycles == ((1.0, 2.5), (2.5, 4.0))


def test_frames_are_no_clock_times(videos: Path, tmp_path: Path) -> None:
    content = "video,count,start,end\na.mp4,3,0:01,90\na.mp4,3,1,90\n"
    (clip,) = converted(content, videos, tmp_path, unit="frames")
    assert clip.start_s == pytest.approx(1 / 30, abs=1e-6)
    assert rejected_in(tmp_path) == [(2, "bad_time", "start='0:01', expected a number")]


def test_a_decimal_comma_between_commas_is_refused_with_the_remedy(
    videos: Path, tmp_path: Path
) -> None:
    content = 'video,count,start\na.mp4,3,1,5\na.mp4,3,"1,5"\na.mp4,3,1.5\n'
    assert len(converted(content, videos, tmp_path)) == 1
    split_cell, quoted = rejected_in(tmp_path)
    assert split_cell[:2] == (2, "too_many_fields")
    assert split_cell[2].endswith("a field with a comma (1,5) stands in quotes or is written 1.5")
    assert quoted[1:] == (
        "bad_time", "start='1,5', expected a number or [hh:]mm:ss with a decimal point",
    )  # fmt: skip


def test_a_count_with_a_comma_is_never_another_count(videos: Path, tmp_path: Path) -> None:
    content = "video;count\na.mp4;3,0\nlong.mp4;1,500\n"
    (clip,) = converted(content, videos, tmp_path)
    assert clip.count == 3
    assert rejected_in(tmp_path)[0][1] == "count_not_whole"


def test_broken_utf16_costs_its_own_row(videos: Path, tmp_path: Path) -> None:
    whole = "video,count\na.mp4,3\nX.mp4,3\nlong.mp4,2\n".encode("utf-16-le")
    broken = b"\xff\xfe" + whole.replace("X".encode("utf-16-le"), b"\x00\xd8")
    assert [clip.count for clip in converted(broken, videos, tmp_path)] == [3, 2]
    assert [row[:2] for row in rejected_in(tmp_path)] == [(3, "not_utf8")]


def test_public_tables_come_in_these_forms_too(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("Type;Name;Count;l1;l2\nsquat;a.mp4;1;30,0;60\n")
    convert(repcount([tmp_path / "train.csv"]), videos=videos, out=tmp_path)
    (clip,) = read_clips(tmp_path / "clips.jsonl", allow_outside=["/"])
    assert (clip.action, clip.cycles) == ("squat", ((1.0, 2.0),))
    head = "Video ID;Class;Kinetics Start;Kinetics End;Repetition Start;Repetition End;Count"
    (tmp_path / "countix_val.csv").write_text(f"sep=;\n{head}\na;jumping;0:09;0:19;0:09,5;0:12;3\n")
    convert(countix([tmp_path / "countix_val.csv"]), videos=videos, out=tmp_path)
    (clip,) = read_clips(tmp_path / "clips.jsonl", allow_outside=["/"])
    assert (clip.start_s, clip.end_s, clip.action) == (0.5, 3.0, "jumping")
    text = "name\tCounts\tStart Frame\tEnd Frame\tL1\tL2\na.mp4\t1\t1\t90\t1\t30\n"
    (tmp_path / "new_val.csv").write_bytes(text.encode("utf-16"))
    convert(ucfrep([tmp_path / "new_val.csv"]), videos=videos, out=tmp_path)
    (clip,) = read_clips(tmp_path / "clips.jsonl", allow_outside=["/"])
    assert clip.end_s == 3.0
    assert clip.cycles is not None
    ((start, end),) = clip.cycles
    assert start == 0.0
    assert end == pytest.approx(29 / 30, abs=1e-5)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("Video,Count,Film\na.mp4,3,x\n", ["--column", "video=clip"],
         "train.csv:1: no column 'clip'; the columns are Video, Count, Film; say which it is with "
         "--column FIELD=COLUMN"),
        ("\nFilm,Count\na.mp4,3\n", [],
         "train.csv:2: no column 'video'; the columns are Film, Count; say which it is with "
         "--column FIELD=COLUMN"),
        ("Video,VIDEO,count\na.mp4,b.mp4,3\n", [],
         "train.csv:1: columns 'Video' and 'VIDEO' could both be 'video'; rename one"),
        ("video,count,count\na.mp4,3,3\n", [],
         "train.csv:1: column 'count' is there twice; rename one of them"),
        ("video;count\na.mp4;3\n", ["--delimiter", ","],
         "train.csv:1: no column 'video'; the columns are video;count; give --delimiter ';'"),
        ("video#count\na.mp4#3\n", [],
         "train.csv:1: no column 'video'; the columns are video#count; say which it is"),
        ('video,"count\na.mp4,3\n', [],
         "train.csv:1: the header is not CSV; is a quote never closed?"),
        ("video,count\na.mp4,3\n".encode("utf-16-le"), [],
         "train.csv:1: the header is not text in UTF-8; save the table as CSV UTF-8"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_one_line_with_the_remedy(
    content: str | bytes,
    options: list[str],
    message: str,
    videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    command = ["prepare", "csv", str(path), "--videos", str(videos), "--out", str(tmp_path / "o")]
    assert main([*command, *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_header_in_capitals_needs_no_split(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("Video,Count,Split\na.mp4,8,Train\n")
    command = ["prepare", "csv", str(path), "--videos", str(videos), "--out", str(tmp_path)]
    assert main(command) == 0
    assert "1 clip (1 train)" in capsys.readouterr().out
    path.write_text("Video,Count\na.mp4,8\n")
    assert main([*command, "--overwrite"]) == 2
    assert "mine.csv: its name does not say which split it is, give --split" in (
        capsys.readouterr().err
    )


def test_a_delimiter_that_is_named_is_used(videos: Path, tmp_path: Path) -> None:
    (clip,) = converted("video#count#x;y\na.mp4#3#1,5\n", videos, tmp_path, delimiter="#")
    assert clip.count == 3
    path = tmp_path / "train.csv"
    path.write_text("video\tcount\na.mp4\t4\n")
    command = ["prepare", "csv", str(path), "--videos", str(videos), "--out", str(tmp_path)]
    assert main([*command, "--overwrite", "--delimiter", "\\t"]) == 0
    assert [clip.count for clip in read_clips(tmp_path / "clips.jsonl", allow_outside=["/"])] == [4]


def test_the_position_in_a_table_of_utf16_ends_at_its_size(videos: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(
        "".join(["video,count,id\n", *(f"a.mp4,3,{i}\n" for i in range(2000))]).encode("utf-16")
    )
    seen: list[int] = []
    source = table([path])
    convert(source, videos=videos, out=tmp_path, progress=lambda done, size: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == source.size == path.stat().st_size

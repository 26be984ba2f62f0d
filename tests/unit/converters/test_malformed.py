"""Malformed annotations: each has a stated outcome, none a traceback, none is silently lost.

A case is a file as bytes and what must come of it: a file-level error, or how many rows are read,
why rows are rejected and what is remarked about the rest.
"""

import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from data_prep.converters.actrep import actrep
from data_prep.converters.annotation import Source
from data_prep.converters.chat import chat
from data_prep.converters.conversion import convert
from data_prep.converters.countix import countix
from data_prep.converters.ovr import ovr
from data_prep.converters.quva import quva
from data_prep.converters.remarks import FLAGS, REASONS
from data_prep.converters.repcount import repcount
from data_prep.converters.table import TableFormat, table
from data_prep.converters.ucfrep import ucfrep
from data_prep.files import DataError
from data_prep.schema import read_clips

MakeVideo = Callable[..., Path]
HEAD = b"type,name,count,L1,L2,L3,L4\n"
GOOD = b"squat,ok.mp4,2,30,60,60,120\n"
COUNTIX_HEAD = b"video_id,kinetics_start,kinetics_end,repetition_start,repetition_end,count\n"


@dataclass(frozen=True)
class Case:
    name: str
    content: bytes
    rejected: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    written: int = 0
    error: str = ""  # of the whole file
    reader: Callable[[list[Path]], Source] = field(default=repcount)
    file: str = "test.csv"


def row(name: str, line: bytes, **outcome: object) -> Case:
    """A bad row between two good ones of other videos: the good ones are always written."""
    content = HEAD + GOOD + line + b"\n" + GOOD.replace(b"ok", b"fine")
    written = 2 + int(outcome.pop("kept", 0))  # type: ignore[call-overload]
    return Case(name, content, written=written, **outcome)  # type: ignore[arg-type]


def own(layout: TableFormat) -> Callable[[list[Path]], Source]:
    return lambda paths: table(paths, split="test", layout=layout)


CASES = [
    # --- the file as a file
    Case("empty file", b"", error="the file is empty"),
    Case("blank lines alone", b"\n\r\n  \n", error="the file is empty, expected a header"),
    Case("header alone", HEAD, error="holds no rows"),
    Case("missing column", b"type,name,reps\nsquat,ok.mp4,2\n", error="no column 'count'"),
    Case("column twice", b"name,count,count\nok.mp4,2,3\n", error="column 'count' is there twice"),
    Case("header of bytes", b"name,count\xff\nok.mp4,2\n", error="header is not text in UTF-8"),
    Case("not a table", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", error="header is not text in UTF-8"),
    # --- ways to write a good table
    Case("byte order mark", b"\xef\xbb\xbf" + HEAD + GOOD, written=1),
    Case("CRLF", (HEAD + GOOD).replace(b"\n", b"\r\n"), written=1),
    Case("CR alone", (HEAD + GOOD).replace(b"\n", b"\r"), written=1),
    Case("no line end", (HEAD + GOOD).rstrip(), written=1),
    Case("blank lines between", HEAD + b"\n" + GOOD + b"\r\n\n", written=1),
    Case("spaces", b" type, name ,count ,L1,L2\nsquat, ok.mp4 , 1 , 30.0 ,60\n", written=1),
    Case(
        "300 columns",
        b"name,count," + b",".join(b"L%d" % i for i in range(1, 301)) + b"\nok.mp4,1,30,60"
        + b"," * 298 + b"\n",
        written=1,
    ),
    # --- the line
    row("not UTF-8", b"squat,caf\xe9.mp4,2,30,60", rejected=("not_utf8",)),
    row("300 fields", b"squat,ok2.mp4,1" + b",5" * 300, rejected=("too_many_fields",)),
    row("too few fields", b"squat,ok2.mp4", rejected=("count_empty",)),
    row("commas alone", b",,,,,,", rejected=("no_video_name",)),
    row("open quote", b'squat,"ok2.mp4,2,30,60', rejected=("bad_line",)),
    row("text after a quote", b'squat,"ok2".mp4,2,30,60', rejected=("bad_line",)),
    row("a field of a megabyte", b"squat," + b"x" * 1_000_000 + b",2", rejected=("bad_line",)),
    # --- the count
    row("empty count", b"squat,ok2.mp4,,30,60", rejected=("count_empty",)),
    row("NaN count", b"squat,ok2.mp4,NaN,30,60", rejected=("count_empty",)),
    row("text as count", b"squat,ok2.mp4,two,30,60", rejected=("count_not_a_number",)),
    row("superscript as count", "squat,ok2.mp4,²".encode(), rejected=("count_not_a_number",)),
    row("infinite count", b"squat,ok2.mp4,1e999", rejected=("count_not_a_number",)),
    row("decimal comma", b'squat,ok2.mp4,"2,0",30,60', rejected=("count_not_a_number",)),
    row("half a count", b"squat,ok2.mp4,2.5,30,60", rejected=("count_not_whole",)),
    row("negative count", b"squat,ok2.mp4,-2,30,60", rejected=("count_negative",)),
    row("count of 1e30", b"squat,ok2.mp4,1e30,30,60", rejected=("count_too_large",)),
    row("count 0", b"squat,ok2.mp4,0", kept=1, flags=("count_zero",)),
    row(
        "count 0 with marks", b"squat,ok2.mp4,0,30,60",
        kept=1, flags=("count_zero", "count_differs_from_cycles"),
    ),
    row("count, no marks", b"squat,ok2.mp4,7", kept=1, flags=("no_cycles",)),
    row(
        "count is not the marks", b"squat,ok2.mp4,3,30,60,60,90",
        kept=1, flags=("count_differs_from_cycles",),
    ),
    # --- the marks
    row("unsorted marks", b"squat,ok2.mp4,2,60,90,30,60", kept=1, flags=("unsorted_cycles",)),
    row(
        "overlapping marks", b"squat,ok2.mp4,2,30,70,60,90",
        kept=1, flags=("overlapping_cycles",),
    ),
    row(
        "zero-length mark", b"squat,ok2.mp4,2,30,60,60,60",
        kept=1, flags=("zero_length_cycles", "count_differs_from_cycles"),
    ),
    row(
        "reversed mark", b"squat,ok2.mp4,2,30,60,90,60",
        kept=1, flags=("reversed_cycles", "count_differs_from_cycles"),
    ),
    row("mark over the end", b"squat,ok2.mp4,1,270,330", kept=1, flags=("cycle_outside_clip",)),
    row(
        "mark beyond the end", b"squat,ok2.mp4,2,30,60,400,430",
        kept=1, flags=("cycle_outside_clip", "count_differs_from_cycles"),
    ),
    row("NaN mark", b"squat,ok2.mp4,1,30,60,NaN,nan", kept=1),
    row("negative frame", b"squat,ok2.mp4,1,-5,60", rejected=("bad_mark",)),
    row("text as mark", b"squat,ok2.mp4,1,30,end", rejected=("bad_mark",)),
    row("infinite mark", b"squat,ok2.mp4,1,30,inf", rejected=("bad_mark",)),
    row("a start without an end", b"squat,ok2.mp4,2,30,60,60", rejected=("half_a_cycle",)),
    row("an end without a start", b"squat,ok2.mp4,2,,60,60,90", rejected=("half_a_cycle",)),
    # --- the video
    row("no name", b"squat,,2,30,60", rejected=("no_video_name",)),
    row("../", b"squat,../secret.mp4,2", rejected=("path_traversal",)),
    row("../ inside", b"squat,a/../../secret.mp4,2", rejected=("path_traversal",)),
    row("..\\", b"squat,..\\secret.mp4,2", rejected=("path_traversal",)),
    row("absolute path", b"squat,/etc/passwd,2", rejected=("absolute_path",)),
    row("drive", b"squat,C:\\videos\\a.mp4,2", rejected=("absolute_path",)),
    row("NUL", b"squat,o\0k.mp4,2", rejected=("bad_video_name",)),
    row("name of 5000 letters", b"squat," + b"n" * 5000 + b",2", rejected=("bad_video_name",)),
    row("symlink loop", b"squat,loop.mp4,2", rejected=("symlink_loop",)),
    row("link that leaves", b"squat,leaves.mp4,2", rejected=("link_outside",)),
    row("folder", b"squat,folder.mp4,2", rejected=("not_a_file",)),
    row("fifo", b"squat,pipe.mp4,2", rejected=("not_a_file",)),
    row("dangling link", b"squat,dangling.mp4,2", rejected=("missing_video",)),
    row("no such video", b"squat,http://host/a.mp4,2", rejected=("missing_video",)),
    row("empty video", b"squat,empty.mp4,2", rejected=("unreadable_video",)),
    row("truncated video", b"squat,cut.mp4,2", rejected=("unreadable_video",)),
    row("text as video", b"squat,text.mp4,2", rejected=("unreadable_video",)),
    row("playlist as video", b"squat,playlist.mp4,2", rejected=("unreadable_video",)),
    row("the same again", b"squat,ok.mp4,2,30,60,60,120", rejected=("duplicate_row",)),
    row(
        "counts that contradict each other", b"squat,ok2.mp4,2\nsquat,ok2.mp4,3",
        rejected=("conflicting_counts",) * 2,
    ),
    # --- the frame rate of the table
    *(
        Case(f"fps {fps}", b"name,count,fps\nok.mp4,2,%s\n" % fps.encode(), rejected=("bad_fps",))
        for fps in ("0", "-30", "1e9", "thirty", "inf")
    ),
    # --- where a clip is in its video
    Case(
        "countix: end before start", COUNTIX_HEAD + b"ok,5,15,8,6,3\n",
        rejected=("bad_time",), reader=countix,
    ),
    Case(
        "countix: no start", COUNTIX_HEAD + b"ok,5,15,,6,3\n",
        rejected=("bad_time",), reader=countix,
    ),
    Case(
        "countix: 1e308", COUNTIX_HEAD + b"ok,5,15,6,1e308,3\nok,1e308,1e308,6,7,3\n",
        rejected=("bad_time", "bad_time"), reader=countix,
    ),
    Case(
        "countix: after the end", COUNTIX_HEAD + b"ok,5,15,60,70,3\n",
        rejected=("outside_video",), reader=countix,
    ),
    Case(
        "countix: before the clip", COUNTIX_HEAD + b"ok,5,15,1,4,3\nok,5,15,4,8,3\n",
        rejected=("outside_video",), flags=("clip_outside_video",), written=1,
        reader=countix,
    ),
    Case(
        "ucfrep: frame 0 where frames count from 1",
        b"name,counts,start_frame,end_frame,L1,L2\nok.mp4,1,0,90,1,30\nfine.mp4,1,1,90,0,30\n",
        rejected=("bad_time", "bad_mark"), reader=ucfrep,
    ),
    Case(
        "ucfrep: a part of no length",
        b"name,counts,start_frame,end_frame\nok.mp4,1,50,49\n",
        rejected=("bad_time",), reader=ucfrep,
    ),
    # --- JSON
    Case("json: empty", b"", error="the file is empty", reader=ovr, file="a.json"),
    Case("json: broken off", b'[{"video_id": "ok", "ovr', error="not JSON", reader=ovr,
         file="a.json"),
    Case("json: nested without end", b"[" * 100_000, error="not JSON", reader=ovr, file="a.json"),
    Case("json: no rows", b"[]", error="holds no rows", reader=ovr, file="a.json"),
    Case(
        "json: other shapes", b'[1, "x", null, [], {"video_id": "ok"}, '
        b'{"video_id": "ok", "ovr_annotations": [7]}]',
        rejected=("no_annotations",) * 5 + ("bad_annotation",), reader=ovr, file="a.json",
    ),
    Case(
        "json: values", b'[{"video_id": "ok", "ovr_annotations": ['
        b'{"count": true, "start_time": 0, "end_time": 1, "split": "train"},'
        b'{"count": null, "start_time": 0, "end_time": 1, "split": "train"},'
        b'{"count": NaN, "start_time": 0, "end_time": 1, "split": "train"},'
        b'{"count": 1' + b"0" * 400 + b', "start_time": 0, "end_time": 1, "split": "train"},'
        b'{"count": [2], "start_time": 0, "end_time": 1, "split": "train"},'
        b'{"count": 2, "start_time": {}, "end_time": 1, "split": "train"},'
        b'{"count": 2, "start_time": 0, "end_time": 1, "split": "holdout"},'
        b'{"count": 2, "start_time": 0, "end_time": 1, "split": "train", "description": "\\ud800"}'
        b"]}]",
        rejected=("count_not_a_number", "count_empty", "count_empty", "count_not_a_number",
                  "count_not_a_number", "bad_time", "unknown_split", "not_utf8"),
        reader=ovr, file="a.json",
    ),
    Case(
        "jsonl: lines", b'{"video_id": "ok", "split": "test", "gt_count": 2}\n'
        b'{"video_id": "fine", "split": "test", "gt_count": 2\n'  # broken off
        b'["video_id"]\n'
        b'{"video_id": "fine", "split": "test", "gt_count": "caf\xe9"}\n'
        b'{"video_id": "f\\ud800", "split": "test", "gt_count": 2}\n'
        b'{"video_id": "../fine", "split": "test", "ground_truth": {"count": 2}}\n'
        b'{"video_id": "fine", "split": "test", "ground_truth": "2"}\n'
        b'{"video_id": "fine", "split": "test", "gt_count": ' + b"9" * 5000 + b"}\n",
        rejected=("bad_line", "bad_line", "not_utf8", "bad_video_name", "path_traversal",
                  "count_empty", "bad_line"),
        written=1, reader=actrep, file="a.jsonl",
    ),
    # --- conversations; test_chat_rows has what each is about
    Case(
        "chat: rows", b'[7, {"messages": [], "videos": ["ok.mp4"]},'
        b'{"messages": [{"role": "user", "content": "?"}, '
        b'{"role": "assistant", "content": "<answer>many</answer>"}], "videos": ["ok.mp4"]},'
        b'{"messages": [{"role": "user", "content": "?"}, '
        b'{"role": "assistant", "content": "<answer>2</answer>"}], "videos": 5}]',
        rejected=("bad_line", "no_conversation", "no_count", "not_one_video"),
        reader=lambda paths: chat(paths, videos=Path(), split="test"), file="a.json",
    ),
    # --- marks in one cell
    Case(
        "cell of marks", b"video,count,cycles\n"
        b'ok.mp4,1,"[[1, 2]"\nok.mp4,1,1 to 2\nok.mp4,1,"[1, 2]"\nok.mp4,1,[[[1]]]\n'
        b"ok.mp4,1,1-nan\nok.mp4,1,-1-2\n" + b'ok.mp4,1,"' + b"[" * 50_000 + b'"\n',
        rejected=(*("bad_mark",) * 4, "half_a_cycle", "bad_mark", "bad_mark"),
        reader=own(TableFormat()),
    ),
    # --- binary annotations
    Case("npy: text", b"13 26 40", rejected=("bad_annotation",), reader=quva, file="ok.npy"),
    Case("npy: cut", b"\x93NUMPY\x01\0v\0{'descr'", rejected=("bad_annotation",), reader=quva,
         file="ok.npy"),
    Case("mat: text", b"13 26 40" * 40, rejected=("bad_annotation",),
         reader=lambda paths: ucfrep(paths, split="test"), file="v_A_g01_c01.mat"),
    Case("mat: version 7.3", b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + b"\x89HDF" * 99,
         rejected=("bad_annotation",), reader=lambda paths: ucfrep(paths, split="test"),
         file="v_A_g01_c01.mat"),
]  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("videos")
    for name in ("ok.mp4", "ok2.mp4", "fine.mp4"):
        make_video(folder / name, 30, 300)
    make_video(folder.parent / "secret.mp4", 30, 300)
    (folder / "loop.mp4").symlink_to(folder / "pool.mp4")
    (folder / "pool.mp4").symlink_to(folder / "loop.mp4")
    (folder / "leaves.mp4").symlink_to("../secret.mp4")
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes((folder / "ok.mp4").read_bytes()[:300])
    (folder / "text.mp4").write_text("this is no video\n" * 99)
    (folder / "playlist.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    yield folder
    (folder.parent / "secret.mp4").unlink()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_malformed_input_has_its_outcome(case: Case, videos: Path, tmp_path: Path) -> None:
    path = tmp_path / case.file
    path.write_bytes(case.content)
    out = tmp_path / "out"
    if case.error:
        with pytest.raises(DataError, match=case.error):
            convert(case.reader([path]), videos=videos, out=out)
        assert not list(out.glob("*"))
        return
    summary = convert(case.reader([path]), videos=videos, out=out, allow_missing=True)
    assert summary.rejected == Counter(case.rejected)
    assert summary.flags == Counter(case.flags)
    assert summary.num_written == case.written
    assert summary.num_read == summary.num_written + summary.num_rejected
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in rejected] == list(case.rejected)
    assert all(line["detail"] and line["source"] == case.file for line in rejected)
    assert len(list(read_clips(out / "clips.jsonl", allow_outside=["/"]))) == case.written


def test_there_are_more_than_forty_and_every_reason_and_flag_is_among_them() -> None:
    assert len(CASES) > 40
    assert len({case.name for case in CASES}) == len(CASES)
    assert {reason for case in CASES for reason in case.rejected} == set(REASONS)
    assert {flag for case in CASES for flag in case.flags} == set(FLAGS) - {
        "fps_differs_from_video",  # see test_sets
        "conflicting_counts",  # see test_same_clips
    }


@given(st.binary(max_size=300))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_in_a_row_are_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, videos: Path, line: bytes
) -> None:
    folder = tmp_path_factory.mktemp("row")
    (folder / "test.csv").write_bytes(HEAD + b"squat,ok.mp4," + line + b"\n" + GOOD)
    source = repcount([folder / "test.csv"])
    summary = convert(source, videos=videos, out=folder, allow_missing=True)
    assert summary.num_read == summary.num_written + summary.num_rejected >= 2
    assert len(list(read_clips(folder / "clips.jsonl", allow_outside=["/"]))) == summary.num_written


def spoiled(content: bytes) -> Iterator[bytes]:
    """A file cut off at many places, and with single bytes changed."""
    random = np.random.default_rng(0)
    for length in range(1, len(content), max(1, len(content) // 40)):
        yield content[:length]
    for position in random.integers(0, len(content), 150):
        changed = bytearray(content)
        changed[position] ^= 1 << int(random.integers(8))
        yield bytes(changed)


def test_a_mat_file_that_unpacks_to_too_much_is_a_rejected_row(
    videos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "annotations" / "train"
    folder.mkdir(parents=True)
    label = {"start_frame": 1.0, "end_frame": 20.0, "temporal_bound": np.array([1.0, 9.0, 20.0])}
    path = folder / "v_A_g01_c01.mat"
    savemat(path, {"label": label, "padding": np.zeros(3 << 20)}, do_compression=True)
    assert path.stat().st_size < 100_000
    (record,) = ucfrep([folder.parent]).records
    assert record.problem is not None
    assert str(record.problem.detail) == f"{path.name}: unpacks to more than 16,777,216 bytes"


def test_a_spoiled_mat_file_is_a_rejected_row(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "test"
    folder.mkdir()
    bound = np.array([[1], [30], [60]])
    label = {"start_frame": 1, "end_frame": 60, "temporal_bound": bound}
    good = tmp_path / "good.mat"
    savemat(good, {"label": label}, do_compression=True)
    for number, content in enumerate(spoiled(good.read_bytes())):
        (folder / f"v_A_g01_c{number:03d}.mat").write_bytes(content)
    summary = convert(ucfrep([folder]), videos=videos, out=tmp_path, allow_missing=True)
    assert summary.num_read == summary.num_rejected == number + 1
    assert set(summary.rejected) <= {"bad_annotation", "bad_mark", "bad_time", "missing_video"}


def test_a_spoiled_npy_file_is_a_rejected_row(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    good = tmp_path / "good.npy"
    np.save(good, np.array([13, 26, 40]))
    for number, content in enumerate(spoiled(good.read_bytes())):
        (folder / f"{number:03d}_x.npy").write_bytes(content)
    huge = good.read_bytes().replace(b"(3,), }", b"(3000000000000,), }"[:19])
    (folder / "998_huge.npy").write_bytes(huge)
    np.save(folder / "999_object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    summary = convert(quva([tmp_path]), videos=videos, out=tmp_path, allow_missing=True)
    assert summary.num_read == summary.num_rejected == number + 3
    assert set(summary.rejected) <= {"bad_annotation", "bad_mark", "missing_video"}


def test_a_box_that_lies_about_its_size_is_no_trap(videos: Path, tmp_path: Path) -> None:
    good = (videos / "ok.mp4").read_bytes()
    position = good.index(b"tkhd") - 4
    for size in (0, 1, 7, 8, 20, 0xFFFFFFFF):
        folder = tmp_path / str(size)
        folder.mkdir()
        changed = bytearray(good)
        changed[position : position + 4] = struct.pack(">I", size)
        (folder / "ok.mp4").write_bytes(changed)
        (folder / "test.csv").write_bytes(HEAD + GOOD)
        summary = convert(repcount([folder / "test.csv"]), videos=folder, out=folder)
        assert summary.num_read == summary.num_written + summary.num_rejected == 1

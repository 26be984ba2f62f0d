"""The canonical line of a clip: what is read back, and what a bad row is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.files import DataError
from data_prep.schema import Clip, parse_clip, read_clips, write_clips

CLIP = Clip(
    id="a",
    dataset="test",
    split="train",
    video="videos/a.mp4",
    start_s=0.0,
    end_s=6.0,
    video_fps=12.0,
    num_frames=72,
    width=64,
    height=64,
    action="squat",
    count=2,
    cycles=((0.5, 1.5), (1.5, 3.0)),
    cycles_source="synthetic",
    flags=("checked",),
)


def row(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(CLIP.to_json())
    return values | changes


def test_what_was_written_is_read_with_videos_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    assert write_clips(path, [CLIP, replace(CLIP, id="b", split="test")]) == 2
    first, second = read_clips(path)
    assert first == replace(CLIP, video=str(tmp_path / "videos/a.mp4"))
    assert second.id == "b"
    assert [clip.id for clip in read_clips(path, split="test")] == ["b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["clips.jsonl"]


def test_a_line_of_a_text_editor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + CLIP.to_json().encode() + b"\r\n\r\n")
    assert len(list(read_clips(path))) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": -1}, "count=-1, expected an integer of at least 0"),
        ({"count": 2.0}, "count=2.0, expected an integer"),
        ({"count": True}, "count=True, expected an integer"),
        ({"start_s": "0"}, "start_s='0', expected a finite number"),
        ({"end_s": float("nan")}, "end_s=nan, expected a finite number"),
        ({"end_s": 0.0}, "expected 0 <= start_s < end_s"),
        ({"split": "val"}, "split='val', expected one of train, validation, test"),
        ({"video": ""}, "video='', expected a non-empty string"),
        ({"cycles": [[1.0]]}, r"cycles\[0\]=\[1.0\], expected \[start_s, end_s\]"),
        ({"cycles": [[1.0, None]]}, r"cycles\[0\]=None, expected a finite number"),
        ({"cycles": "no"}, "cycles='no', expected a list"),
        ({"video_fps": 0}, "video_fps=0.0, expected a number above 0"),
        ({"coutn": 3}, "unknown key 'coutn'"),
    ],
)
def test_a_bad_value_is_named_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^here: .*{message}"):
        parse_clip(row(**changes), "here")


def test_a_missing_key_is_named() -> None:
    values = row()
    del values["action"]
    with pytest.raises(DataError, match="here: key 'action' is missing"):
        parse_clip(values, "here")


def test_errors_of_a_file_name_its_line(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    path.write_text(CLIP.to_json() + "\n\n{not json\n")
    with pytest.raises(DataError, match=r"clips\.jsonl:3: not JSON"):
        list(read_clips(path))
    path.write_text(CLIP.to_json() + "\n" + CLIP.to_json() + "\n")
    with pytest.raises(DataError, match=r"clips\.jsonl:2: id='a' was used in line 1 already"):
        list(read_clips(path))
    with pytest.raises(DataError, match="no such file"):
        list(read_clips(tmp_path / "absent.jsonl"))


TIMES = st.floats(0, 1e4, allow_nan=False)
TEXT = st.text().filter(lambda text: "\0" not in text)


@given(
    count=st.integers(0, 10**6),
    start=TIMES,
    length=st.floats(1e-3, 1e4),
    cycles=st.none() | st.lists(st.tuples(TIMES, TIMES), max_size=5).map(tuple),
    action=TEXT.filter(bool),
    flags=st.lists(TEXT, max_size=3).map(tuple),
)
def test_any_clip_survives_its_line(
    count: int, start: float, length: float, cycles: Any, action: str, flags: tuple[str, ...]
) -> None:
    clip = replace(
        CLIP,
        count=count,
        start_s=start,
        end_s=start + length,
        cycles=cycles,
        action=action,
        flags=flags,
    )
    assert parse_clip(json.loads(clip.to_json()), "here") == clip

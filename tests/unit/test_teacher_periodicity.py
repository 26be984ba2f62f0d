"""The teacher that looks for cycles: what it found outlives a stop; a log shows how far it is."""

import json
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from actrep_ray.cli.main import main
from data_prep.periodicity.detector import Detection, detect_cycles
from data_prep.schema import Clip, read_clips, write_clips
from data_prep.shown import ShownImage
from data_prep.teachers.journal import Journal
from data_prep.teachers.periodicity import found_path, propose_answers, pseudo_labels
from data_prep.video_writer import encode_mp4

COUNT, PERIOD_S, FPS = 4, 1.0, 15


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Three files of a square that goes down and up four times."""
    duration_s = COUNT * PERIOD_S + 1.0
    times = np.arange(int(duration_s * FPS)) / FPS
    phase = np.clip((times - 0.5) / PERIOD_S, 0.0, COUNT)
    tops = (4 + 16 * (0.5 - 0.5 * np.cos(2 * np.pi * phase))).round().astype(int)
    frames = np.full((len(times), 32, 32, 3), 40, np.uint8)
    for frame, top in zip(frames, tops, strict=True):
        frame[top : top + 8, 12:20] = 220
    made = []
    for name in ("a", "b", "c"):
        path = tmp_path / f"{name}.mp4"
        encode_mp4(path, frames, FPS)
        made.append(
            Clip(
                *(name, "set", "train", str(path), 0.0, duration_s, float(FPS), len(frames)),
                *(32, 32, "squat", COUNT),
            )
        )
    return made


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the clips that the detector looks at."""
    seen: list[str] = []

    def look(clip: Clip) -> Detection:
        seen.append(clip.id)
        return detect_cycles(clip)

    monkeypatch.setattr("data_prep.teachers.periodicity.detect_cycles", look)
    return seen


def test_a_run_that_is_stopped_goes_on_where_it_was(
    clips: list[Clip], looked_at: list[str], tmp_path: Path
) -> None:
    path = found_path(tmp_path / "cot.jsonl")
    with Journal(path) as journal:
        first = list(islice(propose_answers(clips, journal=journal), 2))
    assert looked_at == ["a", "b"]
    with Journal(path) as journal:
        again = list(propose_answers(clips, journal=journal))
    assert looked_at == ["a", "b", "c"]
    assert again[:2] == first
    assert [one.clip.cycles == detect_cycles(one.clip).cycles for one in again] == [True] * 3
    with Journal(path) as journal:  # another count is judged anew, without another look
        other = list(propose_answers([Clip(**{**vars(clips[0]), "count": 9})], journal=journal))
    assert looked_at == ["a", "b", "c"]
    assert other[0].reason == "count_differs"


def test_another_file_or_detector_is_looked_at_anew(
    clips: list[Clip], looked_at: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = found_path(tmp_path / "cot.jsonl")
    with Journal(path) as journal:
        list(propose_answers(clips[:1], journal=journal))
        encode_mp4(Path(clips[0].video), np.zeros((75, 32, 32, 3), np.uint8), FPS)
        assert next(propose_answers(clips[:1], journal=journal)).reason == "count_differs"
        monkeypatch.setattr("data_prep.teachers.periodicity.VERSION", -1)
        list(propose_answers(clips[:1], journal=journal))
    assert looked_at == ["a", "a", "a"]


def test_a_log_shows_how_far_it_is(
    clips: list[Clip], looked_at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "clips.jsonl", tmp_path / "out" / "cot.jsonl"
    write_clips(data, clips)
    command = ["cot", str(data), "--teacher", "periodicity", "--out", str(out)]
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "looking 1/3 accepted 1 left" in told
    assert "looking 3/3 accepted 3 left" in told
    assert main([*command, "--overwrite"]) == 0
    assert looked_at == ["a", "b", "c"]
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 3


@pytest.mark.lengthy
def test_processes_share_many_clips_and_tell_them_in_order(
    clips: list[Clip], tmp_path: Path
) -> None:
    """What a stop leaves undone is done by the next run, the rest is not looked at again."""
    gone = replace(clips[0], id="gone", video=str(tmp_path / "gone.mp4"))
    many = [replace(clips[i % 3], id=f"clip-{i}") for i in range(10)] + [gone]
    alone = list(pseudo_labels(many, num_processes=1))
    path = found_path(tmp_path / "out.jsonl")
    with Journal(path) as journal:
        stopped = islice(pseudo_labels(many, journal=journal, num_processes=2), 3)
        assert list(stopped) == alone[:3]
    assert len(path.read_text().splitlines()) == 3
    with Journal(path) as journal:
        assert list(pseudo_labels(many, journal=journal, num_processes=2)) == alone
    assert len(path.read_text().splitlines()) == 10
    assert [one.reason for one in alone] == [""] * 10 + ["unreadable_video"]


# --- labels of the detector for videos that have none


def test_a_pseudo_label_is_the_detectors_count_whatever_the_clips_say(clips: list[Clip]) -> None:
    wrong = replace(clips[0], count=9, cycles=((0.0, 1.0),), flags=("kept",))
    [label] = pseudo_labels([wrong])
    assert label.clip is not None
    assert label.clip.count == len(label.clip.cycles or ()) == COUNT
    assert label.clip.cycles_source == "periodicity"
    assert label.clip.flags == ("kept", "pseudo_label")


def test_videos_of_a_folder_are_labelled_or_listed_by_reason(
    clips: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.mp4").write_text("no video")
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).write_text("no video")
    tops = [4] * 20 + [*range(4, 24, 2), *range(24, 4, -2)] + [4] * 20  # one event
    once = np.full((60, 32, 32, 3), 40, np.uint8)
    for frame, top in zip(once, tops, strict=True):
        frame[top : top + 8, 12:20] = 220
    encode_mp4(tmp_path / "once.mp4", once, FPS)
    encode_mp4(tmp_path / "long.mp4", np.zeros((FPS * 7, 32, 32, 3), np.uint8), FPS)
    out = tmp_path / "clips.jsonl"
    given = [str(tmp_path), "--out", str(out), "--longest", "6", "--action", "squat"]
    assert main(["prepare", "pseudo-labels", *given]) == 0
    found = list(read_clips(out))
    assert [clip.id for clip in found] == ["a.mp4", "b.mp4", "c.mp4"]
    assert {(clip.count, clip.action, clip.split) for clip in found} == {(COUNT, "squat", "train")}
    listed = (tmp_path / "clips.jsonl.left_out.jsonl").read_text().splitlines()
    left = [json.loads(line) for line in listed]
    assert {row["id"]: row["reason"] for row in left} == {
        "no.mp4": "unreadable_video",
        "once.mp4": "not_sure",
        "long.mp4": "too_long",
        r"caf\udce9.mp4": "unreadable_name",
    }
    told = capsys.readouterr().out
    assert "the detector's count of 3 of 7 clips" in told
    assert main(["prepare", "pseudo-labels", *given]) == 2  # the file is there


def test_images_before_clips_move_with_them(
    clips: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = ShownImage("ready.png", 32, 32)
    data = tmp_path / "clips.jsonl"
    write_clips(data, [replace(clips[0], images=(ready,))])
    labelled, marked = tmp_path / "labelled.jsonl", tmp_path / "marked.jsonl"
    assert main(["prepare", "pseudo-labels", str(data), "--out", str(labelled)]) == 0
    assert "allow_outside" not in capsys.readouterr().out
    command = ["cot", str(data), "--teacher", "periodicity", "--out", str(tmp_path / "cot.jsonl")]
    assert main([*command, "--clips-out", str(marked)]) == 0
    for path in (labelled, marked):
        [row] = [json.loads(line) for line in path.read_text().splitlines()]
        assert (row["video"], row["images"][0]["image"]) == ("a.mp4", "ready.png")


def test_nothing_that_can_be_labelled_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.mp4").write_text("no video")
    out = tmp_path / "clips.jsonl"
    assert main(["prepare", "pseudo-labels", str(tmp_path), "--out", str(out)]) == 2
    assert "count of 0 of 1 clips" in capsys.readouterr().out

"""Frames that a leap gives are compared with a pass through the file."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.schema import Clip, write_clips
from data_prep.validation.validate import Decoding, validate_file
from data_prep.validation.video_facts import VideoFacts, VideoTask, check_video
from data_prep.validation.view import View
from data_prep.video import Video, clip_of_video
from tests.unit.video.coded import Kind, write_coded

OPEN = (("preset", "fast"), ("x264-params", "open-gop=1:scenecut=0:keyint=15"))
CLOSED = (("preset", "fast"), ("x264-params", "open-gop=0:scenecut=0:keyint=15"))
FAR_APART = (0.0, 2.0, 4.0, 6.0)
VIEW = View(
    fps=4.0,
    min_frames=4,
    max_frames=64,
    min_pixels=1024,
    max_pixels=4096,
    factor=32,
    frames_per_patch=2,
    max_visual_tokens=None,
)


@pytest.fixture(scope="module")
def open_gop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("risky") / "open.mp4"
    write_coded(path, Kind(options=OPEN, num_b=3), num_frames=200)
    return path


def test_a_leap_in_a_risky_file_is_compared_and_right(open_gop: Path) -> None:
    with Video(open_gop) as video:
        list(video.frames_at(FAR_APART))
        assert (video.probe.is_risky, video.num_seeks) == (True, 3)
    facts = check_video(VideoTask(str(open_gop), FAR_APART))
    assert (facts.num_decoded, facts.num_wrong) == (4, 0)


class _Mistaken(Video):
    """A reader that gives the third frame for the second."""

    def frames_at(self, times_s: Sequence[float]) -> Iterator[np.ndarray]:
        images = list(super().frames_at(times_s))
        yield from [images[0], images[2], *images[2:]]


def test_other_frames_are_counted(open_gop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.validation.video_facts.Video", _Mistaken)
    assert check_video(VideoTask(str(open_gop), FAR_APART)).num_wrong == 1


def test_any_file_is_compared_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.validation.video_facts.Video", _Mistaken)
    path = tmp_path / "closed.mp4"
    write_coded(path, Kind(options=CLOSED), num_frames=100)
    times = (0.0, 0.5, 1.0, 1.5)
    assert check_video(VideoTask(str(path), times)).num_wrong == 0  # not looked for
    assert check_video(VideoTask(str(path), times, is_deep=True)).num_wrong == 1


def mistaken(task: VideoTask) -> VideoFacts:
    return replace(check_video(task), num_wrong=3)


def test_wrong_frames_are_an_error_of_the_row(open_gop: Path, tmp_path: Path) -> None:
    clip: Clip = replace(clip_of_video(open_gop), id="a", cycles=None, count=2)
    write_clips(tmp_path / "clips.jsonl", [clip])
    report = validate_file(
        tmp_path / "clips.jsonl", VIEW, Decoding(1, 60.0, check=mistaken), allow_outside=("/",)
    )
    (finding,) = [f for f in report.findings if f.kind == "wrong_frames"]
    assert (finding.level, finding.key) == ("error", "video")
    assert "3 of 32 frames" in finding.value

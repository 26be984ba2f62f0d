"""A folder of frames is a clip: in natural order, at the rate of its row."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actrep_ray.media.frame_cache import FrameCache
from data_prep.rows import write_rows
from data_prep.schema import Clip
from data_prep.shown import ShownImage
from data_prep.validation.validate import Decoding, validate_file
from data_prep.video import (
    FileState,
    FramePlan,
    VideoError,
    check_videos,
    frames_of_folder,
    plan_frames,
    probe,
    read_frames,
)
from data_prep.video.reader import read_luma
from tests.unit.test_schema import CLIP
from tests.unit.test_validate import VIEW

FPS = 5.0


def make_folder(path: Path, num: int = 12, size: tuple[int, int] = (32, 64)) -> Path:
    """Frames of one grey each, 20 i, called so that the alphabet's order is another one."""
    path.mkdir(parents=True)
    for i in range(num):
        Image.new("RGB", size[::-1], (20 * i,) * 3).save(path / f"frame{i}.png")
    (path / "notes.txt").write_text("not a frame")
    return path


def clip_of(folder: Path, num: int = 12) -> Clip:
    return replace(
        CLIP, video=str(folder), start_s=0.0, end_s=num / FPS, video_fps=FPS, num_frames=num,
        width=64, height=32, count=0, cycles=None, cycles_source=None, split="train",
    )  # fmt: skip


def plan_of(clip: Clip, fps: float = 2.0, state: FileState | None = None) -> FramePlan:
    return plan_frames(
        clip, state, fps=fps, min_frames=1, max_frames=64, min_pixels=1024, max_pixels=4096,
        factor=32,
    )  # fmt: skip


def test_frames_are_in_natural_order(tmp_path: Path) -> None:
    found = [path.name for path in frames_of_folder(make_folder(tmp_path / "a"))]
    assert found == [f"frame{i}.png" for i in range(12)]


def test_the_frame_of_a_second_follows_from_the_rate(tmp_path: Path) -> None:
    clip = clip_of(make_folder(tmp_path / "a"))
    plan = plan_of(clip)
    assert plan.times_s == (0.0, 0.5, 1.0, 1.5)
    # At 5 a second: frames 0, 2 (0.4 to 0.6 s), 5 and 7.
    assert read_frames(plan)[:, 0, 0, 0].tolist() == [0, 40, 100, 140]
    assert read_luma(plan)[:, 0, 0].tolist() == [0, 40, 100, 140]
    turned = replace(plan, times_s=plan.times_s[::-1])
    assert read_frames(turned)[:, 0, 0, 0].tolist() == [140, 100, 40, 0]
    window = plan_of(replace(clip, start_s=1.0), fps=5.0)
    assert read_frames(window)[:, 0, 0, 0].tolist() == [100, 120, 140, 160, 180, 200, 220]
    slow = replace(plan, folder_fps=1.0)
    assert read_frames(slow)[:, 0, 0, 0].tolist() == [0, 0, 20, 20]


def test_hidden_files_are_no_frames(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a")
    for i in range(12):
        (folder / f"._frame{i}.png").write_bytes(b"what macOS puts beside a file")
    check_videos([clip_of(folder)])
    assert read_frames(plan_of(clip_of(folder)))[:, 0, 0, 0].tolist() == [0, 40, 100, 140]


@pytest.mark.parametrize("read", [read_frames, read_luma])
def test_one_frame_is_held_at_a_time(
    tmp_path: Path, read: Callable[[FramePlan], np.ndarray]
) -> None:
    size = 240, 320
    folder = make_folder(tmp_path / "a", size=size)
    clip = replace(clip_of(folder), height=size[0], width=size[1])
    plan = plan_of(clip, fps=FPS)
    read(plan)  # what is imported, is
    tracemalloc.start()
    shown = read(plan)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shown.reshape(12, -1)[:, 0].tolist() == [20 * i for i in range(12)]
    # One as it is decoded and as an array, and the one before: not twelve.
    assert peak < 4.5 * size[0] * size[1] * 3 + shown.nbytes


def test_it_goes_through_the_cache_of_videos(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache", 2**20)
    folder = make_folder(tmp_path / "a")
    clip = clip_of(folder)
    plan = plan_of(clip)
    first = cache.get(plan)
    np.testing.assert_array_equal(cache.get(plan), first)
    assert (cache.num_decoded, cache.num_hits) == (1, 1)
    slower = cache.get(plan_of(replace(clip, video_fps=4.0)))  # other frames at these seconds
    assert slower[:, 0, 0, 0].tolist() == [0, 40, 80, 120]
    Image.new("RGB", (64, 32), "white").save(folder / "frame0.png")  # a frame, not the folder
    assert plan_of(clip).hash != plan.hash
    assert cache.get(plan_of(clip))[0, 0, 0, 0] == 255
    Image.new("RGB", (64, 32), "red").save(folder / "frame0.png")
    with pytest.raises(VideoError, match=r"a: has changed since its frames were planned"):
        FrameCache(tmp_path / "other", 2**20).get(plan)


@pytest.mark.parametrize("change", ["empty", "short", "size", "cut", "link", "rate"])
def test_what_is_no_clip_is_told_by_folder_and_row(tmp_path: Path, change: str) -> None:
    folder = make_folder(tmp_path / "a")
    clip = replace(clip_of(folder), id="c7")
    check_videos([clip])
    if change == "rate":  # frames for 2.4 s at 5 a second, not for 12 s at 1
        with pytest.raises(VideoError, match=r"ends after 1\.200 s \(12 frames at 10 a second\)"):
            read_frames(plan_of(replace(clip, video_fps=10.0)))
        return
    last = folder / "frame11.png"
    if change == "empty":
        for path in folder.iterdir():
            path.unlink()
        told = r"a: a folder without frames, expected images \(\.bmp, .*\[clip 'c7'\]"
    elif change == "short":
        last.unlink()
        told = r"a: holds 11 frames, its row says num_frames=12 \[clip 'c7'\]"
    elif change == "link":
        last.unlink()
        last.symlink_to(folder / "frame0.png")
        told = r"a: frame11\.png is a link or a folder, expected an image \[clip 'c7'\]"
    elif change == "size":
        clip = replace(clip, width=32)
        told = r"frame0\.png: is 64x32 pixels, its row says 32x32 \[clip 'c7'\]"
    else:
        last.write_bytes(last.read_bytes()[:40])
        with pytest.raises(VideoError, match=r"frame11\.png: cannot be"):
            read_frames(plan_of(clip, fps=5.0))
        return
    with pytest.raises(VideoError, match=told):
        check_videos([clip])
    if change == "empty":
        with pytest.raises(VideoError, match=r"a folder without frames.*clip 'c7'"):
            plan_of(clip)


def test_frames_of_two_sizes_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a")
    Image.new("RGB", (32, 32)).save(folder / "frame5.png")
    with pytest.raises(VideoError, match=r"frame5\.png: is 32x32 pixels, other frames are 64x32"):
        read_frames(plan_of(clip_of(folder)))


def test_a_video_file_is_still_asked_for_where_no_rate_is_stated(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="a folder, expected a video file"):
        probe(make_folder(tmp_path / "a"))


def test_a_folder_is_validated_as_a_video_is(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "videos" / "a")
    clips = [
        replace(clip_of(folder), id=name, video="videos/a", action=name)
        for name in ("whole", "short")
    ]
    clips[1] = replace(clips[1], num_frames=14)
    write_rows(tmp_path / "clips.jsonl", clips)
    report = validate_file(tmp_path / "clips.jsonl", VIEW, Decoding(1, 30.0))
    assert (report.num_videos, report.num_videos_checked) == (1, 1)
    assert [(one.clip_id, one.kind, one.expected) for one in report.findings] == [
        ("short", "num_frames_differs", "12 as in the video")
    ]
    for path in folder.iterdir():
        path.unlink()
    report = validate_file(tmp_path / "clips.jsonl", VIEW, Decoding(1, 30.0))
    assert {one.kind for one in report.findings} == {"unreadable_video"}


def test_images_before_a_clip_are_validated(tmp_path: Path) -> None:
    make_folder(tmp_path / "a")
    shown = tuple(ShownImage(f"a/frame{i}.png", 64, 32) for i in (0, 1))
    clip = replace(clip_of(tmp_path / "a"), video="a", action="wave", images=shown)
    write_rows(tmp_path / "clips.jsonl", [clip])
    assert not validate_file(tmp_path / "clips.jsonl", VIEW, Decoding(1, 30.0)).findings
    outside = ShownImage("../b.png", 64, 32)
    missing = ShownImage("c.png", 64, 32)
    wrong = replace(shown[0], width=63)
    write_rows(tmp_path / "clips.jsonl", [replace(clip, images=(outside, missing, wrong))])
    report = validate_file(tmp_path / "clips.jsonl", VIEW, Decoding(1, 30.0))
    assert [(one.kind, one.key, one.level) for one in report.findings] == [
        ("path_outside_folder", "images[0].image", "error"),
        ("unreadable_video", "images[1].image", "error"),
        ("size_differs", "images[2].width", "warning"),
    ]

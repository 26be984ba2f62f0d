"""The frame plan by hand, and the frames that are decoded by it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_prep.schema import Clip
from data_prep.video import (
    FramePlan,
    Video,
    VideoError,
    check_videos,
    clip_of_video,
    fit_size,
    plan_frames,
    probe,
    read_frames,
)
from data_prep.video_writer import encode_mp4

FPS, NUM_FRAMES, SIZE = 12, 60, 64
LIMITS = {"min_frames": 4, "max_frames": 256, "min_pixels": 1024, "max_pixels": 1024}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """Five seconds in which frame i has the grey value 4 i."""
    path = tmp_path_factory.mktemp("videos") / "grey.mp4"
    values = (4 * np.arange(NUM_FRAMES)).astype(np.uint8)
    frames = np.broadcast_to(values[:, None, None, None], (NUM_FRAMES, SIZE, SIZE, 3))
    encode_mp4(path, np.ascontiguousarray(frames), FPS)
    return clip_of_video(path)


def plan_of(clip: Clip, *, fps: float, **limits: int) -> FramePlan:
    return plan_frames(clip, fps=fps, factor=32, **(LIMITS | limits))


def test_a_clip_of_a_file_spans_it(clip: Clip) -> None:
    assert (clip.num_frames, clip.width, clip.height) == (NUM_FRAMES, SIZE, SIZE)
    assert (clip.video_fps, clip.start_s, clip.end_s) == (FPS, 0.0, 5.0)


def test_frames_lie_at_the_rate_from_the_start_of_the_clip(clip: Clip) -> None:
    plan = plan_of(clip, fps=4)
    assert plan.times_s == tuple(i / 4 for i in range(20))
    assert plan.timestamps_s[:3] == (0.0, 0.25, 0.5)
    part = plan_of(replace(clip, start_s=1.0, end_s=3.0), fps=2)
    assert part.times_s == (1.0, 1.5, 2.0, 2.5)
    assert part.timestamps_s == (0.0, 0.5, 1.0, 1.5)  # of the clip, not of the file


def test_limits_spread_the_frames_and_say_at_what_rate(clip: Clip) -> None:
    few = plan_of(clip, fps=4, max_frames=5)
    assert (few.times_s, few.fps) == ((0.0, 1.0, 2.0, 3.0, 4.0), 1.0)
    many = plan_of(replace(clip, end_s=0.5), fps=2, min_frames=4)
    assert (many.num_frames, many.fps) == (4, 8.0)


def test_decoded_frames_are_those_of_the_plan(clip: Clip) -> None:
    plan = plan_of(replace(clip, start_s=0.5, end_s=4.5), fps=3)
    frames = read_frames(plan)
    assert frames.shape == (12, 32, 32, 3)
    assert frames.dtype == np.uint8
    expected = 4 * FPS * np.array(plan.times_s)
    assert np.abs(frames.mean(axis=(1, 2, 3)) - expected).max() < 3  # H.264 is lossy


def test_frames_come_in_the_order_of_the_plan(clip: Clip) -> None:
    plan = plan_of(clip, fps=2)
    backwards = replace(plan, times_s=plan.times_s[::-1])
    np.testing.assert_array_equal(read_frames(backwards), read_frames(plan)[::-1])


def test_a_plan_has_a_name_that_follows_all_of_it(clip: Clip) -> None:
    plan = plan_of(clip, fps=4)
    assert plan.hash == plan_of(clip, fps=4).hash
    others = [
        plan_of(clip, fps=2),
        plan_of(replace(clip, end_s=4.0), fps=4),
        plan_of(clip, fps=4, max_pixels=4096, min_pixels=4096),
        replace(plan, num_bytes=plan.num_bytes + 1),
    ]
    assert len({plan.hash, *(other.hash for other in others)}) == 5


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (64, 64, (32, 32)),  # 1024 pixels: shrunk to the budget
        (48, 96, (32, 32)),  # 0.7 of 32 is not a multiple: the smallest side is one factor
        (240, 320, (32, 32)),
    ],
)
def test_size_within_the_smallest_budget(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    assert fit_size(height, width, factor=32, min_pixels=1024, max_pixels=1024) == expected


def test_size_is_that_of_qwen_vl() -> None:
    """1080 x 1920 within 768 * 28 * 28 pixels: 602112 = 581.8 x 1034.6, cut to multiples of 28."""
    size = fit_size(1080, 1920, factor=28, min_pixels=3136, max_pixels=768 * 28 * 28)
    assert size == (560, 1008)
    assert fit_size(100, 100, factor=28, min_pixels=3136, max_pixels=10**6) == (112, 112)
    assert fit_size(20, 20, factor=28, min_pixels=3136, max_pixels=10**6) == (56, 56)


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([28, 32]))
def test_size_keeps_the_budget_of_one_frame(height: int, width: int, factor: int) -> None:
    assume(max(height, width) < 20 * min(height, width))
    low, high = 4 * factor**2, 400 * factor**2
    new_height, new_width = fit_size(height, width, factor=factor, min_pixels=low, max_pixels=high)
    assert new_height % factor == 0
    assert new_width % factor == 0
    assert low <= new_height * new_width <= high


def write_audio(path: Path) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        samples = np.zeros((1, 8000), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_files_that_are_no_videos_are_named(clip: Clip, tmp_path: Path) -> None:
    whole = Path(clip.video).read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    write_audio(tmp_path / "audio.mp4")
    reasons = {
        "missing.mp4": "no such video",
        "empty.mp4": "the file is empty",
        "truncated.mp4": "cut short: .* bytes are missing",
        "text.mp4": "cannot be opened as a video",
        "audio.mp4": "cannot be opened as a video",
    }
    for name, reason in reasons.items():
        with pytest.raises(VideoError, match=rf"{name}: {reason}"):
            probe(tmp_path / name)
    bad = [replace(clip, id=name, video=str(tmp_path / name)) for name in reasons]
    with pytest.raises(VideoError, match=r"missing.mp4: .*'missing.mp4'\] \(and 4 more\)"):
        check_videos([clip, *bad])
    check_videos([clip, clip])


def test_a_plan_of_a_missing_or_empty_file_is_refused(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no such video"):
        plan_of(replace(clip, video=str(tmp_path / "no.mp4")), fps=4)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match="empty"):
        plan_of(replace(clip, video=str(tmp_path / "empty.mp4")), fps=4)


def test_a_file_shorter_than_its_plan_is_refused(clip: Clip) -> None:
    plan = plan_of(replace(clip, num_frames=100, end_s=8.0), fps=4)
    with pytest.raises(
        VideoError, match=r"ends after 5.000 s \(60 frames\), the plan needs second 7.75"
    ):
        read_frames(plan)


@pytest.mark.parametrize("width", [2, 16, 32, 48, 90, 96, 144, 160, 182, 426, 854])
def test_every_width_is_decoded_to_the_pixels_that_were_written(tmp_path: Path, width: int) -> None:
    written = np.zeros((12, 32, width, 3), np.uint8)
    written[:, :, : width // 2] = np.arange(60, 180, 10)[:, None, None, None]
    encode_mp4(tmp_path / "clip.mp4", written, 10)
    plan = FramePlan(
        str(tmp_path / "clip.mp4"), 1, tuple(i / 10 for i in range(12)), 10.0, 32, width
    )
    assert np.abs(read_frames(plan).astype(int) - written).mean() < 4


def test_a_frame_that_is_shown_twice_is_decoded_once(clip: Clip) -> None:
    with Video(clip.video) as video:
        frames = list(video.frames_at([3 / FPS, 3.3 / FPS, 3.6 / FPS, 50 / FPS, 50.5 / FPS]))
        assert video.num_decoded <= 52
    means = [float(frame.mean()) for frame in frames]
    assert means == pytest.approx([12, 12, 12, 200, 200], abs=3)  # H.264 is lossy
    assert frames[0] is frames[2]
    assert frames[0].shape == (SIZE, SIZE, 3)


def test_a_file_that_breaks_off_is_named_when_counting_in_it(clip: Clip, tmp_path: Path) -> None:
    """Its index comes first and is whole, so that it opens."""
    whole = Path(clip.video).read_bytes()
    damaged = bytearray(whole)
    start = whole.index(b"mdat") + 4
    damaged[start : start + 500] = bytes(500)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(damaged)
    with pytest.raises(VideoError, match=r"damaged.mp4: cannot be decoded"):
        clip_of_video(path)

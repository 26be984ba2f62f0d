"""Frames are those that the file presents at the planned second, in every ordinary kind of file.

The files are made here, frame k showing k in binary: whatever frame is read says which one it is.
"""

import itertools
import math
import os
import struct
import threading
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition

from data_prep.video import FramePlan, Video, VideoError, clip_of_video, plan_frames, read_frames
from data_prep.video.probe import probe
from data_prep.video.reader import read_luma, resized, shrunk
from tests.unit.video.coded import (
    Kind,
    Written,
    number_of,
    picture,
    remux,
    remux_from,
    write_coded,
    write_hidden,
    write_packed,
    write_with_gaps,
    write_with_sound,
)

pytestmark = pytest.mark.lengthy

H264 = (("preset", "ultrafast"), ("x264-params", "scenecut=0"))
H264_OPEN = (("preset", "fast"), ("x264-params", "open-gop=1:scenecut=0:keyint=15"))
H265 = (("preset", "ultrafast"), ("x265-params", "log-level=none:open-gop=0:keyint=15"))
H265_OPEN = (("preset", "ultrafast"), ("x265-params", "log-level=none:open-gop=1:keyint=15"))
VP9 = (("deadline", "realtime"), ("cpu-used", "8"))
AV1 = (("preset", "10"), ("crf", "20"), ("svtav1-params", "keyint=15:scm=1"))
CODECS = {
    "h264": ("libx264", H264, ("mp4", "mov", "mkv", "ts", "avi", "flv", "mpg")),
    "hevc": ("libx265", H265, ("mp4", "mov", "mkv", "ts", "flv")),
    "mpeg4": ("mpeg4", (), ("mp4", "mov", "mkv", "ts", "avi")),
    "mpeg2": ("mpeg2video", (), ("mp4", "mov", "mkv", "ts", "mpg", "avi")),
    "vp9": ("libvpx-vp9", VP9, ("mp4", "mkv", "webm")),
    "av1": ("libsvtav1", AV1, ("mp4", "mkv", "webm")),
    "wmv2": ("wmv2", (), ("wmv", "avi")),
    "msmpeg4": ("msmpeg4v3", (), ("avi", "wmv", "mkv")),
    "prores": ("prores", (), ("mov",)),
    "ffv1": ("ffv1", (), ("mkv", "avi")),
    "mjpeg": ("mjpeg", (), ("mov", "avi", "mkv")),
}
PIXELS = {"prores": "yuv422p10le", "mjpeg": "yuvj420p"}
HAVE_B_FRAMES = ("h264", "hevc", "mpeg4", "mpeg2")
UNEVEN = tuple(itertools.accumulate([33, 33, 50, 120, 20] * 11 + [33] * 4, initial=0))  # 60 times


def _kinds() -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for name, (codec, options, containers) in CODECS.items():
        pixels = PIXELS.get(name, "yuv420p")
        for container in containers:
            base = Kind(container, codec, options, pixels=pixels)
            kinds[f"{name} {container}"] = base
            if name in HAVE_B_FRAMES:
                kinds[f"{name} {container} b-frames"] = Kind(container, codec, options, num_b=2)
    for container in ("mp4", "mov", "mkv", "ts"):
        kinds[f"h264 {container} open gop"] = Kind(container, options=H264_OPEN, num_b=3)
        kinds[f"hevc {container} open gop"] = Kind(container, "libx265", H265_OPEN, num_b=3)
        kinds[f"h264 {container} offset"] = Kind(container, options=H264, num_b=2, offset_ms=5000)
        kinds[f"h264 {container} variable"] = Kind(
            container, options=H264, num_b=2, times_ms=UNEVEN
        )
    for container in ("mp4", "mov"):
        kinds[f"h264 {container} edit list"] = Kind(container, options=H264, num_b=2, cut_ms=1040)
        kinds[f"hevc {container} edit list"] = Kind(
            container, "libx265", H265_OPEN, num_b=3, cut_ms=760
        )
    kinds["vp9 webm variable"] = Kind("webm", "libvpx-vp9", VP9, times_ms=UNEVEN)
    kinds["hevc 10 bit mkv"] = Kind("mkv", "libx265", H265, pixels="yuv420p10le")
    return kinds


KINDS = _kinds()


def check(path: Path, written: Written) -> None:
    """Sequential reads, reads of all frames and reads far apart give the frames that were shown."""
    ends = (*written.times_s[1:], written.times_s[-1] + 0.02)
    middles = [(start + end) / 2 for start, end in zip(written.times_s, ends, strict=True)]
    with Video(path) as video:
        shown = [(second, number_of(image)) for second, image in video.frames()]
        assert [number for _, number in shown] == list(written.numbers)
        assert np.abs(np.subtract([s for s, _ in shown], written.times_s)).max() < 2e-3
        assert video.probe.num_frames == len(written.numbers)
        assert np.abs(video.probe.times_s - written.times_s).max() < 2e-3  # marks in frames
        every = [number_of(image) for image in video.frames_at(middles)]
        assert every == list(written.numbers)
        places = [3, len(middles) // 3, len(middles) - 14, len(middles) - 1]
        apart = [number_of(image) for image in video.frames_at([middles[i] for i in places])]
        assert apart == [written.numbers[i] for i in places]


@pytest.mark.lengthy
@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_that_the_file_presents(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = tmp_path / f"video.{kind.container}"
    check(path, write_coded(path, kind, num_frames=60))
    assert probe(path).lead_s == 0  # there is no sound that could start earlier


def test_packed_b_frames_are_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "packed.avi"
    check(path, write_packed(path))


@pytest.mark.parametrize("name", KINDS)
def test_brightness_alone_shows_the_same_frames(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    num_frames = len(kind.times_ms) if kind.times_ms else 40
    written = write_coded(tmp_path / f"video.{kind.container}", kind, num_frames)
    every = written.times_s[::3] + written.times_s[1:9]
    plan = FramePlan(str(written.path), 0, every, 8.0, 48, 64)
    grey, colours = read_luma(plan), read_frames(plan)
    expected = [number_of(image) for image in colours]
    assert [number_of(np.repeat(image[..., None], 3, axis=2)) for image in grey] == expected
    assert np.median(np.abs(grey - colours.mean(axis=3))) < 3.0


@pytest.mark.parametrize("size", [(128, 96), (1280, 720)])
def test_frames_that_nobody_needs_are_left_out(tmp_path: Path, size: tuple[int, int]) -> None:
    kind = Kind(options=H264, num_b=2, size=size)  # the larger one without smoothed block edges
    written = write_coded(tmp_path / "video.mp4", kind, 60)
    with Video(written.path) as all_of_it, Video(written.path, is_cheap=True) as cheap:
        expected = [number_of(image) for image in all_of_it.frames_at(written.times_s[::5])]
        shown = [
            number_of(np.repeat(image[..., None], 3, axis=2))
            for image in cheap.frames_at(written.times_s[::5])
        ]
    assert shown == expected
    assert cheap.num_decoded < 0.8 * all_of_it.num_decoded


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_turned_picture_is_shown_upright(container: str, rotation: int, tmp_path: Path) -> None:
    path = tmp_path / f"turned.{container}"
    write_coded(path, Kind(container, options=H264, rotation=rotation), num_frames=20)
    with Video(path) as video:
        images = [image for _, image in video.frames()]
    back = [np.rot90(image, -rotation // 90) for image in images]
    assert [number_of(image) for image in back] == list(range(20))
    found = probe(path)
    assert (found.height, found.width) == images[0].shape[:2]
    assert (found.width, found.height) == ((96, 128) if rotation % 180 else (128, 96))


def test_pixels_that_are_no_squares_are_made_squares(tmp_path: Path) -> None:
    """720x576 at 16:15 is a 4:3 television picture: 768x576."""
    path = tmp_path / "dvd.mpg"
    write_coded(path, Kind("mpg", "mpeg2video", size=(720, 576), aspect=(16, 15)), num_frames=12)
    clip = clip_of_video(path)
    assert (clip.width, clip.height) == (768, 576)
    plan = plan_frames(
        clip, fps=4.0, min_frames=1, max_frames=4, min_pixels=1, max_pixels=96 * 72, factor=8
    )
    assert (plan.width, plan.height) == (96, 72)
    assert read_frames(plan).shape == (1, 72, 96, 3)


def test_the_plan_of_a_file_of_uneven_times_follows_its_own_clock(tmp_path: Path) -> None:
    """A second of 25 frames, then a second of 5: slow motion as phones write it."""
    times = (*range(0, 1000, 40), *range(1000, 2000, 200))
    path = tmp_path / "slow.mp4"
    write_coded(path, Kind(options=H264, times_ms=times), num_frames=len(times))
    clip = clip_of_video(path)
    assert clip.end_s == pytest.approx(1.84, abs=1e-3)  # the last frame lasts as most do
    plan = plan_frames(
        clip, fps=4.0, min_frames=4, max_frames=64, min_pixels=1, max_pixels=128 * 96, factor=32
    )
    numbers = [number_of(frame) for frame in read_frames(plan)]
    assert plan.times_s == (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    assert numbers == [0, 6, 12, 18, 25, 26, 27]


def test_the_largest_picture_is_read_not_the_first(tmp_path: Path) -> None:
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as out:
        small = out.add_stream("mpeg4", rate=25)
        small.width, small.height, small.pix_fmt = 64, 48, "yuv420p"
        large = out.add_stream("libx264", rate=25, options=dict(H264))
        large.width, large.height, large.pix_fmt = 128, 96, "yuv420p"
        for i in range(40):
            for stream in (small, large):
                shown = i if stream is large else 4000
                image = picture(shown, stream.width, stream.height)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in (small, large):
            out.mux(stream.encode(None))
    assert probe(path).stream == 1
    check(path, Written(path, tuple(range(40)), tuple(i / 25 for i in range(40))))


def test_joined_recordings_are_refused_with_the_place(tmp_path: Path) -> None:
    parts = []
    for size in ((128, 96), (192, 144)):
        path = tmp_path / f"{size[0]}.ts"
        write_coded(path, Kind("ts", options=H264, size=size), num_frames=50)
        parts.append(path.read_bytes())
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    with pytest.raises(VideoError, match=r"joined\.ts: time stamps go back at frame 50 of 100"):
        probe(path)


def test_a_change_of_size_is_brought_to_the_plan(tmp_path: Path) -> None:
    parts = []
    for i, size in enumerate(((128, 96), (192, 144))):
        path = tmp_path / f"{size[0]}.ts"
        kind = Kind("ts", options=H264, size=size, offset_ms=2000 * i)
        write_coded(path, kind, num_frames=50, first=50 * i)
        parts.append(path.read_bytes())
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    times = tuple(i / 25 for i in range(0, 100, 7))
    frames = read_frames(FramePlan(str(path), 1, times, 25 / 7, 96, 128))
    assert [number_of(frame) for frame in frames] == list(range(0, 100, 7))


def test_a_frame_of_an_hour_is_a_damaged_time_stamp(tmp_path: Path) -> None:
    path = tmp_path / "leap.mp4"
    times = (*range(0, 400, 40), 3_600_000)
    write_coded(path, Kind(options=H264, times_ms=times), num_frames=len(times))
    with pytest.raises(VideoError, match=r"leap\.mp4: 11 frames in .* one of them shown for 3599"):
        probe(path)


@pytest.mark.parametrize("name", ["notes.txt", "image.png", "list.m3u8"])
def test_what_is_no_video_is_not_rendered_as_one(name: str, tmp_path: Path) -> None:
    """FFmpeg shows a text as pictures of a terminal, and opens what a playlist names."""
    import cv2

    content = {
        "notes.txt": b"squats: 10\n" * 200,
        "image.png": cv2.imencode(".png", picture(5, 64, 48))[1].tobytes(),
        "list.m3u8": b"#EXTM3U\n#EXTINF:2,\nvideo.mp4\n#EXT-X-ENDLIST\n",
    }[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=rf"{name}: cannot be opened as a video"):
        probe(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.ts\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile other.ts\n"),
        ("guise.mp4", "ffconcat version 1.0\nfile other.ts\n"),
        ("guise.mkv", "ffconcat version 1.0\nfile 'other.ts'\nduration 3\n"),
    ],
)
def test_no_file_that_a_playlist_names_is_opened(name: str, content: str, tmp_path: Path) -> None:
    """The other file is a pipe: whoever opens it waits."""
    (tmp_path / name).write_text(content)
    pipe = tmp_path / "other.ts"
    os.mkfifo(pipe)
    errors: list[Exception] = []

    def look() -> None:
        try:
            probe(tmp_path / name)
        except VideoError as error:
            errors.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(10)
    if was_opened := thread.is_alive():
        os.close(os.open(pipe, os.O_WRONLY))
        thread.join(10)
    assert not was_opened
    assert len(errors) == 1
    assert "no container of video: a text, a playlist, a picture?" in str(errors[0])


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9/a.mp4", "concat:a.mp4|b.mp4", "pipe:0", "/dev/zero", "/dev/stdin"],
)
def test_addresses_and_devices_are_no_videos(address: str) -> None:
    with pytest.raises(VideoError):
        probe(address)


def test_a_probe_is_made_once_for_a_file_that_stays(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_coded(path, Kind(options=H264), num_frames=30)
    first = probe(path)
    assert probe(str(path)) is first
    write_coded(path, Kind(options=H264), num_frames=40)
    assert probe(path).num_frames == 40


def test_a_window_late_in_a_long_file_is_not_read_from_its_start(tmp_path: Path) -> None:
    """Counted in frames that leave the decoder, not in seconds."""
    path = tmp_path / "long.mp4"
    write_coded(path, Kind(options=H264, num_b=2), num_frames=1000)
    with Video(path) as video:
        numbers = [number_of(image) for image in video.frames_at([38.0, 38.4, 38.8])]
        assert numbers == [950, 960, 970]
        assert video.num_decoded <= 3 * 15 + 21


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    """Music players put a picture into the file as a stream of video."""
    path = tmp_path / "covered.mp4"
    with av.open(str(path), "w") as out:
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 640, 480, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        video = out.add_stream("libx264", rate=25, options=dict(H264))
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        out.mux(cover.encode(av.VideoFrame.from_ndarray(picture(9, 640, 480), format="rgb24")))
        for i in range(30):
            image = picture(i, 128, 96)
            out.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in (cover, video):
            out.mux(stream.encode(None))
    found = probe(path)
    assert (found.width, found.height, found.num_frames) == (128, 96, 30)
    check(path, Written(path, tuple(range(30)), tuple(i / 25 for i in range(30))))


@pytest.mark.parametrize(
    ("container", "codec", "pixels"),
    [("mov", "qtrle", "argb"), ("mkv", "ffv1", "yuva420p"), ("mov", "prores_ks", "yuva444p10le")],
)
def test_transparency_is_left_out(container: str, codec: str, pixels: str, tmp_path: Path) -> None:
    path = tmp_path / f"clear.{container}"
    check(path, write_coded(path, Kind(container, codec, pixels=pixels), num_frames=60))


@pytest.mark.parametrize("flags", ["frag_keyframe+empty_moov", "dash+global_sidx"])
def test_a_fragmented_file_is_read_whole(flags: str, tmp_path: Path) -> None:
    written = write_coded(tmp_path / "whole.mp4", Kind(options=H264), num_frames=60)
    path = tmp_path / "fragmented.mp4"
    remux(written.path, path, flags)
    check(path, replace(written, path=path))


@pytest.mark.parametrize("container", ["mkv", "mp4"])
def test_packed_b_frames_in_another_container(container: str, tmp_path: Path) -> None:
    written = write_packed(tmp_path / "packed.avi")
    path = tmp_path / f"packed.{container}"
    remux(written.path, path)
    check(path, replace(written, path=path))


def test_frames_of_nothing_keep_the_clock(tmp_path: Path) -> None:
    """They last, and what was shown before them stays on the screen."""
    written = write_with_gaps(tmp_path / "gaps.avi")
    with Video(written.path) as video:
        middles = [second + 0.02 for second in written.times_s]
        assert [number_of(i) for i in video.frames_at(middles)] == list(written.numbers)
        assert [number_of(i) for i in video.frames_at([0.18, 1.18])] == [3, 28]


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_leap_in_an_open_group_is_not_undone(container: str, tmp_path: Path) -> None:
    path = tmp_path / f"open.{container}"
    write_coded(path, Kind(container, options=H264_OPEN, num_b=3), num_frames=600)
    times = [0.5 + 2 * i for i in range(12)]
    with Video(path) as video:
        numbers = [number_of(image) for image in video.frames_at(times)]
        assert numbers == [int(25 * second + 1e-6) for second in times]
        assert video.num_decoded < 600


def test_a_mirrored_picture_is_mirrored_back(tmp_path: Path) -> None:
    path = tmp_path / "selfie.mp4"
    write_coded(path, Kind(options=H264), num_frames=10)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    one = 1 << 16
    content[start : start + 36] = struct.pack(">9i", -one, 0, 0, 0, one, 0, 128 * one, 0, 1 << 30)
    path.write_bytes(content)
    with Video(path) as video:
        images = [image[:, ::-1] for _, image in video.frames()]
    assert [number_of(image) for image in images] == list(range(10))


def test_other_than_quarter_turns_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "askew.mp4"
    write_coded(path, Kind(options=H264), num_frames=10)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    half = round(math.sqrt(0.5) * (1 << 16))
    content[start : start + 36] = struct.pack(">9i", half, half, 0, -half, half, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"askew\.mp4: shown turned by -?45\.0 degrees"):
        probe(path)


def test_a_name_with_a_colon_is_no_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_coded(tmp_path / "file:x.mp4", Kind(options=H264), num_frames=20)
    write_coded(tmp_path / "x.mp4", Kind(options=H264), num_frames=30)
    monkeypatch.chdir(tmp_path)
    assert probe("file:x.mp4").num_frames == 20


@pytest.mark.parametrize("brand", [b"avif", b"heic"])
def test_a_still_picture_in_the_container_of_mp4_is_no_video(brand: bytes, tmp_path: Path) -> None:
    path = tmp_path / "still.mp4"
    written = write_coded(path, Kind(options=H264), num_frames=5)
    content = bytearray(written.path.read_bytes())
    content[8:12] = brand
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"still\.mp4: cannot be opened as a video \(a picture\)"):
        probe(path)


def test_a_file_that_is_replaced_at_its_size_has_another_plan(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_coded(path, Kind(options=H264), num_frames=10)
    clip = clip_of_video(path)
    limits = {"min_frames": 1, "max_frames": 4, "min_pixels": 1, "max_pixels": 1024, "factor": 8}
    first = plan_frames(clip, fps=4.0, **limits)
    assert plan_frames(clip, fps=4.0, **limits).hash == first.hash
    os.utime(path, ns=(0, 0))
    assert plan_frames(clip, fps=4.0, **limits).hash != first.hash


H264_FIELDS = (("preset", "fast"), ("x264-params", "interlaced=1:scenecut=0"))


@pytest.mark.parametrize("num_b", [0, 2])
@pytest.mark.parametrize("container", ["mp4", "mkv", "ts", "avi"])
def test_interlaced_pictures_are_frames(container: str, num_b: int, tmp_path: Path) -> None:
    """x264 codes fields by pairs of macroblocks; there is no encoder of a field a packet."""
    path = tmp_path / f"fields.{container}"
    written = write_coded(path, Kind(container, options=H264_FIELDS, num_b=num_b), num_frames=60)
    with av.open(str(path)) as container_:
        assert next(container_.decode(video=0)).interlaced_frame
    check(path, written)


def test_frames_of_vp8_that_are_not_shown_are_no_frames(tmp_path: Path) -> None:
    written = write_hidden(tmp_path / "hidden.webm")
    with av.open(str(written.path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    assert sum(not packet[0] & 16 for packet in packets) == 3
    check(written.path, written)


@pytest.mark.parametrize("num_b", [0, 2])
def test_an_index_without_a_list_of_key_frames(num_b: int, tmp_path: Path) -> None:
    """Every frame counts as one then (ISO/IEC 14496-12, 8.6.2), and leaps land in a group."""
    path = tmp_path / "nokeys.mp4"
    written = write_coded(path, Kind(options=H264, num_b=num_b), num_frames=60)
    content = path.read_bytes()
    assert content.count(b"stss") == 1
    path.write_bytes(content.replace(b"stss", b"free"))
    check(path, written)


def test_an_index_of_even_decoding_and_uneven_showing(tmp_path: Path) -> None:
    """Without B-frames too, `ctts` may tell times of showing apart from those of decoding."""
    source, path = tmp_path / "even.mkv", tmp_path / "uneven.mp4"
    written = write_coded(source, Kind("mkv", options=H264), num_frames=60)
    late = [(0, 30, 10, 35)[i % 4] for i in range(60)]  # ms
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(old.streams.video[0]) if packet.size]
        for packet, late_ms in zip(packets, late, strict=True):
            assert packet.time_base.denominator == 1000
            packet.pts, packet.stream = packet.dts + late_ms, stream
            new.mux(packet)
    with av.open(str(path)) as container:
        stamps = [entry.timestamp for entry in container.streams.video[0].index_entries]
        assert len(set(np.diff(stamps))) == 1
    times = tuple(t + late_ms / 1000 for t, late_ms in zip(written.times_s, late, strict=True))
    check(path, replace(written, path=path, times_s=times))


@pytest.mark.parametrize("first", [1, 7, 17])
def test_a_cut_mp4_starts_with_what_can_be_shown(first: int, tmp_path: Path) -> None:
    source, path = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    write_coded(source, Kind(options=H264), num_frames=90)
    remux_from(source, path, first)
    numbers = tuple(range(15 if first < 15 else 30, 90))
    check(path, Written(path, numbers, tuple(i / 25 for i in range(len(numbers)))))
    assert probe(path).lead_s == pytest.approx((numbers[0] - first) / 25)


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_pictures_that_begin_after_the_sound(container: str, tmp_path: Path) -> None:
    """Seconds count from the first frame; how late that comes is known."""
    path = tmp_path / f"late.{container}"
    written = write_with_sound(path, Kind(options=H264, num_b=2), 60, video_from_s=0.8)
    assert probe(path).lead_s == pytest.approx(0.8, abs=0.025)  # a frame of sound is 0.021 s
    with Video(path) as video:
        assert [number_of(i) for i in video.frames_at([0.0, 1.02])] == [0, 25]
    assert video.probe.num_frames == len(written.numbers)


def test_a_damaged_frame_is_refused_with_its_second(tmp_path: Path) -> None:
    path = tmp_path / "lossy.ts"
    write_coded(path, Kind("ts", "mpeg2video", size=(640, 480)), num_frames=60)
    content = path.read_bytes()
    middle = len(content) // 188 // 2 * 188
    path.write_bytes(content[:middle] + content[middle + 188 :])  # one packet was lost
    with pytest.raises(VideoError, match=r"lossy\.ts: .*the frame of 1\.\d+ s is damaged"):
        list(Video(path).frames())


@pytest.mark.parametrize(("height", "width"), [(1080, 1920), (719, 1283), (360, 640), (250, 130)])
def test_shrinking_by_a_whole_number_first_shows_the_same(height: int, width: int) -> None:
    """Pixels cut off at the edges, less than the number, move nothing by a pixel."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 13)).astype(np.uint8)
    frame = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    frame = np.clip(frame + rng.normal(0, 8, frame.shape), 0, 255).astype(np.uint8)
    found, expected = (f(frame, 48, 64).astype(float) for f in (shrunk, resized))
    assert found.shape == (48, 64)
    assert np.abs(found - expected).mean() < 2.0
    if min(height // 48, width // 64) < 4:  # one pixel in two or three: as ever
        assert np.array_equal(found, expected)
    else:
        moved = np.roll(expected, 1, axis=1)[:, 1:]
        assert np.abs(found - expected).mean() < 0.3 * np.abs(moved - expected[:, 1:]).mean()

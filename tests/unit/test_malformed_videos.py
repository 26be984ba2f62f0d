"""Videos as they come: each malformed file has a stated outcome, none ends the run.

The files are made here. `OUTCOMES` states for each what the validator says; a name in brackets is
a warning. Rows read must equal rows told, and every file must be told the same when it is opened
for training or for counting: by a `VideoError` that names it, or by frames.
"""

import json
import os
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from data_prep.schema import Clip
from data_prep.validation.report import Report
from data_prep.validation.validate import Decoding, validate_file
from data_prep.validation.view import View
from data_prep.video import VideoError, clip_of_video, plan_frames, read_frames

pytestmark = pytest.mark.lengthy

FPS, NUM_FRAMES = 30, 60
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
OUTCOMES: dict[str, set[str]] = {
    "good.mp4": set(),
    "faststart.mp4": set(),
    "matroska.mkv": set(),
    "mpeg4.avi": set(),
    "animation.gif": set(),
    "odd_size.mp4": set(),
    "two_pixels.mp4": set(),
    "with_audio.mp4": set(),
    "trailing_bytes.mp4": set(),
    "wrong_suffix.txt": set(),
    "rotated.mp4": set(),  # its row has the size as it is shown
    "rotated_as_stored.mp4": {"(size_differs)"},  # its row has the size as it is stored
    "8k.mp4": {"(repeated_frames)"},  # two frames in two seconds, shown as eight
    "one_frame.mp4": {"(repeated_frames)"},
    "variable_rate.mp4": {"(variable_frame_rate)"},
    "labelled_25_fps.mp4": {"fps_differs", "clip_outside_video"},
    "labelled_too_long.mp4": {"clip_outside_video", "(num_frames_differs)"},
    "empty.mp4": {"empty_video"},
    "truncated.mp4": {"undecodable_video"},  # without its index, which comes last
    "truncated_faststart.mp4": {"undecodable_video"},  # with its index and half of its frames
    "damaged.mp4": {"undecodable_video"},
    "header_only.mp4": {"undecodable_video"},
    "audio_only.mp4": {"undecodable_video"},
    "text.mp4": {"undecodable_video"},
    "zeros.mp4": {"undecodable_video"},
    "picture.mp4": {"undecodable_video"},
    "playlist.mp4": {"undecodable_video"},
    "frames": {"unreadable_video"},
    "folder.mp4": {"unreadable_video"},
    "loop.mp4": {"unreadable_video"},
    "pipe.mp4": {"unreadable_video"},
    "n" * 300 + ".mp4": {"unreadable_video"},
    "dangling.mp4": {"missing_video"},
    "missing.mp4": {"missing_video"},
    "nul\0.mp4": {"schema"},
    "surrogate\ud800.mp4": {"schema"},
    "good.mp4/inside.mp4": {"unreadable_video"},
}


def encode(
    path: Path,
    *,
    seed: int,
    num_frames: int = NUM_FRAMES,
    size: tuple[int, int] = (64, 48),
    fps: int = FPS,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    milliseconds: list[int] | None = None,
    is_faststart: bool = False,
    has_audio: bool = False,
) -> None:
    """A video whose left half is noise and whose right half grows brighter."""
    width, height = size
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 255, (num_frames, 1 + height // 8, 1 + width // 16, 3), np.uint8)
    options = {"movflags": "faststart"} if is_faststart else {}
    with av.open(str(path), "w", options=options) as container:
        fast = {"preset": "ultrafast"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=fps, options=fast)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if milliseconds is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if has_audio:
            sound = container.add_stream("aac", rate=8000)
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
            samples.sample_rate = 8000
            container.mux(sound.encode(samples))
            container.mux(sound.encode(None))
        for i in range(num_frames):
            image = np.full((height, width, 3), 4 * i % 250, np.uint8)
            half = (max(width // 2, 1), height)
            image[:, : half[0]] = cv2.resize(noise[i], half, interpolation=cv2.INTER_NEAREST)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def encode_audio(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def rotate(path: Path, target: Path) -> None:
    """The same file, to be shown turned by 90 degrees: the matrix in its track header."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    one = 1 << 16
    content[start : start + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 48 * one, 0, 1 << 30)
    target.write_bytes(content)


def write_files(folder: Path) -> None:
    plain = ("good", "good2", "labelled_25_fps", "labelled_too_long")
    for seed, name in enumerate(plain):
        encode(folder / f"{name}.mp4", seed=seed)
    encode(folder / "faststart.mp4", seed=10, is_faststart=True)
    encode(folder / "matroska.mkv", seed=11)
    encode(folder / "mpeg4.avi", seed=12, codec="mpeg4")
    encode(folder / "animation.gif", seed=13, codec="gif", pixels="rgb8", fps=10)
    encode(folder / "odd_size.mp4", seed=14, size=(63, 47), pixels="yuv444p")
    encode(folder / "two_pixels.mp4", seed=15, size=(2, 2))
    encode(folder / "with_audio.mp4", seed=16, has_audio=True)
    encode(folder / "8k.mp4", seed=17, size=(7680, 4320), num_frames=2, fps=1)
    encode(folder / "one_frame.mp4", seed=18, num_frames=1)
    uneven = [33 * min(i, 30) + 100 * max(i - 30, 0) for i in range(NUM_FRAMES)]
    encode(folder / "variable_rate.mp4", seed=19, milliseconds=uneven)
    encode(folder / "turn.mp4", seed=20)
    rotate(folder / "turn.mp4", folder / "rotated.mp4")
    encode(folder / "turn.mp4", seed=21)
    rotate(folder / "turn.mp4", folder / "rotated_as_stored.mp4")
    encode(folder / "again.mp4", seed=22, is_faststart=True)
    encode_audio(folder / "audio_only.mp4")
    good, again = (folder / "good2.mp4").read_bytes(), (folder / "again.mp4").read_bytes()
    damaged = bytearray(good)
    noise = np.random.default_rng(0).bytes(len(good) // 4)
    damaged[len(good) // 4 : len(good) // 4 + len(noise)] = noise
    contents = {
        "trailing_bytes.mp4": good + b"more",
        "wrong_suffix.txt": again,
        "empty.mp4": b"",
        "truncated.mp4": good[: len(good) // 2],
        "truncated_faststart.mp4": again[: len(again) // 2],
        "damaged.mp4": bytes(damaged),
        "header_only.mp4": good[:40],
        "text.mp4": b"no video\n" * 100,
        "zeros.mp4": bytes(5000),
        "playlist.mp4": b"#EXTM3U\n#EXTINF:2,\ngood.mp4\n#EXT-X-ENDLIST\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    image = cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    (folder / "picture.mp4").write_bytes(image)
    for name in ("frames", "folder.mp4"):
        (folder / name).mkdir()
        (folder / name / "notes.txt").write_text("no frame")  # with frames it is a clip
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(folder / "pipe.mp4")


ROWS = {
    "animation.gif": {"video_fps": 10.0, "end_s": 6.0},
    "odd_size.mp4": {"width": 63, "height": 47},
    "two_pixels.mp4": {"width": 2, "height": 2},
    "rotated.mp4": {"width": 48, "height": 64},
    "8k.mp4": {"width": 7680, "height": 4320, "num_frames": 2, "video_fps": 1.0},
    "one_frame.mp4": {"num_frames": 1, "end_s": 1 / 30},
    "variable_rate.mp4": {"video_fps": 15.2, "end_s": 3.9},
    "labelled_25_fps.mp4": {"video_fps": 25.0, "end_s": 2.4},
    "labelled_too_long.mp4": {"num_frames": 90, "end_s": 3.0},
}


def row_of(name: str) -> Clip:
    clip = Clip(
        id=f"clip of {name}",
        dataset="malformed",
        split="train",
        video=name,
        start_s=0.0,
        end_s=2.0,
        video_fps=float(FPS),
        num_frames=NUM_FRAMES,
        width=64,
        height=48,
        action="squat",
        count=0,
        cycles=(),
    )
    return replace(clip, **ROWS.get(name, {}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("malformed")
    write_files(folder)
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    lines = [json.dumps(json.loads(row_of(name).to_json())) + "\n" for name in OUTCOMES]
    (folder / "clips.jsonl").write_text("".join(lines))
    return validate_file(folder / "clips.jsonl", VIEW, Decoding(2, 60.0))


@pytest.mark.parametrize("name", OUTCOMES, ids=lambda name: ascii(name[:30]))
def test_every_file_has_its_outcome(report: Report, name: str) -> None:
    row = list(OUTCOMES).index(name) + 1
    found = [finding for finding in report.findings if finding.row == row]
    kinds = {f.kind if f.level == "error" else f"({f.kind})" for f in found}
    assert kinds == OUTCOMES[name], [finding.message for finding in found]
    assert all(finding.clip_id == f"clip of {name}" for finding in found)


def test_no_row_is_lost(report: Report) -> None:
    is_error = [any(kind[0] != "(" for kind in kinds) for kinds in OUTCOMES.values()]
    is_ok = [not kinds for kinds in OUTCOMES.values()]
    assert report.num_rows == len(OUTCOMES)
    assert report.num_errors == sum(is_error)
    assert report.num_ok == sum(is_ok)
    assert report.num_warnings == len(OUTCOMES) - sum(is_error) - sum(is_ok)
    is_clip = ["schema" not in kinds for kinds in OUTCOMES.values()]
    assert report.num_videos == sum(is_clip) == len(OUTCOMES) - 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(folder: Path, tmp_path: Path) -> None:
    video = tmp_path / "secret.mp4"
    video.write_bytes((folder / "good.mp4").read_bytes())
    video.chmod(0)
    path = tmp_path / "clips.jsonl"
    path.write_text(row_of("secret.mp4").to_json() + "\n")
    (finding,) = validate_file(path, VIEW, Decoding(1, 60.0)).findings
    assert (finding.kind, finding.value) == (
        "unreadable_video",
        "'secret.mp4' (permission denied)",
    )


UNUSABLE = {"schema", "undecodable_video", "unreadable_video", "missing_video", "empty_video"}


@pytest.mark.parametrize("name", OUTCOMES, ids=lambda name: ascii(name[:30]))
def test_training_and_counting_agree_with_the_validator(folder: Path, name: str) -> None:
    """What it refuses, they refuse by an error that names the file; what it takes, they read."""
    path = str(folder / name)
    if OUTCOMES[name] & UNUSABLE:
        with pytest.raises(VideoError, match=r"(mp4|frames): "):
            read_all(path)
        return
    frames = read_all(path)
    assert frames.shape[0] >= 4
    assert frames.std() > 0


def read_all(path: str) -> np.ndarray:
    plan = plan_frames(
        clip_of_video(path),
        fps=VIEW.fps,
        min_frames=VIEW.min_frames,
        max_frames=VIEW.max_frames,
        min_pixels=VIEW.min_pixels,
        max_pixels=VIEW.max_pixels,
        factor=VIEW.factor,
    )
    return read_frames(plan)

"""Counting in a stream: a window of it is held, and it comes to what a long file comes to."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from actrep_ray.cli.main import main
from actrep_ray.counting.live import Feed
from data_prep.periodicity.live import MAX_HELD_S, LiveCounter
from data_prep.periodicity.long import detect_long
from data_prep.video import VideoError, clip_of_video
from data_prep.video.stream import (
    LONGEST_GAP_S,
    at_equal_distances,
    is_address,
    is_camera,
    read_stream,
    without_login,
)
from data_prep.video_writer import encode_mp4
from tests.free_port import free_port

FPS, PERIOD_S, SIZE = 6, 2.0, 32
ROOT = Path(__file__).resolve().parents[2]


def swinging(duration_s: float) -> NDArray[np.uint8]:
    """A square that goes to and fro: a repetition every `PERIOD_S`. [T, H, W, 3]"""
    times = np.arange(round(duration_s * FPS)) / FPS
    left = np.round((SIZE - 10) * (0.5 - 0.5 * np.cos(2 * np.pi * times / PERIOD_S))).astype(int)
    frames = np.full((len(times), SIZE, SIZE, 3), 60, np.uint8)
    for frame, x in zip(frames, left, strict=True):
        frame[10:20, x : x + 10] = 200
    return frames


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 s of it: longer than what is looked at as a whole."""
    path = tmp_path_factory.mktemp("videos") / "long.mp4"
    encode_mp4(path, swinging(100), FPS)
    return path


# --- the window


@pytest.mark.slow
def test_a_stream_comes_to_what_a_long_file_comes_to(video: Path) -> None:
    found = detect_long(clip_of_video(video))
    counter = LiveCounter(FPS)
    settled, so_far = [], 0
    for _, picture in read_stream(str(video), 64 * 64):
        one = counter.add(picture)
        if one is not None:
            settled.append(one)
            so_far = counter.look()
    last = counter.finish()
    assert last is not None
    settled.append(last)
    assert len(settled) == 3
    assert [one.start_s for one in settled] == [0.0, *(one.end_s for one in settled[:-1])]
    assert settled[-1].end_s == counter.duration_s == 100
    cycles = [cycle for one in settled for cycle in one.found.cycles]
    assert counter.num_settled == len(cycles) == found.count == 50
    assert np.abs(np.asarray(cycles) - np.asarray(found.cycles)).max() < 0.2
    # The last look within, when the second window was settled at 86.7 s or so.
    assert counter.num_settled > so_far > sum(one.found.count for one in settled[:2])


@pytest.mark.lengthy
def test_memory_does_not_grow() -> None:
    counter, still = LiveCounter(2.0), np.zeros((4, 4), np.uint8)
    most = 0.0
    for _ in range(600):
        counter.add(still)
        most = max(most, counter.held_s)
    assert counter.duration_s == 300
    assert most <= MAX_HELD_S + 0.5
    assert counter.look() == counter.num_settled == 0
    assert LiveCounter().finish() is None
    assert LiveCounter().look() == 0


# --- what comes


def pictures_at(*seconds: float) -> list[tuple[float, NDArray[np.uint8]]]:
    return [(second, np.full((1, 1), i, np.uint8)) for i, second in enumerate(seconds)]


def shown(*seconds: float, fps: float = 2.0) -> list[int]:
    return [int(one[0, 0]) for one in at_equal_distances(pictures_at(*seconds), fps)]


def test_at_each_moment_the_picture_that_is_shown() -> None:
    assert shown() == []
    assert shown(0.0, 0.5, 1.0) == [0, 1, 2]
    assert shown(0.0, 0.1, 0.2, 0.6, 1.4) == [0, 2, 3, 4]  # 0, 0.5, 1 and 1.5 s
    assert shown(0.0, 2.0) == [0, 0, 0, 0, 1]  # a stall is time
    assert shown(0.0, 0.5, 0.5 + 2 * LONGEST_GAP_S, 1.0 + 2 * LONGEST_GAP_S) == [0, 2, 3]
    assert shown(10.0, 10.5, 0.0, 0.5) == [0, 2, 3]  # the stamps began anew


@given(st.lists(st.floats(0, LONGEST_GAP_S - 1), max_size=6), st.sampled_from([1.0, 2.5, 15.0]))
def test_as_many_pictures_as_time_has_moments(gaps: list[float], fps: float) -> None:
    seconds = np.cumsum([0.0, *gaps]).tolist()
    told = shown(*seconds, fps=fps)
    assert told == sorted(told)
    assert told[-1] == len(seconds) - 1
    assert abs(len(told) - 1 - seconds[-1] * fps) <= 1 + 1e-3


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("0", "camera"),
        ("/dev/null", "camera"),
        ("http://a.example/x", "address"),
        ("RTSP://a.example", "address"),
        ("file:///etc/passwd", "address"),
        ("a.mp4", "file"),
        ("a:b.mp4", "file"),
        ("²", "file"),
    ],
)
def test_what_a_source_is(source: str, kind: str) -> None:
    assert (is_camera(source), is_address(source)) == (kind == "camera", kind == "address")


def test_a_password_is_not_shown() -> None:
    assert without_login("rtsp://me:secret@camera/1") == "rtsp://***@camera/1"
    assert without_login("http://a.example/x@y") == "http://a.example/x@y"


def test_a_playlist_opens_neither_addresses_nor_files(tmp_path: Path, video: Path) -> None:
    for name, listed in (
        ("a.m3u8", "http://127.0.0.1:1/a.ts"),
        ("b.mp4", str(video)),
        ("c.ffconcat", str(video)),
    ):
        head = "ffconcat version 1.0\nfile " if name.startswith("c") else "#EXTM3U\n#EXTINF:1,\n"
        (tmp_path / name).write_text(head + listed + "\n")
        with pytest.raises(VideoError, match=f"{name}: cannot be read as a video"):
            list(read_stream(str(tmp_path / name), 64))
    with pytest.raises(VideoError, match="expected an address of http, https"):
        list(read_stream(f"file://{video}", 64))
    with pytest.raises(VideoError, match=r"\*\*\*@127\.0\.0\.1:1/x: cannot be read as a video"):
        list(read_stream("http://me:secret@127.0.0.1:1/x", 64))


def test_a_reader_that_fails_is_not_waited_for() -> None:
    def pictures() -> Iterator[NDArray[np.uint8]]:
        yield np.zeros((1, 1), np.uint8)
        raise OverflowError("no such number")

    feed = Feed(pictures(), waits=True)
    with pytest.raises(OverflowError, match="no such number"):
        deque(chain.from_iterable(feed.take() for _ in range(50)))  # each may wait in vain


def test_a_camera_does_not_wait_and_a_file_does() -> None:
    num = 1_500  # more than is read ahead
    for waits in (False, True):
        given = (np.full((1, 1), i % 256, np.uint8) for i in range(num))
        feed = Feed(given, waits=waits)
        time.sleep(0.3)
        taken = 0
        with suppress(EOFError):
            while taken <= num:
                for _ in feed.take():
                    taken += 1
        assert taken + feed.num_left_out == num
        assert (feed.num_left_out == 0) == waits


# --- the command


def write_stream(file: IO[bytes], frames: Iterator[NDArray[np.uint8]]) -> None:
    """Frames as MPEG-TS, until nobody reads any more."""
    with suppress(OSError, av.FFmpegError), av.open(file, "w", format="mpegts") as container:
        options = {"preset": "ultrafast", "tune": "zerolatency"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 s as a file that can be read from a pipe."""
    path = tmp_path_factory.mktemp("short") / "short.ts"
    with path.open("wb") as file:
        write_stream(file, iter(swinging(20)))
    return path


@pytest.mark.lengthy
def test_a_file_stands_for_a_camera(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "--camera", str(short)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "     0.0 s  to     19.9 s: 10 repetitions",
        f"{short}: 10 repetitions in 19.9 s",
    ]
    assert main(["count", "--camera", str(short), "--json", "--method", "periodicity"]) == 0
    window, total = map(json.loads, capsys.readouterr().out.splitlines())
    assert window["count"] == len(window["cycles"]) == total["count"] == 10
    (shot,) = window["shots"]  # as of a file
    assert (shot["start_s"], shot["end_s"], shot["count"]) == (0.0, window["end_s"], 10)
    assert total == {
        "camera": str(short), "duration_s": 19.933, "count": 10, "num_windows": 1, "num_unsure": 0,
        "left_out_s": 0.0,
    }  # fmt: skip


@contextmanager
def served(path: Path, *, short_of: int = 0) -> Iterator[str]:
    """The address of a file; of its length, some bytes never come."""
    data = path.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) - short_of])

        def log_message(self, *_: Any) -> None:
            pass

    port = free_port()
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{port}/live.ts"
        server.shutdown()


@pytest.mark.lengthy
def test_an_address_is_opened_if_that_is_allowed(
    short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(short) as url:
        assert main(["count", "--camera", url]) == 2
        told = f"--camera {url}: an address is opened with --allow-network alone"
        assert told in capsys.readouterr().err
        assert main(["count", "--camera", url, "--allow-network"]) == 0
        assert f"{url}: 10 repetitions in 19.9 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.mp4", "--camera", "0"], "leave out VIDEO"),
        (["--camera", "0", "--checkpoint", "a"], "leave out --checkpoint"),
        (["--camera", "0", "--samples", "3"], "--samples is for a model"),
        (["--camera", "0", "--out", "a.jsonl"], "leave out --out"),
        (["--camera", "98765"], "98765: no camera that can be opened"),
        (["--camera", "none.mp4"], "none.mp4: no such video"),
        (["--camera", "."], ".: a folder, expected a video file"),
        (["a.mp4", "--allow-network"], "--allow-network is for --camera"),
        ([], "nothing to count in: give a VIDEO, or --camera"),
    ],
)
def test_what_cannot_be_counted_live_is_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["count", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert expected in err


@pytest.mark.slow
def test_ctrl_c_ends_an_endless_pipe_with_its_total(tmp_path: Path) -> None:
    """The total, exit code 0, and no more memory than at first."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def endless() -> Iterator[NDArray[np.uint8]]:
        frames = swinging(PERIOD_S * 5)
        while True:
            yield from frames

    def feed() -> None:
        with suppress(BrokenPipeError), pipe.open("wb") as file:
            write_stream(file, endless())

    line = [sys.executable, "-m", "actrep_ray", "count", "--camera", str(pipe), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    feeding = threading.Thread(target=feed, daemon=True)
    feeding.start()
    assert process.stdout is not None
    windows, memory = [], []
    for _ in range(9):
        windows.append(json.loads(process.stdout.readline()))
        memory.append(memory_kib(process.pid))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    feeding.join(30)
    *more, total = map(json.loads, out.splitlines())
    assert (process.returncode, err) == (0, "")
    assert total["count"] == sum(one["count"] for one in (*windows, *more))
    assert total["count"] == pytest.approx(total["duration_s"] / PERIOD_S, rel=0.05)
    assert total["duration_s"] > 200
    assert memory[-1] - memory[3] < 20_000


def memory_kib(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


@pytest.mark.lengthy
def test_a_stream_that_breaks_off_says_so(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(short, short_of=short.stat().st_size // 3) as url:
        code = main(["count", "--camera", url, "--allow-network"])
    out, err = capsys.readouterr()
    assert code == 1
    assert "repetitions in " in out
    assert f"{url}: cannot be read as a video" in err

"""A video with its count drawn on it: a counter, and a bar of the repetitions with where it is.

Pictures are decoded, drawn on and encoded again (H.264); sound is copied packet by packet, as long
as mp4 holds it. Both keep their times: each frame is shown when it was. It happens in a process of
its own, since a file may crash its decoder.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from actrep_ray.counting.record import VideoCount
from data_prep.files import replacing
from data_prep.video import Video, VideoError
from data_prep.video.container import open_container, reason_of
from data_prep.video.process import DecodingProcess, Failure
from rewards.grammar.layout import Cycle

Frame = NDArray[np.uint8]  # [H, W, 3] RGB

_TIME_BASE = Fraction(1, 90_000)  # of video in most containers: exact for all common rates
_SOUNDS = frozenset(("aac", "mp3", "opus", "ac3", "eac3", "alac", "flac"))  # that mp4 holds
_LEAST_DEADLINE_S = 300.0
_SLOWNESS = 20.0  # seconds of work for one second of video, at most
_BLUE, _PALE, _WHITE, _INK = (42, 111, 184), (150, 184, 222), (255, 255, 255), (29, 36, 51)


@dataclass(frozen=True)
class _Job:
    """What the process is given.

    Attributes:
        video: To read.
        out: To write.
        cycles: Seconds.
        end_s: Length of the video.
        total: What is written behind the number of repetitions so far.
    """

    video: str
    out: str
    cycles: tuple[Cycle, ...]
    end_s: float
    total: str


def write_overlay(counted: VideoCount, path: Path) -> None:
    """Write a video with a counter and a bar of the repetitions; its sound is kept.

    Raises:
        VideoError: if the video cannot be decoded, or its sound cannot be copied into an mp4.
        DataError: if the disk has no room.
    """
    with replacing(path, is_durable=False) as partial:
        job = _Job(
            str(counted.video.absolute()),
            str(partial),
            counted.cycles,
            counted.duration_s,
            total_of(counted),
        )
        process = DecodingProcess(_draw)
        try:
            process.wait_ready()
            process.give(job, max(_LEAST_DEADLINE_S, _SLOWNESS * counted.duration_s))
            found = process.wait()
        finally:
            process.end()
        if isinstance(found, Failure):
            raise VideoError(f"{counted.video}: {found.message}")


def total_of(counted: VideoCount) -> str:
    """What the counter counts up to: the count, and the list where it has another length."""
    listed, mark = len(counted.cycles), "" if counted.is_sure else " ?"
    if counted.count == listed:
        return f"/ {listed}{mark}"
    return f"/ {listed} listed, count {'none' if counted.count is None else counted.count}{mark}"


def _draw(job: _Job) -> None:
    """Read, draw and write; in the process."""
    try:
        with av.open(job.out, "w", format="mp4") as out, open_container(job.video) as sound:
            _write(job, out, sound)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{job.video}: cannot be written anew{reason_of(error)}") from error


def _write(job: _Job, out: Any, sound: Any) -> None:
    with Video(job.video) as video:
        probe = video.probe
        height, width = probe.height + probe.height % 2, probe.width + probe.width % 2
        stream = out.add_stream("libx264", rate=Fraction(probe.fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = _TIME_BASE
        stream.options = {"preset": "veryfast", "crf": "20"}
        first_s = 0.0 if probe.counts_frames else float(probe.first_pts * probe.time_base_s)
        packets = _sound_packets(job.video, sound, out, first_s - probe.lead_s)
        waiting = next(packets, None)
        for second, frame in video.frames():
            drawn = draw_on(frame, second, job.cycles, job.end_s, job.total)
            picture = av.VideoFrame.from_ndarray(_padded(drawn, height, width), format="rgb24")
            picture.pts = round((second + probe.lead_s) / _TIME_BASE)
            picture.time_base = _TIME_BASE
            out.mux(stream.encode(picture))
            while waiting is not None and waiting[0] <= second + probe.lead_s:
                out.mux(waiting[1])
                waiting = next(packets, None)
        out.mux(stream.encode(None))
        while waiting is not None:
            out.mux(waiting[1])
            waiting = next(packets, None)


def _sound_packets(path: str, sound: Any, out: Any, start_s: float) -> Iterator[tuple[float, Any]]:
    """(second, packet) of the first sound track, for a stream of `out` that is added at once.

    Args:
        path: For messages.
        sound: The file, opened once more.
        out: The file that is written.
        start_s: Second of the file's clock that is 0 in `out`.
    """
    if not sound.streams.audio:
        return iter(())
    source = sound.streams.audio[0]
    name = source.codec_context.name
    if name not in _SOUNDS:
        raise VideoError(f"{path}: its sound ({name}) cannot be copied into an mp4")
    return _moved(sound, source, out.add_stream_from_template(source), start_s)


def _moved(sound: Any, source: Any, target: Any, start_s: float) -> Iterator[tuple[float, Any]]:
    for packet in sound.demux(source):
        if packet.dts is None:
            continue
        offset = round(start_s / packet.time_base)
        packet.dts -= offset
        packet.pts = (packet.dts + offset if packet.pts is None else packet.pts) - offset
        packet.stream = target
        yield float(packet.pts * packet.time_base), packet


def _padded(frame: Frame, height: int, width: int) -> Frame:
    """Even sides, which H.264 asks for, by one more row or column of the same."""
    rows, columns = height - frame.shape[0], width - frame.shape[1]
    if not rows and not columns:
        return frame
    return np.ascontiguousarray(np.pad(frame, ((0, rows), (0, columns), (0, 0)), mode="edge"))


def draw_on(
    frame: Frame, second: float, cycles: tuple[Cycle, ...], end_s: float, total: str
) -> Frame:
    """A frame with the counter at the top and the bar at the bottom.

    Args:
        frame: uint8 [H, W, 3] RGB, left as it is.
        second: When it is shown.
        cycles: Of the whole video.
        end_s: Length of the video.
        total: What is written behind the number of repetitions that have ended.
    """
    drawn = frame.copy()
    height, width = drawn.shape[:2]
    bar = max(4, height // 24)
    _text(drawn, f"{sum(end <= second for _, end in cycles)} {total}", bar)
    at = width / max(end_s, 1e-6)  # pixels a second
    cv2.rectangle(drawn, (0, height - bar), (width, height), _INK, -1)
    for start, end in cycles:
        box = (int(start * at), height - bar), (max(int(end * at) - 1, int(start * at)), height)
        cv2.rectangle(drawn, *box, _PALE if end > second else _BLUE, -1)
        if start <= second < end:
            cv2.rectangle(drawn, box[0], (int(second * at), height), _BLUE, -1)
    x = min(int(second * at), width - 1)
    cv2.line(drawn, (x, height - bar), (x, height), _WHITE, max(1, bar // 6))
    return drawn


def _text(frame: Frame, text: str, size: int) -> None:
    """White on dark in the upper left corner; as large as `size` pixels or as fits."""
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(1, size // 10)
    (width, height), below = cv2.getTextSize(text, font, 1.0, thickness)
    scale = min(2.0 * size / height, (frame.shape[1] - 4) / width)
    right, bottom = int(width * scale) + 4, int((height + below) * scale) + 4
    cv2.rectangle(frame, (0, 0), (right, bottom), _INK, -1)
    place = (2, int(height * scale) + 2)
    cv2.putText(frame, text, place, font, scale, _WHITE, thickness, cv2.LINE_AA)

"""Pictures as they come, each once: of a camera, a file, a pipe or an address.

Owns what may be opened as a stream. An address is opened only where that is allowed; what is no
address opens no address, whatever a playlist in it says. Times are the stamps of the stream, of a
camera those of arrival, in seconds from the first picture.
"""

import re
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.video.container import CONTAINERS, choose_stream, reason_of
from data_prep.video.files import VideoError, file_problem
from data_prep.video.plan import fit_size
from data_prep.video.reader import luma_of, resized

Grey = NDArray[np.uint8]  # [H, W]

LONGEST_GAP_S = 60.0
"""Between two pictures; a longer one, or a step back, is a fault of the stamps, and no time."""

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_LOGIN = re.compile(r"://[^/?#]*@")
_SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtp", "udp", "tcp", "srt")
_PROTOCOLS = (*_SCHEMES, "tls", "crypto", "httpproxy", "rtmps")
_LIVE_CONTAINERS = (*CONTAINERS, "rtsp", "sdp", "rtp", "hls", "mpjpeg")
_MOST_DIGITS = 9  # of the number of a camera
_WAIT_S = 20.0  # for an address to answer, and for more of it


def is_address(source: str) -> bool:
    """Whether a source is reached by a network."""
    return _ADDRESS.match(source) is not None


def without_login(source: str) -> str:
    """A source as it may be shown: without the name and password of an address."""
    return _LOGIN.sub("://***@", source)


def is_camera(source: str) -> bool:
    """Whether a source is a camera of this machine: its number, or its device."""
    if source.isascii() and source.isdecimal():
        return True
    try:
        return stat.S_ISCHR(Path(source).stat().st_mode)
    except (OSError, ValueError):
        return False


def read_stream(source: str, max_pixels: int) -> Iterator[tuple[float, Grey]]:
    """Each picture with its second, until the source ends.

    Args:
        source: Number or device of a camera, path of a file or a named pipe, or an address, which
            the caller has allowed.
        max_pixels: Of one picture, which is made smaller.

    Raises:
        VideoError: if the source cannot be opened, or read to its end.
    """
    size = None
    for second, picture in _pictures(source):
        if size is None:
            size = fit_size(*picture.shape, factor=2, min_pixels=1, max_pixels=max_pixels)
        yield second, resized(picture, *size)


def at_equal_distances(pictures: Iterable[tuple[float, Grey]], fps: float) -> Iterator[Grey]:
    """`fps` pictures a second: at each moment the one that is shown then.

    Args:
        pictures: With their seconds.
        fps: Pictures a second.
    """
    shown: Grey | None = None
    anchor = previous = 0.0  # of the stamps
    num_told = 0
    for second, picture in pictures:
        if shown is None or not 0.0 <= second - previous <= LONGEST_GAP_S:
            anchor = second - num_told / fps  # time goes on from here
        while shown is not None and num_told / fps < second - anchor - 1e-6:
            yield shown
            num_told += 1
        shown, previous = picture, second
    if shown is not None:
        yield shown


def _pictures(source: str) -> Iterator[tuple[float, Grey]]:
    if is_camera(source):
        return _of_camera(source)
    return _of_container(source)


def _of_camera(source: str) -> Iterator[tuple[float, Grey]]:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # its errors are ours
    if len(source) > _MOST_DIGITS and source.isdecimal():
        raise VideoError(f"{source}: no number of a camera")
    camera = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    try:
        if not camera.isOpened():
            raise VideoError(f"{source}: no camera that can be opened")
        first: float | None = None
        while True:
            is_read, picture = camera.read()
            if not is_read:
                raise VideoError(f"{source}: the camera gives no more pictures")
            now = time.monotonic()
            first = now if first is None else first
            yield now - first, cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    finally:
        camera.release()


def _of_container(source: str) -> Iterator[tuple[float, Grey]]:
    name = without_login(source)
    try:
        with _open(source) as container:
            stream = choose_stream(name, container)
            first: float | None = None
            for frame in container.decode(stream):
                if frame.pts is None:
                    raise VideoError(f"{name}: a picture has no time stamp")
                second = float(frame.pts * frame.time_base)
                first = second if first is None else first
                yield second - first, luma_of(frame)
    except (av.FFmpegError, av.ArgumentError, OSError) as error:
        raise VideoError(f"{name}: cannot be read as a video{reason_of(error)}") from error


def _open(source: str) -> Any:
    if is_address(source):
        scheme = source.partition("://")[0].lower()
        if scheme not in _SCHEMES:
            raise VideoError(
                f"{without_login(source)}: expected an address of {', '.join(_SCHEMES)}"
            )
        options = {
            "protocol_whitelist": ",".join(_PROTOCOLS),
            "format_whitelist": ",".join(_LIVE_CONTAINERS),
        }
        return av.open(source, metadata_errors="replace", options=options, timeout=_WAIT_S)
    path = Path(source).absolute()
    if not path.is_fifo() and (problem := file_problem(path)):
        raise VideoError(f"{source}: {problem.message}")
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS)}
    return av.open(str(path), metadata_errors="replace", options=options)

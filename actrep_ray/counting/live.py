"""Counting in a stream, without an end: a thread reads ahead, the detector looks when it can.

    source ─► thread ─► at most `_AHEAD_S` of small grey pictures ─► window ─► settled, or so far

A file, a pipe or an address is read as fast as it is counted in; a camera does not wait, so what
there is no room for is left out and told.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.periodicity.features import FPS, MAX_PIXELS
from data_prep.periodicity.live import LiveCounter, Settled
from data_prep.periodicity.verdict import NOT_SURE
from data_prep.video import VideoError
from data_prep.video.stream import at_equal_distances, is_camera, read_stream

_AHEAD_S = 60.0
_LEAST_S = 1.0  # between two looks
_OF_LOOKS = 2.0  # times as long as a look took nothing is looked at after it
_WAIT_S = 0.2  # for a picture, before it is looked whether somebody ended it

Grey = NDArray[np.uint8]


@dataclass
class LiveTotal:
    """What a stream came to.

    Attributes:
        count: Repetitions.
        duration_s: Seconds that were looked at.
        num_windows: That were settled.
        num_unsure: Of them, those that are not sure.
        reason: Of the first that is not; empty if all are.
        left_out_s: Seconds of a camera that there was no room for.
        problem: Why the source ended before its end; empty if it did not.
    """

    count: int = 0
    duration_s: float = 0.0
    num_windows: int = 0
    num_unsure: int = 0
    reason: str = ""
    left_out_s: float = 0.0
    problem: str = ""


class Feed:
    """Pictures that a thread reads ahead, which ends with the process.

    Args:
        pictures: As they come.
        waits: Whether they wait while there is no room for more; or are left out.

    Attributes:
        num_left_out: Those.
    """

    def __init__(self, pictures: Iterator[Grey], *, waits: bool) -> None:
        self._waits = waits
        self._pictures: queue.Queue[Grey | Exception | None] = queue.Queue(int(_AHEAD_S * FPS))
        self.num_left_out = 0
        threading.Thread(target=self._read, args=(pictures,), name="stream", daemon=True).start()

    def take(self) -> Iterator[Grey]:
        """Those that are there, at least one if it comes in time.

        Raises:
            EOFError: if there are no more.
            VideoError: if the source cannot be read.
        """
        for i in range(self._pictures.maxsize):
            try:
                one = self._pictures.get(timeout=0.0 if i else _WAIT_S)
            except queue.Empty:
                return
            if one is None:
                raise EOFError
            if isinstance(one, Exception):
                raise one
            yield one

    def _read(self, pictures: Iterator[Grey]) -> None:
        try:
            for picture in pictures:
                self._put(picture)
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            self._pictures.put(error)
        else:
            self._pictures.put(None)

    def _put(self, picture: Grey) -> None:
        try:
            self._pictures.put(picture, block=self._waits)
        except queue.Full:
            self.num_left_out += 1


def count_live(
    source: str,
    is_over: Callable[[], bool],
    told: Callable[[int, float], None] | None,
    settled: Callable[[Settled], None],
) -> LiveTotal:
    """Count until the source ends or somebody ends it.

    Args:
        source: As of `read_stream`.
        is_over: Whether somebody has ended it.
        told: Is told repetitions and seconds so far, now and then; None costs no looks.
        settled: Is told of each window that will not be looked at again.

    Raises:
        VideoError: if no picture can be read at all.
    """
    pictures = at_equal_distances(read_stream(source, MAX_PIXELS), FPS)
    feed = Feed(pictures, waits=not is_camera(source))
    counter, total = LiveCounter(), LiveTotal()
    due, looked_at = time.monotonic() + _LEAST_S, 0

    def keep(one: Settled | None) -> None:
        if one is None:
            return
        total.num_windows += 1
        if one.found.verdict == NOT_SURE:
            total.num_unsure += 1
            total.reason = total.reason or one.found.reason
        settled(one)

    while not is_over():
        try:
            for picture in feed.take():
                keep(counter.add(picture))
                if is_over():
                    break
        except EOFError:
            break
        except VideoError as error:
            if not counter.num_frames:
                raise
            total.problem = str(error)
            break
        began = time.monotonic()
        if told is not None and began >= due and counter.num_frames > looked_at:
            looked_at = counter.num_frames
            told(counter.look(), counter.duration_s)
            now = time.monotonic()
            due = now + max(_LEAST_S, _OF_LOOKS * (now - began))
    keep(counter.finish())
    total.count, total.duration_s = counter.num_settled, counter.duration_s
    total.left_out_s = feed.num_left_out / FPS
    return total

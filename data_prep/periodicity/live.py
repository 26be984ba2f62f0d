"""Counting in pictures that come one after the other, without an end: a window of them is held.

As `long` goes through a file: a window is looked at when it is full, cut, and what lies before the
cut is settled and given away. So memory does not grow, and a stream that ends comes to what a long
file comes to. Between, the window may be looked at as far as it has come.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.periodicity.detector import Detection, join_windows
from data_prep.periodicity.features import FPS
from data_prep.periodicity.long import MARGIN, WINDOW_S, between, look_at, settle

MAX_HELD_S = WINDOW_S * (1.0 + MARGIN)
"""Most that is held, seconds."""


@dataclass(frozen=True)
class Settled:
    """What will not be looked at again.

    Attributes:
        start_s: Its start, seconds from the first frame.
        end_s: Its end.
        found: Its repetitions, seconds from the first frame.
    """

    start_s: float
    end_s: float
    found: Detection


class LiveCounter:
    """Counts repetitions in frames as they are added.

    Args:
        fps: Frames a second, at equal distances.

    Attributes:
        num_frames: Added so far.
        num_settled: Repetitions that are settled.
    """

    def __init__(self, fps: float = FPS) -> None:
        self.num_frames = self.num_settled = 0
        self._fps = fps
        self._held: deque[NDArray[np.uint8]] = deque()
        self._from_s = 0.0

    @property
    def duration_s(self) -> float:
        """Seconds that were added."""
        return self.num_frames / self._fps

    @property
    def held_s(self) -> float:
        """Seconds that are held; at most `MAX_HELD_S` and a frame."""
        return len(self._held) / self._fps

    def add(self, grey: NDArray[np.uint8]) -> Settled | None:
        """Take the next frame.

        Args:
            grey: Grey values, of one size in all frames. [H, W]

        Returns:
            What is settled by it; mostly nothing.
        """
        self._held.append(grey)
        self.num_frames += 1
        if self.held_s <= MAX_HELD_S:
            return None
        return self._settle(round(WINDOW_S * self._fps), is_last=False)

    def look(self) -> int:
        """Repetitions so far, those that are not settled among them."""
        if not self._held:
            return self.num_settled
        shots = look_at(np.stack(self._held), self._fps)
        start = self._start / self._fps
        return self.num_settled + sum(
            len(between(shot.cycles, start, self._from_s, np.inf)) for shot in shots
        )

    def finish(self) -> Settled | None:
        """Settle the rest; None where there is none."""
        return self._settle(len(self._held), is_last=True) if self._held else None

    @property
    def _start(self) -> int:
        """Number of the first frame that is held."""
        return self.num_frames - len(self._held)

    def _settle(self, num_frames: int, *, is_last: bool) -> Settled:
        first, window = self._start, [self._held[i] for i in range(num_frames)]
        start, end = first / self._fps, (first + num_frames) / self._fps
        shots = look_at(np.stack(window), self._fps)
        kept, cut = settle(shots, start, end, self._from_s, is_last=is_last)
        found, begins = join_windows(kept), self._from_s
        self.num_settled += found.count
        self._from_s = cut.at_s
        for _ in range(min(round(cut.next_s * self._fps) - first, num_frames)):
            self._held.popleft()
        return Settled(begins, cut.at_s, found)

"""A video that is longer than what a model is shown at its full rate: window by window.

The windows are cut by the periodicity detector: in pauses, else where a repetition ends. Where it
sees nothing to go by, two windows overlap, and what a model lists belongs to the one on whose side
of the middle of the overlap it lies; so a repetition is counted once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from actrep_ray.config import VideoConfig
from actrep_ray.counting.record import VideoCount, WindowCount
from actrep_ray.counting.videos import Source
from actrep_ray.counting.votes import Vote
from actrep_ray.tasks.counting import LIST
from data_prep.periodicity.long import between, last_end, middle_of_pause
from data_prep.periodicity.verdict import COUNT, NOT_SURE
from data_prep.schema import Clip
from rewards.grammar.layout import Cycle

_OVERLAP = 1 / 8  # of a window, where nothing says where to cut
_OF_DOUBT = 0.5  # of the confidence that is left where all windows are in doubt


@dataclass(frozen=True)
class Span:
    """One window.

    Attributes:
        start_s: Of what is shown, seconds from the start of the video.
        end_s: Of what is shown.
        from_s: Of what belongs to it; repetitions before it are the window's before.
        to_s: Of what belongs to it.
    """

    start_s: float
    end_s: float
    from_s: float
    to_s: float

    @property
    def is_alone(self) -> bool:
        """Whether nothing that is shown belongs to another window."""
        return (self.start_s, self.end_s) == (self.from_s, self.to_s)

    def of(self, clip: Clip) -> Clip:
        """What is shown, as a clip."""
        start, end = clip.start_s + self.start_s, clip.start_s + self.end_s
        return replace(clip, id=f"{clip.id}-{self.start_s:.1f}", start_s=start, end_s=end)


def longest_window_s(video: VideoConfig) -> float:
    """Length up to which a clip is shown at the full rate, seconds."""
    return video.max_frames / video.fps


def plan_windows(cycles: Sequence[Cycle], duration_s: float, longest_s: float) -> list[Span]:
    """Cut a video into windows.

    Args:
        cycles: What the detector found, in order; seconds from the start of the video.
        duration_s: Length of the video.
        longest_s: Most of a window.
    """
    spans: list[Span] = []
    start = kept_to = 0.0
    while duration_s - start > longest_s:
        low, high = start + 0.5 * longest_s, start + longest_s
        at = _safe_cut(cycles, low, high)
        end, following = (at, at) if at is not None else (high, high - _OVERLAP * longest_s)
        cut = 0.5 * (end + following)
        spans.append(Span(start, end, kept_to, cut))
        start, kept_to = following, cut
    return [*spans, Span(start, duration_s, kept_to, duration_s)]


def _safe_cut(cycles: Sequence[Cycle], low: float, high: float) -> float | None:
    """Middle of the longest pause between two times, else the last end of a repetition there."""
    middle = middle_of_pause(((a[1], b[0]) for a, b in pairwise(cycles)), low, high)
    return last_end(cycles, low, high) if middle is None else middle


def add_windows(source: Source, spans: Sequence[Span], votes: Sequence[Vote]) -> VideoCount:
    """One count out of those of the windows: their sum, and all that they list.

    Args:
        source: The video.
        spans: Its windows.
        votes: What the answers to each come to.
    """
    windows = [_window(span, one) for span, one in zip(spans, votes, strict=True)]
    return sum_windows(source.video, source.clip.duration_s, windows)


def sum_windows(video: Path, duration_s: float, windows: Sequence[WindowCount]) -> VideoCount:
    """One count out of those of windows.

    Args:
        video: As it was given.
        duration_s: Its length.
        windows: At least one, in order.
    """
    doubtful = [window for window in windows if window.reason]
    counts = [window.count for window in windows if window.count is not None]
    total = sum(counts)
    weights = [window.count or 0 for window in windows] if total else [1] * len(windows)
    confidence = sum(w * one.vote.confidence for w, one in zip(weights, windows, strict=True))
    confidence *= (1.0 - _OF_DOUBT * len(doubtful) / len(windows)) / sum(weights)
    reason = ""
    if doubtful:
        first = doubtful[0]
        reason = (
            f"{len(doubtful)} of {len(windows)} windows, the first at {first.start_s:.1f} s: "
            f"{first.reason}"
        )
    return VideoCount(
        video=video,
        duration_s=duration_s,
        count=total if counts else None,
        verdict=NOT_SURE if reason else COUNT,
        reason=reason,
        confidence=confidence,
        cycles=tuple(cycle for window in windows for cycle in window.cycles),
        windows=tuple(windows),
    )


def _window(span: Span, found: Vote) -> WindowCount:
    """What belongs to one window: its count, or how much of its list, where windows overlap."""
    cycles = between(found.shown.cycles, span.start_s, span.from_s, span.to_s)
    count = found.count if isinstance(found.count, int) else None
    reason = found.reason
    if not span.is_alone and count is not None:
        if found.claims.get(LIST) == count:
            count = len(cycles)
        elif count:
            reason = reason or "overlaps with another window, and its answer has no such list"
    return WindowCount(span.from_s, span.to_s, count, reason, cycles, found)

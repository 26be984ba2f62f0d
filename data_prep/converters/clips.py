"""From an annotation to a clip: seconds of the video, marks in order and inside the clip."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from data_prep.converters.annotation import Annotation
from data_prep.converters.rows import BadRowError
from data_prep.converters.values import Pairs
from data_prep.schema import Clip
from data_prep.video import Probe

_DIGITS = 6  # of seconds in the output
_SLACK_S = 1e-6  # differences of rounding
_FPS_TOLERANCE = 0.01


def to_clip(annotation: Annotation, found: Probe, *, dataset: str, video: str) -> Clip:
    """An annotation in seconds, checked against what its video holds.

    Seconds of an annotation are those of a player unless it says otherwise; a clip's count from the
    video's first frame, which comes later where sound starts first. A frame number becomes the time
    at which the file presents that frame; only where the table states another rate than the file
    has (the marks are of another copy), it is divided by that.
    A clip's last frame is shown to its end. `times_source` of the clip says which it was.

    Raises:
        BadRowError: if the clip is empty or lies outside the video.
    """
    flags = list(annotation.flags)
    clock = _Clock(annotation, found)
    if clock.source == "rate":
        flags.append("fps_differs_from_video")
    start, end = _span(annotation, clock, found, flags)
    pairs = annotation.cycles
    cycles = None
    if pairs is not None:
        seconds = clock.seconds
        in_clip = [(seconds(first) - start, seconds(last) - start) for first, last in pairs]
        cycles = clean_cycles(in_clip, end - start, 1.0 / clock.fps, flags)
    if annotation.count == 0:
        flags.append("count_zero")
    if cycles is not None and len(cycles) != annotation.count:
        flags.append("count_differs_from_cycles")
    dataset = annotation.dataset or dataset
    return Clip(
        id=annotation.id or f"{dataset}-{annotation.split}-{annotation.name}",
        dataset=dataset,
        split=annotation.split,
        video=video,
        start_s=start,
        end_s=end,
        video_fps=found.fps,
        num_frames=found.num_frames,
        width=found.width,
        height=found.height,
        action=annotation.action,
        count=annotation.count,
        cycles=cycles,
        cycles_source=None if cycles is None else "annotation",
        times_source=clock.source,
        flags=tuple(dict.fromkeys(flags)),
    )


def with_count(clip: Clip, count: int) -> Clip:
    """A clip with a count that other rows contradict, and with the flags of that."""
    flags = [flag for flag in clip.flags if flag not in ("count_zero", "count_differs_from_cycles")]
    if count == 0:
        flags.append("count_zero")
    if clip.cycles is not None and len(clip.cycles) != count:
        flags.append("count_differs_from_cycles")
    return replace(clip, count=count, flags=(*flags, "conflicting_counts"))


class _Clock:
    """From the unit of an annotation to seconds of its video.

    Attributes:
        fps: Frames per second of the marks.
        source: How times were found: a key of `TIMES_SOURCES`.
    """

    def __init__(self, annotation: Annotation, found: Probe) -> None:
        self.fps = annotation.fps or found.fps
        self._found, self._first = found, annotation.first_frame
        self._time_of: Callable[[int], float] = found.times_s.item
        is_of_another_copy = abs(self.fps - found.fps) > _FPS_TOLERANCE * found.fps
        self._is_seconds = annotation.unit == "seconds"
        self._lead_s = 0.0 if annotation.counts_from_first_frame else found.lead_s
        self._is_rate = is_of_another_copy and not self._is_seconds
        self._num_known = 0 if self._is_rate else found.num_frames
        self.source = "seconds" if self._is_seconds else "rate" if self._is_rate else "time_stamps"

    def seconds(self, value: float) -> float:
        """When a frame is presented, or a second is; seconds from the video's first frame."""
        if self._is_seconds:
            return value - self._lead_s
        number = value - self._first
        frame = int(number)
        if frame == number and 0 <= frame < self._num_known:
            return self._time_of(frame)  # nearly every mark of a table: no more than a look-up
        return number / self.fps if self._is_rate else self._found.time_of_frame(number)


def clean_cycles(
    cycles: Iterable[Sequence[float]], duration_s: float, slack_s: float, flags: list[str]
) -> Pairs:
    """Marks in order, inside the clip and of some length; what was wrong is added to `flags`.

    Args:
        cycles: (start, end) in seconds from the clip's start.
        duration_s: Length of the clip.
        slack_s: How far a mark may reach over the clip's ends without remark: one frame.
        flags: Is added to.
    """
    kept: list[tuple[float, float]] = []
    for start, end in cycles:
        if start == end:
            flags.append("zero_length_cycles")
            continue
        if end < start:
            flags.append("reversed_cycles")
            continue
        if start < -slack_s or end > duration_s + slack_s:
            flags.append("cycle_outside_clip")
        inside = (round(max(start, 0.0), _DIGITS), round(min(end, duration_s), _DIGITS))
        if inside[0] < inside[1]:
            kept.append(inside)
    if any(later < earlier for earlier, later in pairwise(kept)):
        flags.append("unsorted_cycles")
        kept.sort()
    if any(later[0] < earlier[1] - _SLACK_S for earlier, later in pairwise(kept)):
        flags.append("overlapping_cycles")
    return tuple(kept)


def _span(
    annotation: Annotation, clock: _Clock, found: Probe, flags: list[str]
) -> tuple[float, float]:
    """(start, end) of the clip in seconds of the video, cut to it."""
    is_frames = annotation.unit == "frames"
    start = 0.0 if annotation.start is None else clock.seconds(annotation.start)
    last = found.end_s
    end = last
    if annotation.end is not None:  # a frame is shown until the next one
        end = clock.seconds(annotation.end + is_frames)
    if start >= end and annotation.end is not None:
        raise BadRowError(
            "bad_time", f"start={annotation.start}, end={annotation.end}, expected start < end"
        )
    if start >= last or end <= 0.0:
        raise BadRowError(
            "outside_video",
            f"the clip is {start:.3f} to {end:.3f} s, the video lasts {last:.3f} s",
        )
    if start < -1.0 / clock.fps or end > last + 1.0 / clock.fps:
        flags.append("clip_outside_video")
    start, end = round(max(start, 0.0), _DIGITS), round(min(end, last), _DIGITS)
    if start >= end:
        raise BadRowError("bad_time", f"the clip is {start} to {end} s, expected a length")
    return start, end

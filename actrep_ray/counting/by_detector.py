"""Counting by the periodicity detector, which needs no model."""

from collections.abc import Sequence

from actrep_ray.counting.record import VideoCount
from actrep_ray.counting.videos import Failure, Source
from data_prep.periodicity.detector import Detection
from data_prep.periodicity.long import detect_long
from data_prep.video import VideoError


def count_by_detector(sources: Sequence[Source]) -> list[VideoCount | Failure]:
    """Count in each video, in order; one that cannot be decoded is a failure."""
    return [_count(source) for source in sources]


def _count(source: Source) -> VideoCount | Failure:
    try:
        found = detect_long(source.clip)
    except VideoError as error:
        return Failure(source.video, str(error))
    return counted_by(source, found)


def counted_by(source: Source, found: Detection) -> VideoCount:
    """What the detector found, as a count."""
    return VideoCount(
        video=source.video,
        duration_s=source.clip.duration_s,
        count=found.reading,
        verdict=found.verdict,
        reason=found.reason,
        confidence=found.confidence,
        cycles=found.cycles,
        detection=found,
    )

"""Countix (Dwibedi et al., CVPR 2020): countix_train.csv, countix_val.csv and countix_test.csv.

Columns: video_id, class (not in the test file), kinetics_start, kinetics_end, repetition_start,
repetition_end, count. Seconds of the whole YouTube video: in a 10-second clip of Kinetics, which is
what is usually at hand, the repetitions start at repetition_start - kinetics_start. A clip may have
several rows, one for each of its repeating parts. There are no marks of single repetitions.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.converters.annotation import Annotation, Source
from data_prep.converters.csv_rows import Columns
from data_prep.converters.rows import BadRowError, Record
from data_prep.converters.split_tables import read_tables
from data_prep.converters.values import (
    action_name,
    count_of,
    name_of,
    required_time,
    text_of,
)

_COLUMNS = Columns(
    ("video_id", "kinetics_start", "repetition_start", "repetition_end", "count"),
    ("class", "kinetics_end"),
)
_FOLDERS = {"train": "train", "validation": "val", "test": "test"}
_SUFFIXES = (".mp4", ".mkv", ".webm")


def countix(
    paths: Sequence[Path], *, split: str | None = None, full_videos: bool = False
) -> Source:
    """The rows of some of its tables.

    Args:
        paths: The tables.
        split: Of all rows; None goes by the files' names.
        full_videos: The videos are whole YouTube videos, VIDEO_ID.mp4, not clips of Kinetics.
    """
    records, size = read_tables(paths, _COLUMNS, split=split)

    def parse(record: Record) -> Annotation:
        return _parse(record, full_videos=full_videos)

    return Source("countix", records, parse, size)


def _parse(record: Record, *, full_videos: bool) -> Annotation:
    values = record.values
    video_id = name_of(values, "video_id")
    label = text_of(values, "class")
    clip_start = required_time(values, "kinetics_start")
    start = required_time(values, "repetition_start")
    end = required_time(values, "repetition_end")
    if start >= end:
        detail = f"repetition_start={start:g}, repetition_end={end:g}, expected start < end"
        raise BadRowError("bad_time", detail)
    stems = [video_id]
    if not full_videos and (clip_end := values.get("kinetics_end")):
        clip_end = required_time({"kinetics_end": clip_end}, "kinetics_end")
        stems.insert(0, f"{video_id}_{int(clip_start):06d}_{int(clip_end):06d}")
    offset = 0.0 if full_videos else clip_start
    return Annotation(
        name=f"{video_id}_{int(clip_start):06d}_{round(1000 * (start - clip_start)):05d}",
        split=record.split,
        videos=tuple(_candidates(stems, _FOLDERS[record.split], label)),
        action=action_name(label),
        count=count_of(values, "count"),
        start=start - offset,
        end=end - offset,
        unit="seconds",
    )


def _candidates(stems: Sequence[str], split: str, label: str) -> Iterator[str]:
    """Where copies of Kinetics keep a clip: by split, by class, by both, or all in one folder."""
    labels = dict.fromkeys((label, label.replace(" ", "_"))) if label else ()
    folders = ["", f"{split}/"]
    folders += [f"{prefix}{name}/" for prefix in ("", f"{split}/") for name in labels]
    for stem in stems:
        for suffix in _SUFFIXES:
            for folder in folders:
                yield f"{folder}{stem}{suffix}"

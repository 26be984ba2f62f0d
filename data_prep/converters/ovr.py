"""OVR (Dwibedi et al., 2024): repetitions in clips of Kinetics and Ego4D, in open vocabulary.

JSON: `{"video_id", "ovr_annotations": [{"count", "description", "start_time", "end_time", "split",
"duration"}]}`, in a file for each video, as one array, or as JSON Lines. Seconds of the clip; no
marks of single repetitions. The description becomes the action, as it is.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_prep.converters.annotation import Annotation, Source
from data_prep.converters.rows import (
    BadRowError,
    Record,
    read_json_array,
    read_json_lines,
    size_of,
)
from data_prep.converters.values import (
    count_of,
    name_of,
    required_time,
    split_named,
    text_of,
    time_of,
)
from data_prep.files import DataError

_SUFFIXES = (".mp4", ".mkv", ".webm")
_LIST = "ovr_annotations"


def ovr(paths: Sequence[Path], *, split: str | None = None) -> Source:
    """The annotations of its files; each is a row.

    Args:
        paths: .json and .jsonl files, or folders of them.
        split: Of all rows; None goes by each annotation's own field.

    Raises:
        DataError: if there is nothing to read.
    """
    files = [file for path in paths for file in _files(path)]
    starts = [0, *accumulate(size_of([file]) for file in files)]

    def records() -> Iterator[Record]:
        for file, start in zip(files, starts, strict=False):
            yield from _records(file, split or "", start)

    return Source("ovr", records(), _parse, starts[-1])


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl"))
    if not files:
        raise DataError(f"{path}: holds no .json or .jsonl files")
    return files


def _records(file: Path, split: str, before: int) -> Iterator[Record]:
    if file.suffix == ".jsonl":
        for line in read_json_lines(file, split=split, before=before):
            yield from [line] if line.problem else _of_video(line)
        return
    for number, value, position in read_json_array(file, before=before):
        yield from _of_video(Record(file.name, number, _mapping(value), split, position))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"value": value}


def _of_video(video: Record) -> Iterator[Record]:
    """A record for each annotation of a video."""
    annotations = video.values.get(_LIST)
    if not isinstance(annotations, list) or not annotations:
        problem = BadRowError("no_annotations", f"{_LIST} is not a list with entries")
        yield Record(video.source, video.row, video.values, video.split, video.position, problem)
        return
    for i, annotation in enumerate(annotations):
        values = {**_mapping(annotation), "video_id": video.values.get("video_id"), "index": i}
        bad = not isinstance(annotation, dict)
        wrong = BadRowError("bad_annotation", f"{_LIST}[{i}] is not an object") if bad else None
        yield Record(video.source, video.row, values, video.split, video.position, wrong)


def _parse(record: Record) -> Annotation:
    values = record.values
    video_id = name_of(values, "video_id")
    split = record.split or split_named(text_of(values, "split"))
    start = required_time(values, "start_time")
    end = required_time(values, "end_time")
    if start >= end:
        raise BadRowError(
            "bad_time", f"start_time={start:g}, end_time={end:g}, expected start < end"
        )
    time_of(values, "duration")
    folders = ("", f"{split}/", *(("val/",) if split == "validation" else ()))
    return Annotation(
        name=f"{video_id}-{values['index']}",
        split=split,
        videos=tuple(f"{folder}{video_id}{end}" for end in _SUFFIXES for folder in folders),
        action=text_of(values, "description") or "unknown",
        count=count_of(values, "count"),
        start=start,
        end=end,
        unit="seconds",
    )

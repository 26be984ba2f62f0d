"""What the converters share: from one row of an annotation file to one line of `clips.jsonl`.

Owns the two halves of a conversion and what happens between them::

    Source.records ──► Source.parse ──► Annotation ──► to_clip ──► clips.jsonl
     (a file's rows)    (the set's own     │             (video's header, seconds)
                         columns)          └─ BadRowError ──► rejected.jsonl, with its reason

A set's own file holds nothing but its columns, units and conventions. Rows are read, converted and
written one at a time; ids are remembered on disk, so that a larger table needs no more memory.

A row that cannot be used is rejected with one of `REASONS`; a row that can be used but is not what
it should be is written with one or more of `FLAGS`. Rows read = rows written + rows rejected.
"""

import json
import math
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

from data_prep.converters.rows import BadRowError, Record, read_table, size_of
from data_prep.converters.values import Pairs, split_of_path
from data_prep.converters.videos import VideoFolder, VideoHeader
from data_prep.schema import Clip, DataError, write_lines
from data_prep.strata import BINS, stratum_of

FLAGS = {
    "count_differs_from_cycles": "the count and the number of usable marks disagree; both are kept",
    "count_zero": "nothing is repeated",
    "no_cycles": "the set has marks, this row has none",
    "zero_length_cycles": "marks that start where they end were left out",
    "reversed_cycles": "marks that end before they start were left out",
    "unsorted_cycles": "marks were out of order and are sorted",
    "overlapping_cycles": "marks overlap and are kept",
    "cycle_outside_clip": "marks reach over the clip's ends; cut to it, or left out if beyond it",
    "clip_outside_video": "the clip reaches over the video's ends and is cut to it",
    "fps_differs_from_video": "the table's frame rate is not the video's; marks follow the table",
}

REASONS = {
    "missing_video": "no such file in the folder of videos",
    "no_video_name": "the row names no video",
    "absolute_path": "the video's path is absolute",
    "path_traversal": "the video's path has a part `..`",
    "bad_video_name": "the video's path cannot be a path (NUL, too long)",
    "symlink_loop": "the video's path goes in circles",
    "not_a_file": "the video's path is a folder or a device",
    "unreadable_video": "the file's header is not that of a video",
    "count_empty": "the row has no count",
    "count_not_a_number": "the count is text",
    "count_not_whole": "the count is a fraction",
    "count_negative": "the count is below 0",
    "count_too_large": "the count cannot be meant",
    "bad_mark": "a mark is not a number of at least 0 (of at least 1 where frames count from 1)",
    "half_a_cycle": "a start without an end, or an end without a start",
    "bad_fps": "the table's frame rate is not a number above 0",
    "bad_time": "the clip's start or end is not a number of at least 0, or start >= end",
    "outside_video": "the clip lies outside the video",
    "unknown_split": "the split is none of train, validation (val, valid, dev), test",
    "duplicate_id": "an earlier row has the same id",
    "not_utf8": "the row is not UTF-8",
    "bad_line": "the line is not of the file's format",
    "too_many_fields": "the row has more fields than the header",
    "bad_annotation": "the annotation file cannot be read",
    "no_annotations": "the video has no annotation",
}

_DIGITS = 6  # of seconds in the output
_SLACK_S = 1e-6  # differences of rounding
_MAX_VALUE = 200  # characters of a value that a rejected row keeps
_NUM_NAMED = 3  # missing videos that the error names
_FPS_TOLERANCE = 0.01


class MissingVideosError(DataError):
    """Videos that the rows name are not there, and that was not allowed."""


@dataclass(frozen=True)
class Annotation:
    """What one row says, in the set's own unit.

    Attributes:
        name: Names the row within its split and becomes its id.
        split: One of `data_prep.schema.SPLITS`.
        videos: Where the video may be, best first, relative to the folder of videos.
        action: What is repeated.
        count: Number of repetitions.
        cycles: (start, end) of each repetition, as marked; None where the set has no marks.
        start: Start of the clip in the video; None is the video's start.
        end: End of the clip in the video (the last frame, where the unit is frames); None is the
            video's end.
        unit: Of `cycles`, `start` and `end`.
        first_frame: The number of the video's first frame, 0 or 1.
        fps: Frames per second of the marks; None is the video's own.
        flags: Remarks so far.
    """

    name: str
    split: str
    videos: tuple[str, ...]
    action: str
    count: int
    cycles: Pairs | None = None
    start: float | None = None
    end: float | None = None
    unit: Literal["frames", "seconds"] = "frames"
    first_frame: int = 0
    fps: float | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A data set as it is distributed: its rows, and how one is understood.

    Attributes:
        dataset: Name of the set.
        records: Its rows in order, read as they are asked for.
        parse: Turns one row into an `Annotation` or raises `BadRowError`.
        size: What `Record.position` counts up to (bytes or files), for the progress bar.
    """

    dataset: str
    records: Iterable[Record]
    parse: Callable[[Record], Annotation]
    size: int


@dataclass
class Summary:
    """Numbers of one conversion; `num_read == num_written + num_rejected`, always.

    `splits`, `flags`, `rejected` and `counts` count rows by kind; `first_rejected` says where the
    first rejected row is and what is wrong with it.
    """

    dataset: str
    num_read: int = 0
    num_written: int = 0
    num_flagged: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    num_cycles: int = 0
    num_missing_videos: int = 0
    first_rejected: str = ""

    @property
    def num_rejected(self) -> int:
        """Rows that were rejected, for any reason."""
        return self.rejected.total()

    def to_json(self) -> str:
        """The summary as indented JSON; counters in descending, the histogram in its own order."""
        values = {
            "dataset": self.dataset,
            "num_read": self.num_read,
            "num_written": self.num_written,
            "num_rejected": self.num_rejected,
            "num_flagged": self.num_flagged,
            "num_missing_videos": self.num_missing_videos,
            "num_cycles": self.num_cycles,
            "splits": _ordered(self.splits),
            "flags": _ordered(self.flags),
            "rejected": _ordered(self.rejected),
            "counts": {stratum.name: self.counts[stratum.name] for stratum in BINS},
        }
        return json.dumps(values, indent=2)


def convert(
    source: Source,
    *,
    videos: str | Path,
    out: str | Path,
    allow_missing: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Convert a set: `clips.jsonl`, `rejected.jsonl` and `summary.json` in the folder `out`.

    Each file is complete or absent, and the same input gives the same bytes. `missing.txt` lists
    the missing videos, one a line; it is there if and only if there are any.

    Args:
        source: The set.
        videos: The folder that the rows' paths are relative to.
        out: The folder to write to.
        allow_missing: Reject the rows whose video is missing and go on.
        progress: Called with (position, size) of the source as rows are done.

    Raises:
        MissingVideosError: if videos are missing and that is not allowed. Nothing is written then
            but `missing.txt`.
        DataError: if a file of the set cannot be read at all, or has no rows.
    """
    out = Path(out)
    with closing(_Conversion(source, VideoFolder(videos), out, progress)) as conversion:
        write_lines(out / "clips.jsonl", conversion.clip_lines(allow_missing=allow_missing))
        write_lines(out / "rejected.jsonl", conversion.rejected_lines())
        write_lines(out / "summary.json", [conversion.summary.to_json()])
        return conversion.summary


class _Conversion:
    """One run over a source; owns the counting and what is kept on disk meanwhile."""

    def __init__(
        self,
        source: Source,
        videos: VideoFolder,
        out: Path,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.summary = Summary(source.dataset)
        self._source = source
        self._videos = videos
        self._out = out
        self._front = _as_written(videos.root, out)
        self._progress = progress
        self._ids = _SeenNames()
        self._missing = _SeenNames()
        self._rejected = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115

    def close(self) -> None:
        self._rejected.close()
        self._ids.close()
        self._missing.close()

    def clip_lines(self, *, allow_missing: bool) -> Iterator[str]:
        """Lines of `clips.jsonl`; what is rejected is kept for `rejected_lines`."""
        for record in self._source.records:
            self.summary.num_read += 1
            try:
                clip, line = self._clip(record)
            except BadRowError as error:
                self._reject(record, error)
            else:
                self._count(clip)
                yield line
            if self._progress is not None:
                self._progress(record.position, self._source.size)
        if not self.summary.num_read:
            raise DataError(f"{self._source.dataset}: holds no rows, expected at least one")
        self._list_missing()
        if self.summary.num_missing_videos and not allow_missing:
            raise MissingVideosError(self._missing_message())

    def rejected_lines(self) -> Iterator[str]:
        """Lines of `rejected.jsonl`, in the order of the rows."""
        self._rejected.seek(0)
        for line in self._rejected:
            yield line.rstrip("\n")

    def _clip(self, record: Record) -> tuple[Clip, str]:
        if record.problem is not None:
            raise record.problem
        annotation = self._source.parse(record)
        video = self._videos.find(annotation.videos)
        clip = to_clip(
            annotation,
            self._videos.header(video),
            dataset=self._source.dataset,
            video=os.path.normpath(f"{self._front}/{video}"),
        )
        line = _as_line(clip)
        if not self._ids.add(clip.id):
            raise BadRowError("duplicate_id", f"id={clip.id!r} was used by an earlier row")
        return clip, line

    def _count(self, clip: Clip) -> None:
        summary = self.summary
        summary.num_written += 1
        summary.num_flagged += bool(clip.flags)
        summary.flags.update(clip.flags)
        summary.splits[clip.split] += 1
        summary.counts[stratum_of(clip.count, BINS).name] += 1
        summary.num_cycles += len(clip.cycles or ())

    def _reject(self, record: Record, error: BadRowError) -> None:
        assert error.reason in REASONS, error.reason
        if not self.summary.rejected:
            self.summary.first_rejected = f"{record.source}:{record.row}: {error}"
        self.summary.rejected[error.reason] += 1
        if error.reason == "missing_video":
            self._missing.add(error.video)
        row = {
            "source": record.source,
            "row": record.row,
            "reason": error.reason,
            "detail": error.detail,
            "values": {key: _kept(value) for key, value in record.values.items()},
        }
        self._rejected.write(json.dumps(row, allow_nan=False) + "\n")

    def _list_missing(self) -> None:
        self.summary.num_missing_videos = len(self._missing)
        path = self._out / "missing.txt"
        if len(self._missing):
            write_lines(path, self._missing)
        else:
            path.unlink(missing_ok=True)

    def _missing_message(self) -> str:
        number = self.summary.num_missing_videos
        named = [name for name, _ in zip(self._missing, range(_NUM_NAMED), strict=False)]
        more = ", ..." if number > len(named) else ""
        are = "1 video is" if number == 1 else f"{number} videos are"
        return (
            f"{are} missing in {self._videos.root} ({self.summary.rejected['missing_video']} of "
            f"{self.summary.num_read} rows): {', '.join(named)}"
            f"{more}; all are listed in {self._out / 'missing.txt'}; no clips were written; "
            "give --allow-missing to go on without them"
        )


class _SeenNames:
    """A set of names in a temporary file of SQLite, in order of arrival: bounded memory."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # "" is a database on disk that goes with us
        self._database.execute("CREATE TABLE seen (name TEXT PRIMARY KEY)")
        self._size = 0

    def close(self) -> None:
        self._database.close()

    def add(self, name: str) -> bool:
        """Remember a name; returns whether it is new."""
        added = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (name,)).rowcount
        self._size += added
        return bool(added)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[str]:
        for (name,) in self._database.execute("SELECT name FROM seen ORDER BY rowid"):
            yield name


def read_tables(
    paths: Sequence[Path], *, required: Sequence[str], split: str | None
) -> tuple[Iterator[Record], int]:
    """Rows of CSV files whose names say the split, one file after the other, and their bytes.

    Args:
        paths: The files.
        required: Columns that each must have, "a|b" is either.
        split: Of all rows; None goes by the files' names.

    Raises:
        DataError: if one is not there, is empty, or does not say its split.
    """
    starts = [0, *accumulate(size_of([path]) for path in paths)]
    splits = [split_of_path(path, split) for path in paths]

    def records() -> Iterator[Record]:
        for path, of_file, start in zip(paths, splits, starts, strict=False):
            yield from read_table(path, required=required, split=of_file, before=start)

    return records(), starts[-1]


# --- from an annotation to a clip


def to_clip(annotation: Annotation, header: VideoHeader, *, dataset: str, video: str) -> Clip:
    """An annotation in seconds, checked against the header of its video.

    Seconds of frame f are (f - first_frame) / fps; a clip's last frame is shown to its end.

    Raises:
        BadRowError: if the clip is empty or lies outside the video.
    """
    flags = list(annotation.flags)
    fps = annotation.fps or header.fps
    if annotation.fps and abs(annotation.fps - header.fps) > _FPS_TOLERANCE * header.fps:
        flags.append("fps_differs_from_video")
    start, end = _span(annotation, fps, header, flags)
    pairs = annotation.cycles
    cycles = None
    if pairs is not None:
        in_clip = [tuple(_seconds(x, annotation, fps) - start for x in pair) for pair in pairs]
        cycles = clean_cycles(in_clip, end - start, 1.0 / fps, flags)
    if annotation.count == 0:
        flags.append("count_zero")
    if cycles is not None and len(cycles) != annotation.count:
        flags.append("count_differs_from_cycles")
    return Clip(
        id=f"{dataset}-{annotation.split}-{annotation.name}",
        dataset=dataset,
        split=annotation.split,
        video=video,
        start_s=start,
        end_s=end,
        video_fps=header.fps,
        num_frames=header.num_frames,
        width=header.width,
        height=header.height,
        action=annotation.action,
        count=annotation.count,
        cycles=cycles,
        cycles_source=None if cycles is None else "annotation",
        flags=tuple(dict.fromkeys(flags)),
    )


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
    annotation: Annotation, fps: float, header: VideoHeader, flags: list[str]
) -> tuple[float, float]:
    """(start, end) of the clip in seconds of the video, cut to it."""
    is_frames = annotation.unit == "frames"
    start = 0.0 if annotation.start is None else _seconds(annotation.start, annotation, fps)
    last = header.duration_s
    end = last
    if annotation.end is not None:  # a frame is shown until the next one
        end = _seconds(annotation.end + is_frames, annotation, fps)
    if start >= end and annotation.end is not None:
        raise BadRowError(
            "bad_time", f"start={annotation.start}, end={annotation.end}, expected start < end"
        )
    if start >= last or end <= 0.0:
        raise BadRowError(
            "outside_video",
            f"the clip is {start:.3f} to {end:.3f} s, the video lasts {last:.3f} s",
        )
    if start < -1.0 / fps or end > last + 1.0 / fps:
        flags.append("clip_outside_video")
    start, end = round(max(start, 0.0), _DIGITS), round(min(end, last), _DIGITS)
    if start >= end:
        raise BadRowError("bad_time", f"the clip is {start} to {end} s, expected a length")
    return start, end


def _seconds(value: float, annotation: Annotation, fps: float) -> float:
    if annotation.unit == "seconds":
        return value
    return (value - annotation.first_frame) / fps


def _as_written(videos: Path, out: Path) -> Path:
    """Relative to `out` if it lies below it, else absolute (symbolic links are not followed)."""
    videos, out = videos.absolute(), out.absolute()
    return videos.relative_to(out) if videos.is_relative_to(out) else videos


def _as_line(clip: Clip) -> str:
    """A line that can be written: JSON may hold halves of surrogate pairs, UTF-8 may not."""
    line = clip.to_json()
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise BadRowError("not_utf8", "a text with half of a surrogate pair") from error
    return line


def _kept(value: Any) -> Any:
    """What a rejected row shows of a value: numbers as they are, the rest as short text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."


def _ordered(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))

"""A conversion, the same for every set: from the rows of annotation files to `clips.jsonl`.

    Source.records ──► Source.parse ──► Annotation ──► to_clip ──► SameClips ──► clips.jsonl
     (a file's rows)    (the set's own     │          (video's header,    │ (other rows)
                         columns)          │              seconds)        │
                                           └───────── BadRowError ────────┴──► rejected.jsonl

A set's own file holds nothing but its columns, units and conventions. Rows are read and converted
one at a time and kept on disk; when the last is read, they are compared with each other and
written. A larger table needs no more memory.

A row that cannot be used is rejected with one of `REASONS`; a row that can be used but is not what
it should be is written with one or more of `FLAGS`. Rows read = rows written + rows rejected.
"""

import json
import marshal
import math
import os
import sqlite3
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.converters.annotation import Source
from data_prep.converters.clips import to_clip, with_count
from data_prep.converters.remarks import REASONS
from data_prep.converters.rows import BadRowError, Record
from data_prep.converters.same_clips import Conflicts, SameClips, Verdict
from data_prep.converters.videos import VideoFolder
from data_prep.files import DataError, write_lines
from data_prep.schema import Clip, parse_clip
from data_prep.strata import BINS, stratum_of

_MAX_VALUE = 200  # characters of a value that a rejected row keeps
_NUM_NAMED = 3  # missing videos that the error names


class MissingVideosError(DataError):
    """Videos that the rows name are not there, and that was not allowed."""


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
    allow_outside: Sequence[str] = (),
    conflicts: Conflicts = "drop",
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
        allow_outside: Folders, other than `videos`, that links in it may lead to.
        conflicts: What becomes of rows of one clip with different counts: `SameClips`.
        progress: Called with (position, size) of the source as rows are done.

    Raises:
        MissingVideosError: if videos are missing and that is not allowed. Nothing is written then
            but `missing.txt`.
        DataError: if a file of the set cannot be read at all, or has no rows.
    """
    out = Path(out)
    folder = VideoFolder(videos, allow_outside)
    with closing(_Conversion(source, folder, out, progress)) as conversion:
        write_lines(
            out / "clips.jsonl",
            conversion.clip_lines(allow_missing=allow_missing, conflicts=conflicts),
        )
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
        self._num_without_video = 0
        self._same = SameClips()
        self._missing = _SeenNames()
        self._rows = _WaitingRows()
        self._rejected = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115

    def close(self) -> None:
        self._rejected.close()
        self._rows.close()
        self._same.close()
        self._missing.close()

    def clip_lines(self, *, allow_missing: bool, conflicts: Conflicts) -> Iterator[str]:
        """Lines of `clips.jsonl`; what is rejected is kept for `rejected_lines`."""
        for record in self._source.records:
            self._read(record)
            if self._progress is not None:
                self._progress(record.position, self._source.size)
        if not self.summary.num_read:
            raise DataError(f"{self._source.dataset}: holds no rows, expected at least one")
        self._list_missing()
        if self.summary.num_missing_videos and not allow_missing:
            raise MissingVideosError(self._missing_message())
        self._same.decide(conflicts)
        verdicts = self._same.verdicts()
        verdict = next(verdicts, None)
        for number, (row, origin) in enumerate(self._rows):
            if verdict is not None and verdict.number == number:
                row = _with_verdict(row, verdict)
                verdict = next(verdicts, None)
            if row.problem is None:
                self._count(row.facts)
                yield row.line
            else:
                self._reject(_Origin(*marshal.loads(origin)), row.problem)

    def rejected_lines(self) -> Iterator[str]:
        """Lines of `rejected.jsonl`, in the order of the rows."""
        self._rejected.seek(0)
        for line in self._rejected:
            yield line.rstrip("\n")

    def _read(self, record: Record) -> None:
        """Convert a row and put it aside."""
        try:
            clip, line, video = self._clip(record)
        except BadRowError as error:
            row = _Row("", _NO_FACTS, (error.reason, error.detail))
            if error.reason == "missing_video":
                self._missing.add(error.video)
                self._num_without_video += 1
        else:
            self._same.add(self.summary.num_read, f"{record.source}:{record.row}", clip, video)
            row = _Row(line, _facts(clip), None)
        self._rows.add(row, _Origin(record.source, record.row, dict(record.values)))
        self.summary.num_read += 1

    def _clip(self, record: Record) -> tuple[Clip, str, str]:
        if record.problem is not None:
            raise record.problem
        annotation = self._source.parse(record)
        video = self._videos.find(annotation.videos)
        clip = to_clip(
            annotation,
            self._videos.probe(video),
            dataset=self._source.dataset,
            video=os.path.normpath(f"{self._front}/{video}"),
        )
        return clip, _as_line(clip), os.path.normpath(video)

    def _count(self, facts: "_Facts") -> None:
        summary = self.summary
        summary.num_written += 1
        if facts.flags:
            summary.num_flagged += 1
            summary.flags.update(facts.flags)
        summary.splits[facts.split] += 1
        summary.counts[stratum_of(facts.num_repetitions, BINS).name] += 1
        summary.num_cycles += facts.num_cycles

    def _reject(self, origin: "_Origin", problem: tuple[str, str]) -> None:
        reason, detail = problem
        assert reason in REASONS, reason
        if not self.summary.rejected:
            self.summary.first_rejected = f"{origin.source}:{origin.row}: {reason}: {detail}"
        self.summary.rejected[reason] += 1
        shown = {
            "source": origin.source,
            "row": origin.row,
            "reason": reason,
            "detail": detail,
            "values": {key: _kept(value) for key, value in origin.values.items()},
        }
        self._rejected.write(json.dumps(shown, allow_nan=False) + "\n")

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
            f"{are} missing in {self._videos.root} ({self._num_without_video} of "
            f"{self.summary.num_read} rows): {', '.join(named)}"
            f"{more}; all are listed in {self._out / 'missing.txt'}; no clips were written; "
            "give --allow-missing to go on without them"
        )


class _Facts(NamedTuple):
    """What the summary counts of a clip."""

    split: str
    num_repetitions: int
    num_cycles: int
    flags: tuple[str, ...]


class _Row(NamedTuple):
    """A row while it waits for the last one: its clip as a line, or why (reason, detail) not."""

    line: str
    facts: _Facts
    problem: tuple[str, str] | None


class _Origin(NamedTuple):
    """Where a row is from and what it holds, to be told if it is rejected."""

    source: str
    row: int
    values: dict[str, Any]


class _WaitingRows:
    """Rows in a temporary file, in order of arrival: bounded memory.

    Each is written as two of `marshal`'s values behind their lengths: half of `pickle`'s time, and
    where a row came from is seldom read again.
    """

    _LENGTHS = struct.Struct("=II")

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def close(self) -> None:
        self._file.close()

    def add(self, row: _Row, origin: _Origin) -> None:
        parts = (
            marshal.dumps((row.line, tuple(row.facts), row.problem)),
            marshal.dumps(tuple(origin)),
        )
        self._file.write(self._LENGTHS.pack(*map(len, parts)))
        self._file.writelines(parts)

    def __iter__(self) -> Iterator[tuple[_Row, bytes]]:
        """(row, its origin as `marshal` wrote it)."""
        self._file.seek(0)
        while head := self._file.read(self._LENGTHS.size):
            of_row, of_origin = self._LENGTHS.unpack(head)
            line, facts, problem = marshal.loads(self._file.read(of_row))
            yield _Row(line, _Facts(*facts), problem), self._file.read(of_origin)


_NO_FACTS = _Facts("", 0, 0, ())


def _facts(clip: Clip) -> _Facts:
    return _Facts(clip.split, clip.count, len(clip.cycles or ()), clip.flags)


def _with_verdict(row: _Row, verdict: Verdict) -> _Row:
    """The row as the other rows leave it."""
    if verdict.problem is not None:
        return row._replace(problem=verdict.problem)
    clip = parse_clip(json.loads(row.line), "a clip")
    if verdict.id is not None:
        clip = replace(clip, id=verdict.id)
    if verdict.count is not None:
        clip = with_count(clip, verdict.count)
    return row._replace(line=clip.to_json(), facts=_facts(clip))


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

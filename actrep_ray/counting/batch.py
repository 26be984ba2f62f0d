"""Many videos, one after the other: each is written down as it is done, and no file ends the rest.

videos ─► open ─► count, some at a time ─► files of each ─► a line of the journal
            │            │                      │
            └────────────┴── failure ───────────┴─► a line too; listed at the end
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from actrep_ray.counting.outputs import Outputs
from actrep_ray.counting.record import VideoCount
from actrep_ray.counting.videos import Failure, Source, open_source
from data_prep.files import AppendedLines, DataError, read_jsonl, write_lines
from data_prep.overwriting import refuse_existing
from data_prep.periodicity.verdict import NOT_SURE
from data_prep.video import FileState, VideoError

Count = Callable[[Sequence[Source]], Sequence[VideoCount | Failure]]
"""Counts in some videos, in order."""
Done = Callable[[VideoCount | Failure], None]
"""Is told of each video that is done."""

AT_A_TIME = 8  # videos that a model is asked about together


class Journal:
    """What was counted so far, a JSON object a line; a context manager.

    Each line has what `--json` prints, and in `of` how it was counted: the file's size and time of
    change, and what was asked. A video whose line has the same is not counted again; a failure is.

    Args:
        path: The file; None keeps nothing.
        asked: All that a count depends on beside the video, as JSON values.
        goes_on: Whether to keep what is there.

    Attributes:
        records: Those that stand, by the name of the video.

    Raises:
        DataError: if the file is there and is not to be gone on with, or was written for something
            else; naming the key that differs.
    """

    def __init__(
        self,
        path: Path | None,
        asked: Mapping[str, Any],
        *,
        goes_on: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.path, self._asked = path, dict(asked)
        self.records: dict[str, dict[str, Any]] = {}
        self._lines: AppendedLines | None = None
        if path is None:
            return
        if goes_on and path.exists():
            self._read(path)
        elif not goes_on:
            refuse_existing(path, overwrite=overwrite)

    def __enter__(self) -> Self:
        if self.path is not None:
            write_lines(self.path, map(json.dumps, self.records.values()))
            self._lines = AppendedLines(self.path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lines is not None:
            self._lines.close()

    def holds(self, video: Path) -> bool:
        """Whether the video was counted as it is now."""
        record = self.records.get(str(video))
        return record is not None and record["of"]["file"] == _state(video)

    def add(self, done: VideoCount | Failure) -> None:
        """Write down one video."""
        record: dict[str, Any] = (
            {"video": str(done.video), "failure": done.reason}
            if isinstance(done, Failure)
            else done.to_json()
        )
        record["of"] = {"file": _state(done.video), **self._asked}
        self.records[str(done.video)] = record
        if self._lines is not None:
            self._lines.add(json.dumps(record))

    def _read(self, path: Path) -> None:
        rows = read_jsonl(path, "the results of `actrep count`", on_cut=lambda _: None,
                          allows_surrogates=True)  # fmt: skip
        for row in rows:
            of, video = row.values.get("of"), row.values.get("video")
            if not isinstance(of, dict) or not isinstance(video, str):
                raise DataError(f"{row.where}: expected a line that `actrep count --out` wrote")
            for key, value in self._asked.items():
                if of.get(key) != value:
                    raise DataError(
                        f"{row.where}: was counted with {key}={of.get(key)!r}, now it is "
                        f"{value!r}; give another --out, or --overwrite instead of --resume"
                    )
            if "failure" not in row.values:
                self.records[video] = row.values


def _state(video: Path) -> list[int]:
    state = FileState.of(video)
    return [state.num_bytes, state.changed_ns]


@dataclass
class Batch:
    """What became of many videos.

    Attributes:
        num_done: Counted now.
        num_kept: Counted before.
        num_unsure: Of both, those that are not sure.
        consistent: Of each that a model counted, whether its answer agrees with itself.
        failures: In order.
    """

    num_done: int = 0
    num_kept: int = 0
    num_unsure: int = 0
    consistent: list[bool] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def count_all(
    videos: Sequence[Path],
    count: Count,
    outputs: Outputs,
    journal: Journal,
    *,
    action: str,
    told: Done,
    at_a_time: int = AT_A_TIME,
) -> Batch:
    """Count in each video that the journal does not hold yet.

    Args:
        videos: As they were given.
        count: By a model or the detector.
        outputs: Files to write.
        journal: Opened.
        action: What is repeated, for the question.
        told: Called with each video as it is done.
        at_a_time: Videos that are counted together.
    """
    batch = Batch()
    waiting = [video for video in videos if not journal.holds(video)]
    batch.num_kept = len(videos) - len(waiting)
    for first in range(0, len(waiting), at_a_time):
        for done in _count_some(waiting[first : first + at_a_time], count, outputs, action):
            journal.add(done)
            told(done)
            if isinstance(done, Failure):
                batch.failures.append(done)
            else:
                batch.num_done += 1
    records = [journal.records[str(video)] for video in videos]
    counted = [record for record in records if "failure" not in record]
    batch.num_unsure = sum(record["verdict"] == NOT_SURE for record in counted)
    batch.consistent = [record["consistent"] for record in counted if "consistent" in record]
    outputs.write_table(records)
    return batch


def _count_some(
    videos: Sequence[Path], count: Count, outputs: Outputs, action: str
) -> Iterator[VideoCount | Failure]:
    """Each video, in order."""
    opened = [open_source(video, action) for video in videos]
    counted = iter(count([one for one in opened if isinstance(one, Source)]))
    for one in opened:
        yield one if isinstance(one, Failure) else _written(next(counted), outputs)


def _written(done: VideoCount | Failure, outputs: Outputs) -> VideoCount | Failure:
    """The same, its files written; a failure if the video cannot be read once more for them."""
    if isinstance(done, Failure):
        return done
    try:
        outputs.write(done)
    except VideoError as error:
        return Failure(done.video, str(error))
    return done

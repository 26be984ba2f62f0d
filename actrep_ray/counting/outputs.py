"""Files that a count is written to: a table, subtitles, a picture, a video with a counter.

A table has all videos of a command; the others are one file a video: the file that was named, or,
of several videos, one in the folder that was named, called like the video.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actrep_ray.counting.overlay import write_overlay
from actrep_ray.counting.record import VideoCount
from data_prep.files import DataError, replacing, write_lines
from data_prep.overwriting import refuse_existing
from rewards.grammar.layout import Cycle

COLUMNS = (
    "video", "action", "count", "verdict", "reason", "confidence", "consistent", "num_cycles",
    "cycles", "failure",
)  # fmt: skip


@dataclass(frozen=True)
class Outputs:
    """What is to be written, and where; None for what was not asked for.

    Attributes:
        csv: A table with a row a video.
        srt: Subtitles with a cue a repetition.
        overlay: The video with a counter drawn on it (mp4).
        plot: A picture of the repetitions over time (png).
        are_folders: Whether all but the table are folders with a file a video.
    """

    csv: Path | None = None
    srt: Path | None = None
    overlay: Path | None = None
    plot: Path | None = None
    are_folders: bool = False

    def check(self, videos: Sequence[Path], *, overwrite: bool) -> None:
        """Refuse what would write over something, before anything is counted.

        Raises:
            DataError: naming the file that is there, or two videos that would get one.
        """
        refuse_existing(*([self.csv] if self.csv else []), overwrite=overwrite)
        owners: dict[Path, Path] = {}
        for video in videos:
            for path in self._of_video(video):
                if (other := owners.setdefault(path, video)) != video:
                    raise DataError(f"{path}: would be written for {other} and for {video}")
                if path.absolute() == video.absolute():
                    raise DataError(f"{path}: is the video itself, give another name")
        refuse_existing(*owners, overwrite=overwrite)

    def write(self, counted: VideoCount) -> None:
        """Write what belongs to one video.

        Raises:
            DataError: if the disk has no room.
            VideoError: if the video cannot be read a second time.
        """
        if path := self._at(self.srt, counted.video, ".srt"):
            write_srt(path, counted.cycles)
        if path := self._at(self.plot, counted.video, ".png"):
            from actrep_ray.counting.figure import plot_count

            plot_count(counted, path)
        if path := self._at(self.overlay, counted.video, ".mp4"):
            write_overlay(counted, path)

    def write_table(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the table of all videos.

        Args:
            records: As of `VideoCount.to_json`, or with the keys video and failure.
        """
        if self.csv is not None:
            write_csv(self.csv, records)

    def _of_video(self, video: Path) -> list[Path]:
        wanted = ((self.srt, ".srt"), (self.plot, ".png"), (self.overlay, ".mp4"))
        return [path for given, suffix in wanted if (path := self._at(given, video, suffix))]

    def _at(self, given: Path | None, video: Path, suffix: str) -> Path | None:
        if given is None or not self.are_folders:
            return given
        return given / f"{video.stem}{suffix}"


def write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a row a video; `cycles` are "start-end" in seconds, with spaces between.

    A cell that a spreadsheet would run (it begins with =, +, - or @) gets a quotation mark before.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for record in records:
        cycles = record.get("cycles") or []
        row = {
            **record,
            "num_cycles": None if "failure" in record else len(cycles),
            "cycles": " ".join(f"{start:g}-{end:g}" for start, end in cycles),
        }
        table.writerow([_cell(row.get(name)) for name in COLUMNS])
    with replacing(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return str(value).lower() if isinstance(value, bool) else value


def write_srt(path: Path, cycles: Sequence[Cycle]) -> None:
    """Write SubRip subtitles: cue i is shown during repetition i and says "i / n"."""
    lines = []
    for i, (start, end) in enumerate(cycles, start=1):
        lines += [str(i), f"{_clock(start)} --> {_clock(end)}", f"{i} / {len(cycles)}", ""]
    write_lines(path, lines)


def _clock(seconds: float) -> str:
    """SubRip's hours:minutes:seconds,milliseconds."""
    total = round(max(seconds, 0.0) * 1000)
    minutes, ms = divmod(total, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{ms // 1000:02d},{ms % 1000:03d}"

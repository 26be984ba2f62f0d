"""What can be wrong with a row: the kinds of findings and their levels.

Where a converter has put the name of a finding into a clip's `flags`, somebody has seen it already:
it is a warning then.
"""

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning"]

_SHOWN = 200  # characters of a value

ERRORS = {
    "not_utf8": "the line is not text in UTF-8",
    "not_json": "the line is not one JSON object with each key once",
    "schema": "a key is missing, unknown or holds a wrong value",
    "implausible_value": "a number that no video has",
    "duplicate_id": "the id is that of an earlier row",
    "conflicting_counts": "an earlier row gives this window of this video another count",
    "count_differs_from_cycles": "there are more or fewer marks than repetitions",
    "zero_length_cycles": "a mark ends where it starts",
    "reversed_cycles": "a mark ends before it starts",
    "unsorted_cycles": "a mark starts before the one before it",
    "overlapping_cycles": "a mark starts before the one before it has ended",
    "cycle_outside_clip": "a mark lies outside the clip",
    "clip_outside_video": "the clip goes on beyond the end of the video",
    "leak_of_video": "the same video is in another split",
    "leak_of_content": "a file with the same bytes is in another split",
    "path_outside_folder": "the video lies outside the folder of the file and those allowed",
    "missing_video": "no file there",
    "unreadable_video": "a folder without frames, a loop of links, or no permission",
    "empty_video": "a file of no bytes",
    "undecodable_video": "the decoder refuses it",
    "decoder_crashed": "the decoder's process died of it",
    "decoder_hung": "the decoder did not finish in time",
    "wrong_frames": "the reader gives other frames than a pass through the whole file",
    "fps_differs": "times in the row and in the video drift apart",
}
WARNINGS = {
    "below_nyquist": "cycles too short for the rate at which the clip is shown",
    "shared_positions": "temporal patches share a position in time, at the rate of the clip",
    "too_many_tokens": "the visual tokens do not fit into the model's context",
    "repeated_frames": "the clip has fewer frames than it is shown with",
    "duplicate_clip": "an earlier row has the same window, video and action",
    "duplicate_content": "another file of this split has the same bytes",
    "variable_frame_rate": "frames do not lie at equal distances in time",
    "num_frames_differs": "the row and the video disagree on the number of frames",
    "size_differs": "the row and the video disagree on width or height",
}
KINDS = ERRORS | WARNINGS


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one row.

    Attributes:
        kind: A key of `KINDS`.
        level: `error` or `warning`.
        row: Line of the file, from 1.
        clip_id: The row's id, empty where it could not be read.
        video: The row's video as it is written there, empty where it could not be read.
        key: Which key is wrong, empty where it is the line as a whole.
        value: What it holds.
        expected: What it should hold.
    """

    kind: str
    level: Level
    row: int
    clip_id: str
    video: str
    key: str
    value: str
    expected: str

    @property
    def message(self) -> str:
        """Key, value and what was expected, in words."""
        what = f"{self.key}={self.value}" if self.key else self.value
        return f"{what}, expected {self.expected}"


class RowFindings:
    """Makes the findings of one row."""

    def __init__(self, row: int, clip_id: str, video: str, flags: tuple[str, ...] = ()) -> None:
        self.row, self.clip_id, self.video, self.flags = row, clip_id, video, flags

    def make(self, kind: str, key: str, value: object, expected: str) -> Finding:
        """A finding; its level follows from its kind and from the row's flags."""
        is_warning = kind in WARNINGS or kind in self.flags
        level: Level = "warning" if is_warning else "error"
        text = str(value)
        text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        return Finding(kind, level, self.row, self.clip_id, self.video, key, text, expected)

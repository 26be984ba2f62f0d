"""What one row of a set says in the set's own unit, and a set as it is distributed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from data_prep.converters.rows import Record
from data_prep.converters.values import Pairs


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
        counts_from_first_frame: Whether seconds count from the video's first frame, as a clip's do,
            and not as a player's, which begins with the sound where that comes first.
        id: The row's own, kept as it is; empty where it has none.
        dataset: The set that the row itself says it is of; empty where it does not.
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
    counts_from_first_frame: bool = False
    id: str = ""
    dataset: str = ""


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

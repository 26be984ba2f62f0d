"""The canonical annotation line: one clip of one video, its count and, where known, its cycles.

Owns the JSONL format. Every converter writes it and everything downstream reads it, so that a
column name of some data set never travels further than its own converter.

One line::

    {"id": "easy-test-00007", "dataset": "synthetic", "split": "test", "video": "videos/00007.mp4",
     "start_s": 0.0, "end_s": 10.0, "video_fps": 12.0, "num_frames": 120, "width": 64,
     "height": 64, "action": "squat", "count": 2, "cycles": [[1.0, 2.5], [2.5, 4.1]],
     "cycles_source": "synthetic", "flags": []}

`video` is relative to the folder of the JSONL file and stays in it (`roots`); it may be a folder of
images, of which `video_fps` are shown a second (`video.folder`). `start_s` and `end_s` are seconds
from the first frame of the video; `cycles` are seconds from `start_s`, as the model sees the clip.
`images`, if there are any, are shown before it (`shown`).
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from data_prep.files import DataError, read_jsonl, write_lines
from data_prep.roots import VideoRoots
from data_prep.shown import ShownImage, as_values, mistakes_in, shown_images
from data_prep.strict_json import is_text
from rewards.grammar.layout import Cycle

SPLITS = ("train", "validation", "test")

TIMES_SOURCES = {
    "seconds": "they were given in seconds",
    "time_stamps": "frame numbers, by the times at which the file presents these frames",
    "rate": "frame numbers, divided by the rate that the annotations state",
}


class RowError(DataError):
    """A row that is no clip.

    Attributes:
        key: The key that is wrong.
        value: What it holds, as text.
        expected: What it should hold.
    """

    def __init__(self, where: str, key: str, value: str, expected: str, told: str = "") -> None:
        super().__init__(f"{where}: {told or f'{key}={value}, expected {expected}'}")
        self.key, self.value, self.expected = key, value, expected


@dataclass(frozen=True)
class Clip:
    """One clip with its labels.

    Attributes:
        id: Unique within a file.
        dataset: Name of the set that the clip comes from.
        split: One of `SPLITS`.
        video: Path of the video file, or of a folder with its frames as images.
        start_s: Start of the clip, seconds from the video's first frame.
        end_s: End of the clip, likewise.
        video_fps: Frames per second of the video file; of a folder, what is stated.
        num_frames: Number of frames of the whole video file.
        width: Width of a frame, pixels.
        height: Height of a frame, pixels.
        action: What is repeated; "unknown" where the set does not say.
        count: Number of repetitions inside the clip.
        cycles: (start, end) of each repetition in seconds from the start of the clip, or None
            where the set has no marks.
        cycles_source: Where the marks come from ("annotation", "synthetic", "periodicity").
        times_source: How window and marks became seconds, a key of `TIMES_SOURCES`; None where
            that is not known.
        flags: Remarks of the converter, for example "count_differs_from_cycles".
        images: Still images that are shown before it.
    """

    id: str
    dataset: str
    split: str
    video: str
    start_s: float
    end_s: float
    video_fps: float
    num_frames: int
    width: int
    height: int
    action: str
    count: int
    cycles: tuple[Cycle, ...] | None = None
    cycles_source: str | None = None
    times_source: str | None = None
    flags: tuple[str, ...] = ()
    images: tuple[ShownImage, ...] = ()

    @property
    def kind(self) -> str:
        """Which kind of row it is, and the key of its file."""
        return "video"

    @property
    def file(self) -> str:
        """Path of what is shown."""
        return self.video

    @property
    def duration_s(self) -> float:
        """Length of the clip in seconds."""
        return self.end_s - self.start_s

    def with_root(self, root: Path) -> "Clip":
        """The same clip with `video` made absolute against `root`, `..` taken out as text."""
        return replace(
            self,
            video=os.path.normpath(root.absolute() / self.video),
            images=tuple(image.with_root(root) for image in self.images),
        )

    def to_json(self) -> str:
        """One line of JSON without the line break."""
        values = {name: getattr(self, name) for name in _WRITTEN}  # flat: asdict would copy
        if self.images:
            values["images"] = as_values(self.images)
        return _encode(values)


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode  # dumps makes one a line
_FIELDS = {f.name: f for f in fields(Clip)}
_WRITTEN = tuple(name for name in _FIELDS if name != "images")
_REQUIRED = {name for name, f in _FIELDS.items() if f.default is f.default_factory}
_STRINGS = ("id", "dataset", "split", "video", "action")
_FLOATS = ("start_s", "end_s", "video_fps")
_INTEGERS = ("num_frames", "width", "height", "count")


_LONGEST_S = 10**7

# key, least, most: beyond these no arithmetic is done.
PLAUSIBLE = (
    ("num_frames", 1, 10**8),
    ("width", 1, 2**16),
    ("height", 1, 2**16),
    ("count", 0, 10**6),
    ("video_fps", 0.01, 10_000),
    ("end_s", 0, _LONGEST_S),
)


def implausible(clip: Clip) -> Iterator[tuple[str, float, str]]:
    """(key, value, what was expected) of numbers that no video has."""
    for key, least, most in PLAUSIBLE:
        value = getattr(clip, key)
        if not least <= value <= most:
            yield key, value, f"{least:g} to {most:g}"
    for i, cycle in enumerate(clip.cycles or ()):
        for value in cycle:
            if abs(value) > _LONGEST_S:
                yield f"cycles[{i}]", value, f"times within {_LONGEST_S:g}"


def parse_clip(row: dict[str, Any], where: str) -> Clip:
    """Build a `Clip` from a decoded JSON object.

    Raises:
        DataError: naming `where`, the key, its value and what was expected.
    """
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise RowError(where, "", kind, "an object", f"expected a JSON object, got {kind}")
    if "kind" in row:
        raise RowError(where, "kind", repr(row["kind"]), "a clip of a video, which has no such key")
    if unknown := sorted(set(row) - set(_FIELDS)):
        key, known = unknown[0], ", ".join(_FIELDS)
        told = f"unknown key {key!r}; known keys: {known}"
        raise RowError(where, key, repr(row[key]), f"one of the keys {known}", told)
    if missing := sorted(_REQUIRED - set(row)):
        raise RowError(where, missing[0], "", "a value", f"key {missing[0]!r} is missing")
    values = dict(row)
    for key in _STRINGS:
        if not isinstance(row[key], str) or not row[key]:
            raise RowError(where, key, repr(row[key]), "a non-empty string")
        if not is_text(row[key]) or "\0" in row[key]:
            raise RowError(where, key, repr(row[key]), "whole characters, none of them a NUL")
    for key in _FLOATS:
        values[key] = _number(row[key], where, key)
    for key in _INTEGERS:
        if isinstance(row[key], bool) or not isinstance(row[key], int) or row[key] < 0:
            raise RowError(where, key, repr(row[key]), "an integer of at least 0")
    values["cycles"] = _cycles(row.get("cycles"), where)
    source, flags = row.get("cycles_source"), row.get("flags", ())
    if source is not None and not (isinstance(source, str) and is_text(source)):
        raise RowError(where, "cycles_source", repr(source), "a string or null")
    if row.get("times_source") not in (None, *TIMES_SOURCES):
        expected = f"null or one of {', '.join(TIMES_SOURCES)}"
        raise RowError(where, "times_source", repr(row["times_source"]), expected)
    if not isinstance(flags, list | tuple) or not all(
        isinstance(flag, str) and is_text(flag) for flag in flags
    ):
        raise RowError(where, "flags", repr(flags), "a list of strings")
    values["flags"] = tuple(flags)
    for key, value, expected in mistakes_in(row.get("images", ())):
        raise RowError(where, key, repr(value), expected)
    values["images"] = shown_images(row.get("images", ()))
    clip = Clip(**values)
    _check(clip, where)
    return clip


def parse_plausible(row: dict[str, Any], where: str) -> Clip:
    """As `parse_clip`, and no number that no video has."""
    clip = parse_clip(row, where)
    for key, value, expected in implausible(clip):
        raise RowError(where, key, repr(value), expected)
    return clip


def _number(value: Any, where: str, key: str) -> float:
    try:
        if not isinstance(value, bool | str) and math.isfinite(number := float(value)):
            return number
    except (TypeError, OverflowError):  # no number, or an integer beyond every float
        pass
    raise RowError(where, key, repr(value), "a finite number")


def _cycles(value: Any, where: str) -> tuple[Cycle, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise RowError(where, "cycles", repr(value), "a list of [start_s, end_s] or null")
    cycles = []
    for i, pair in enumerate(value):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(where, f"cycles[{i}]", repr(pair), "[start_s, end_s]")
        start, end = (_number(x, where, f"cycles[{i}]") for x in pair)
        cycles.append((start, end))
    return tuple(cycles)


def _check(clip: Clip, where: str) -> None:
    if clip.split not in SPLITS:
        raise RowError(where, "split", repr(clip.split), f"one of {', '.join(SPLITS)}")
    if not 0.0 <= clip.start_s < clip.end_s:
        window = f"{clip.start_s}, end_s={clip.end_s}"
        raise RowError(where, "start_s", window, "0 <= start_s < end_s")
    if clip.video_fps <= 0:
        raise RowError(where, "video_fps", repr(clip.video_fps), "a number above 0")


class _Line(Protocol):
    """What lines of all kinds have."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def images(self) -> tuple[ShownImage, ...]: ...
    def with_root(self, root: Path) -> Self: ...


_LineT = TypeVar("_LineT", bound=_Line)


def read_clips(
    path: str | Path, *, split: str | None = None, allow_outside: Sequence[str] = ()
) -> Iterator[Clip]:
    """Yield the clips of a JSONL file, in order, with absolute video paths.

    Args:
        path: The JSONL file; blank lines are allowed, anything else must be a clip.
        split: Only clips of this split; None yields all of them.
        allow_outside: Folders, other than the file's own, that videos may lie in.

    Raises:
        DataError: naming the file and line of the first bad row.
    """
    yield from read_lines_of(path, parse_plausible, split=split, allow_outside=allow_outside)


def read_lines_of(
    path: str | Path,
    parse: Callable[[dict[str, Any], str], _LineT],
    *,
    split: str | None,
    allow_outside: Sequence[str],
) -> Iterator[_LineT]:
    """As `read_clips`, of whatever `parse` makes of a line."""
    path = Path(path)
    roots = VideoRoots(path.parent, allow_outside)
    seen: dict[str, int] = {}
    for row in read_jsonl(path, "a JSONL file of clips"):
        line = parse(row.values, row.where)
        if line.id in seen:
            raise DataError(f"{row.where}: id={line.id!r} was used in line {seen[line.id]} already")
        seen[line.id] = row.number
        if outside := roots.problem(line.file):
            raise RowError(row.where, line.kind, outside, roots.expected)
        for i, image in enumerate(line.images):
            if outside := roots.problem(image.image):
                raise RowError(row.where, f"images[{i}].image", outside, roots.expected)
        if split is None or line.split == split:
            yield line.with_root(path.parent)


def write_clips(path: str | Path, clips: Iterable[Clip]) -> int:
    """Write clips as JSONL, atomically; returns how many were written."""
    return write_lines(path, (clip.to_json() for clip in clips))

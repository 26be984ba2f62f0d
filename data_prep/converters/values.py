"""Values of a row: numbers as tables and JSON write them, counts, times, marks, names.

Every function takes what was read and returns what was meant, or raises `BadRowError` with the
field, its value and what was expected. Empty is not zero: "", "NaN" and null are no value.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_prep.converters.rows import BadRowError
from data_prep.files import DataError

Pairs = tuple[tuple[float, float], ...]

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_EMPTY = frozenset(("", "nan", "na", "n/a", "null", "none"))
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+", re.ASCII)
_CLOCK = re.compile(r"(?:(\d{1,6}):(?=[0-5]\d:))?(\d{1,6}):([0-5]\d)([.,]\d*)?", re.ASCII)
_MARK_COLUMN = re.compile(r"[1-9]\d{0,5}", re.ASCII)
_NUM_PLAIN = 16  # digits; a float holds whole numbers of fewer
_MAX_COUNT = 100_000
_MAX_FPS = 1000.0
_MAX_TIME = 1e9  # frames or seconds; beyond it is nonsense


def number(value: Any, what: str, reason: str, *, allows_clock: bool = False) -> float | None:
    """A number as tables and JSON write it; None where it is empty (also "NaN", "null", ...).

    Args:
        value: What was read.
        what: Names it in messages.
        reason: Of the error.
        allows_clock: Whether it may be a time as mm:ss or hh:mm:ss, which becomes seconds.

    Raises:
        BadRowError: with `reason`, for anything else.
    """
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip()
        if _NUMBER.fullmatch(text):
            value = float(text)
        elif text.casefold() in _EMPTY:
            return None
        elif allows_clock and (match := _CLOCK.fullmatch(text)):
            value = (
                3600 * int(match[1] or 0)
                + 60 * int(match[2])
                + float(match[3] + (match[4] or "").replace(",", "."))
            )
    if isinstance(value, bool) or not isinstance(value, int | float):
        expected = "a number or [hh:]mm:ss" if allows_clock else "a number"
        if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value.strip()):
            expected += " with a decimal point"
        raise BadRowError(reason, f"{what}={_short(value)}, expected {expected}")
    try:
        number = float(value)
    except OverflowError:  # an integer of 400 digits
        number = math.inf
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise BadRowError(reason, f"{what}={_short(value)}, expected a finite number")
    return number


def count_of(values: Mapping[str, Any], key: str) -> int:
    """The count in a row.

    Raises:
        BadRowError: if it is empty, text, a fraction, negative or beyond all reason.
    """
    value = number(values.get(key), key, "count_not_a_number")
    if value is None:
        raise BadRowError("count_empty", f"{key} is empty, expected an integer of at least 0")
    if value < 0:
        raise BadRowError("count_negative", f"{key}={value:g}, expected an integer of at least 0")
    if value > _MAX_COUNT:
        raise BadRowError("count_too_large", f"{key}={value:g}, expected at most {_MAX_COUNT}")
    if value != int(value):
        raise BadRowError("count_not_whole", f"{key}={value:g}, expected an integer")
    return int(value)


def fps_of(values: Mapping[str, Any], key: str) -> float | None:
    """Frames per second as the table says, None where it does not.

    Raises:
        BadRowError: if it is not a number above 0.
    """
    value = number(values.get(key), key, "bad_fps")
    if value is not None and not 0.0 < value <= _MAX_FPS:
        raise BadRowError("bad_fps", f"{key}={value:g}, expected a number above 0, at most 1000")
    return value


def time_of(
    values: Mapping[str, Any], key: str, *, least: float = 0.0, in_frames: bool = False
) -> float | None:
    """A point in time, in the set's own unit; None where it is empty. Seconds may be mm:ss.

    Raises:
        BadRowError: if it is not a number of at least `least`.
    """
    value = number(values.get(key), key, "bad_time", allows_clock=not in_frames)
    if value is not None and not least <= value <= _MAX_TIME:
        raise BadRowError("bad_time", f"{key}={value:g}, expected at least {least:g}, up to 1e9")
    return value


def required_time(values: Mapping[str, Any], key: str) -> float:
    """A point in time that must be there.

    Raises:
        BadRowError: if it is empty or not a number of at least 0.
    """
    value = time_of(values, key)
    if value is None:
        raise BadRowError("bad_time", f"{key} is empty, expected seconds")
    return value


def text_of(values: Mapping[str, Any], key: str) -> str:
    """A text, stripped; empty where there is none."""
    value = values.get(key)
    return value.strip() if isinstance(value, str) else "" if value is None else str(value)


def name_of(values: Mapping[str, Any], key: str) -> str:
    """The name of a video.

    Raises:
        BadRowError: if it is empty.
    """
    name = text_of(values, key)
    if not name:
        raise BadRowError("no_video_name", f"{key} is empty, expected the video's name")
    return name


def marked_cycles(
    values: Mapping[str, Any], prefix: str = "L", *, first_frame: int = 0, in_frames: bool = True
) -> Pairs:
    """Cycles of the columns L1, L2, ...: L(2i-1) and L(2i) are start and end of repetition i.

    Raises:
        BadRowError: if a mark is no number or before the first frame, or half of a pair is missing.
    """
    marks: dict[int, float] = {}
    for column, value in values.items():
        index = _mark_index(column, prefix)
        if index is None:
            continue
        mark = mark_of(value, column, first_frame=first_frame, in_frames=in_frames)
        if mark is not None:
            marks[index] = mark
    pairs = []
    for end_index in sorted({index + index % 2 for index in marks}):
        start, end = marks.get(end_index - 1), marks.get(end_index)
        if start is None or end is None:
            has, lacks = (end_index, end_index - 1) if start is None else (end_index - 1, end_index)
            raise BadRowError(
                "half_a_cycle", f"{prefix}{has}={marks[has]:g}, but {prefix}{lacks} is empty"
            )
        pairs.append((start, end))
    return tuple(pairs)


@lru_cache(maxsize=4096)
def _mark_index(column: str, prefix: str) -> int | None:
    """12 for the column L12 of the prefix L; None for a column that holds no mark."""
    digits = column.removeprefix(prefix)
    if digits == column or not _MARK_COLUMN.fullmatch(digits):
        return None
    return int(digits)


def chained_cycles(marks: Sequence[float]) -> tuple[Pairs, tuple[str, ...]]:
    """Cycles that follow each other from mark to mark, and the flags of what had to be mended."""
    ordered = sorted(marks)
    flags = () if ordered == list(marks) else ("unsorted_cycles",)
    return tuple(pairwise(ordered)), flags


def mark_of(value: Any, what: str, *, first_frame: int = 0, in_frames: bool = True) -> float | None:
    """One mark, None where it is empty. Seconds may be mm:ss.

    Raises:
        BadRowError: if it is not a number of at least `first_frame`.
    """
    if isinstance(value, str) and len(value) < _NUM_PLAIN and value.isascii() and value.isdecimal():
        mark: float | None = float(value)  # nearly every mark of a table: no more than that
    else:
        mark = number(value, what, "bad_mark", allows_clock=not in_frames)
    if mark is not None and not first_frame <= mark <= _MAX_TIME:
        raise BadRowError(
            "bad_mark", f"{what}={mark:g}, expected at least {first_frame}, up to 1e9"
        )
    return mark


def cycles_or_none(cycles: Pairs, count: int) -> tuple[Pairs | None, tuple[str, ...]]:
    """Marks of a set that has them: no marks for some repetitions are none at all, flagged."""
    return (None, ("no_cycles",)) if count and not cycles else (cycles, ())


def split_named(name: str) -> str:
    """The split that a row's own field names.

    Raises:
        BadRowError: if it names none.
    """
    split = _SPLIT_NAMES.get(name.strip().lower())
    if split is None:
        raise BadRowError(
            "unknown_split", f"split={_short(name)}, expected train, validation or test"
        )
    return split


def split_of_path(path: Path, split: str | None) -> str:
    """The split of a file: as asked, else as a word of its name or the name of its folder says.

    Raises:
        DataError: if neither says it.
    """
    if split is not None:
        return split
    words = re.split(r"[^a-z]+", path.stem.lower())
    found = {_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES}
    if len(found) == 1:
        return found.pop()
    if folder := _SPLIT_NAMES.get(path.parent.name.lower()):
        return folder
    raise DataError(f"{path}: its name does not say which split it is, give --split")


def action_name(text: str) -> str:
    """A class name as one word: "Battle rope-training" is battle_rope_training."""
    return re.sub(r"[\s_-]+", "_", text.strip().lower()) or "unknown"


def without_suffix(name: str) -> str:
    """A video's relative path without its file suffix, to name a row by."""
    return re.sub(r"\.[A-Za-z0-9]{2,4}$", "", name)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

"""SFT rows of LLaMA-Factory and ms-swift: a question about a video, and an answer that counts.

Either form (`data_prep.chat_format`) is read, whichever a row has. Count and repetitions are what
`rewards.grammar` reads in the answer; a row whose answer holds no count is rejected. Times of the
answer count from the start of what is shown. `id`, `dataset`, `split` and `action` are those of the
row where it has them, as files have that `actrep prepare chat-export` wrote.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_prep.chat_format import END, FORMATS, START, WINDOW
from data_prep.converters.annotation import Annotation, Source
from data_prep.converters.rows import (
    BadRowError,
    Record,
    read_json_array,
    read_json_lines,
    size_of,
)
from data_prep.converters.values import (
    Pairs,
    cycles_or_none,
    split_named,
    split_of_path,
    text_of,
    time_of,
    without_suffix,
)
from data_prep.files import DataError
from rewards.claims import model_count
from rewards.grammar.read import ParsedResponse, parse

_SYSTEM, _QUESTION, _ANSWER = "system", "question", "answer"
_ROLES = {form.user: _QUESTION for form in FORMATS.values()} | {
    form.assistant: _ANSWER for form in FORMATS.values()
}


def chat(
    paths: Sequence[Path],
    *,
    videos: Path,
    split: str | None = None,
    dataset: str = "chat",
) -> Source:
    """The rows of some files.

    Args:
        paths: .jsonl files (one object a line), or .json files (an array).
        videos: The folder that relative paths of videos start from; absolute ones lie in it.
        split: Of all rows; None goes by each row's own field, else by the file's name.
        dataset: Name of the set, of rows that do not say it.
    """
    starts = [0, *accumulate(size_of([path]) for path in paths)]

    def records() -> Iterator[Record]:
        for path, start in zip(paths, starts, strict=False):
            yield from _records(path, start)

    splits = {path.name: split or _split_of(path) for path in paths}
    return Source(dataset, records(), partial(_parse, splits, _folder(videos)), starts[-1])


def _folder(videos: Path) -> str:
    return os.path.normpath(videos.absolute())


def _split_of(path: Path) -> str:
    """As the name of a file says; empty where it says nothing."""
    try:
        return split_of_path(path, None)
    except DataError:
        return ""


def _records(path: Path, before: int) -> Iterator[Record]:
    if path.suffix.lower() == ".jsonl":
        yield from read_json_lines(path, before=before)
        return
    for number, value, position in read_json_array(path, before=before):
        if isinstance(value, dict):
            yield Record(path.name, number, value, position=position)
        else:
            told = f"expected a JSON object, got {type(value).__name__}"
            problem = BadRowError("bad_line", told)
            yield Record(path.name, number, {"value": value}, position=position, problem=problem)


def _parse(splits: Mapping[str, str], folder: str, record: Record) -> Annotation:
    values = record.values
    answer = _answer_of(values)
    count, parsed = _count_of(answer)
    video = _video_of(values, folder)
    start, end = _window_of(values)
    cycles, flags = _cycles_of(parsed, count, start or 0.0)
    own = text_of(values, "split")
    return Annotation(
        name=without_suffix(video),
        split=split_named(own or splits[record.source]),
        videos=(video,),
        action=text_of(values, "action") or "unknown",
        count=count,
        cycles=cycles,
        start=start,
        end=end,
        unit="seconds",
        counts_from_first_frame=True,
        flags=flags,
        id=text_of(values, "id"),
        dataset=text_of(values, "dataset"),
    )


def _answer_of(values: Mapping[str, Any]) -> str:
    """What is answered to the one question of a row.

    Raises:
        BadRowError: if it is no conversation of one question and one answer.
    """
    found = (values.get(form.messages) for form in FORMATS.values())
    messages = next((one for one in found if isinstance(one, list)), None)
    if messages is None:
        names = " or ".join(form.messages for form in FORMATS.values())
        raise BadRowError("no_conversation", f"expected a list of {names}")
    said = [(who, text) for who, text in map(_said, messages) if who != _SYSTEM]
    if [who for who, _ in said] != [_QUESTION, _ANSWER]:
        told = ", ".join(who for who, _ in said) or "nothing"
        raise BadRowError("no_conversation", f"{told}: expected one question and its answer")
    return said[1][1]


def _said(message: Any) -> tuple[str, str]:
    """(role, text) of a message."""
    for form in FORMATS.values() if isinstance(message, dict) else ():
        who, text = message.get(form.role), message.get(form.content)
        if isinstance(who, str) and isinstance(text, str):
            return _ROLES.get(who, who), text
    keys = " or ".join(f"{form.role} and {form.content}" for form in FORMATS.values())
    raise BadRowError("no_conversation", f"a message without {keys} as texts")


def _count_of(answer: str) -> tuple[int, ParsedResponse]:
    """The count of an answer, and what else it holds.

    Raises:
        BadRowError: if it has none.
    """
    parsed = parse(answer)
    count = model_count(parsed)
    if count is None:
        raise BadRowError("no_count", f"the answer holds no count ({parsed.answer_problem})")
    return count, parsed


def _cycles_of(
    parsed: ParsedResponse, count: int, start: float
) -> tuple[Pairs | None, tuple[str, ...]]:
    """What is listed, in seconds of the video; None where nothing is reasoned."""
    if parsed.dialect is None:
        return None, ()
    return cycles_or_none(tuple((start + a, start + b) for a, b in parsed.cycles), count)


def _video_of(values: Mapping[str, Any], folder: str) -> str:
    """The one video of a row, below the folder of videos where it is absolute and lies there.

    Raises:
        BadRowError: if there is none, there are several, or frames in its place.
    """
    videos = values.get("videos", values.get("video"))
    found = [videos] if isinstance(videos, str) else videos
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
        raise BadRowError("not_one_video", "videos: expected a list of one path")
    path = found[0]
    return os.path.normpath(path).removeprefix(f"{folder}/") if path.startswith("/") else path


def _window_of(values: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """(start, end) of what is shown, seconds from the video's first frame; None is its end."""
    window = values.get(WINDOW)
    if not isinstance(window, dict):
        return None, None
    return time_of(window, START), time_of(window, END)

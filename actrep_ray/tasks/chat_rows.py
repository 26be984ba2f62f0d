"""Clips as SFT rows of other trainers (`data_prep.chat_format`): the same questions and answers.

The answer of a clip is that of our own SFT: rendered from its marks, or out of `data.answers`. A
clip without one that may be learnt, or that the format cannot show, is left out by its reason.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actrep_ray.config import Recipe
from actrep_ray.tasks.loading import load_task
from actrep_ray.tasks.verl_rows import question_of
from data_prep.chat_content import is_whole
from data_prep.chat_format import OWN, PLACEHOLDERS, ChatFormat
from data_prep.cot import AnswerError, read_answers
from data_prep.files import DataError, write_lines
from data_prep.schema import Clip
from data_prep.video import VideoError

Progress = Callable[[], None]
"""Is told of each clip that was looked at."""


class _LeftOutError(Exception):
    """A clip that has no row; the message is the reason, in a word."""


@dataclass(frozen=True)
class ChatRows:
    """What became of some clips.

    Attributes:
        num_rows: Rows that were written.
        left_out: Clips without a row, by reason.
    """

    num_rows: int
    left_out: Counter[str]


def write_chat_rows(
    clips: Sequence[Clip], recipe: Recipe, form: ChatFormat, path: Path, progress: Progress
) -> ChatRows:
    """Write a row for each clip that has one, as JSON Lines, atomically.

    Args:
        clips: With absolute paths of their videos, as `read_clips` gives them.
        recipe: Its task, seed and `data` section say what is asked and answered.
        form: What is written.
        path: The file.
        progress: Is told of each clip.

    Raises:
        DataError: if none has one, or for a question in which a trainer would put media of its own.
    """
    left_out = Counter[str]()
    texts = read_answers(recipe.data.answers) if recipe.data.answers else None

    def lines() -> Iterator[str]:
        for clip in clips:
            try:
                yield json.dumps(_row(clip, recipe, form, texts), allow_nan=False)
            except _LeftOutError as error:
                left_out[str(error)] += 1
            progress()
        if left_out.total() == len(clips):
            told = ", ".join(f"{reason} {number}" for reason, number in left_out.most_common())
            raise DataError(f"{path}: none of {len(clips)} clips has a row to write ({told})")

    return ChatRows(write_lines(path, lines()), left_out)


def _row(
    clip: Clip, recipe: Recipe, form: ChatFormat, texts: dict[str, str] | None
) -> dict[str, Any]:
    try:
        window = None if is_whole(clip) else (clip.start_s, clip.end_s)
    except VideoError as error:
        raise _LeftOutError("unreadable_video") from error
    if window is not None and not form.has_windows:
        raise _LeftOutError("part_of_a_video")
    question, answer = question_of(clip, recipe), _answer(clip, recipe, texts)
    if any(word in answer for word in PLACEHOLDERS):
        raise _LeftOutError("media_in_answer")
    own = {name: getattr(clip, name) for name in OWN}
    return {**form.row(question, answer, clip.video, window), **own}


def _answer(clip: Clip, recipe: Recipe, texts: dict[str, str] | None) -> str:
    """What is to be learnt about a clip."""
    task = load_task(recipe.task)
    if texts is None:
        try:
            return task.target(clip, recipe.data, recipe.seed)
        except AnswerError as error:
            raise _LeftOutError(error.reason) from error
    text = texts.get(clip.id)
    if text is None:
        raise _LeftOutError("no_answer")
    if reason := task.rejection(text, clip, recipe.data):
        raise _LeftOutError(reason)
    return text

"""The teacher that needs no model: it says what the cycle marks say."""

from collections.abc import Iterable, Iterator

from data_prep.cot import AnswerError, render_answer
from data_prep.schema import Clip
from data_prep.teachers.answers import Outcome


def annotate(
    clips: Iterable[Clip], *, dialect: str = "think", variety: int = 1, seed: int = 0
) -> Iterator[Outcome]:
    """An answer for each clip, in order, or why there is none; arguments as in `render_answer`."""
    for clip in clips:
        try:
            text = render_answer(clip, dialect=dialect, variety=variety, seed=seed)
        except AnswerError as error:
            yield Outcome(clip, reason=error.reason, detail=str(error))
        else:
            yield Outcome(clip, text)

"""The teacher for clips that have a count and no marks: it proposes cycles from the pixels.

Cycles are kept where the detector, which never sees the count, finds as many; the answer is then
written from them as from annotated ones, and carries `cycles_source: periodicity`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from data_prep.cot import AnswerError, render_answer
from data_prep.periodicity.detector import propose_cycles
from data_prep.schema import Clip
from data_prep.teachers.answers import Outcome
from data_prep.video import VideoError

SOURCE = "periodicity"


def propose_answers(
    clips: Iterable[Clip],
    *,
    dialect: str = "think",
    variety: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Outcome]:
    """An answer for each clip, in order, or why there is none.

    The reasons: "has_marks" (the annotations teach better), "not_sure" (the detector doubts what it
    sees), "count_differs", "unreadable_video", and those of `render_answer`.

    Args:
        clips: The clips; their videos are read.
        dialect: As in `render_answer`.
        variety: As in `render_answer`.
        seed: As in `render_answer`.
        progress: Called with (clips done, answers accepted).
    """
    num_accepted = 0
    for done, clip in enumerate(clips, start=1):
        outcome = _propose(clip, dialect=dialect, variety=variety, seed=seed)
        num_accepted += outcome.text is not None
        yield outcome
        if progress:
            progress(done, num_accepted)


def _propose(clip: Clip, *, dialect: str, variety: int, seed: int) -> Outcome:
    if clip.cycles is not None:
        detail = f"clip {clip.id!r}: has cycle marks already; --teacher annotations uses them"
        return Outcome(clip, reason="has_marks", detail=detail)
    try:
        proposal = propose_cycles(clip)
    except VideoError as error:
        return Outcome(clip, reason="unreadable_video", detail=str(error))
    if not proposal.agrees:
        detail = (
            f"clip {clip.id!r}: count={clip.count}, the detector finds {len(proposal.cycles)} "
            f"cycles with periodicity {proposal.score:.2f}"
        )
        return Outcome(clip, reason=proposal.reason, detail=detail)
    marked = replace(clip, cycles=proposal.cycles, cycles_source=SOURCE)
    try:
        text = render_answer(marked, dialect=dialect, variety=variety, seed=seed)
    except AnswerError as error:
        return Outcome(marked, reason=error.reason, detail=str(error))
    return Outcome(marked, text)

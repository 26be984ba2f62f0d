"""The teacher that counts by itself: what the detector proposes from the pixels.

    propose_answers   for clips that have a count and no marks: cycles are kept where the detector,
                      which never sees the count, finds as many; the answer is then written from
                      them as from annotated ones, and carries `cycles_source: periodicity`
    pseudo_labels     for clips that have no count: the detector's, where it is sure

What it found in a clip is kept in a journal at once: a run that is stopped goes on where it was.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.cot import AnswerError, render_answer
from data_prep.periodicity.detector import VERSION, detect_cycles, proposal_of
from data_prep.periodicity.verdict import NOT_SURE
from data_prep.processes import shared_map
from data_prep.schema import Clip
from data_prep.teachers.answers import Outcome
from data_prep.teachers.journal import Journal
from data_prep.video import FileState, VideoError
from rewards.grammar.layout import Cycle

SOURCE = "periodicity"
PSEUDO_LABEL = "pseudo_label"  # flag of a clip whose count is the detector's


class _Found(NamedTuple):
    cycles: tuple[Cycle, ...]
    score: float
    is_sure: bool


def found_path(out: Path) -> Path:
    """Path of what the detector found, of a run that writes `out`."""
    return out.with_name(f"{out.name}.found.jsonl")


def propose_answers(
    clips: Iterable[Clip],
    *,
    dialect: str = "think",
    variety: int = 1,
    seed: int = 0,
    journal: Journal | None = None,
    progress: Callable[[int, int], None] | None = None,
    num_processes: int | None = None,
) -> Iterator[Outcome]:
    """An answer for each clip, in order, or why there is none.

    The reasons: "has_marks" (the annotations teach better), "not_sure" (the detector doubts what it
    sees), "count_differs", "unreadable_video", and those of `render_answer`.

    Args:
        clips: The clips; their videos are read.
        dialect: As in `render_answer`.
        variety: As in `render_answer`.
        seed: As in `render_answer`.
        journal: What was found before, and where what is found now is kept.
        progress: Called with (clips done, answers accepted).
        num_processes: Processes that share the clips; None: one for each CPU, at most 16.
    """
    wanted, num_accepted = list(clips), 0
    findings = _findings([clip for clip in wanted if clip.cycles is None], journal, num_processes)
    for done, clip in enumerate(wanted, start=1):
        outcome = _propose(clip, findings, dialect=dialect, variety=variety, seed=seed)
        num_accepted += outcome.text is not None
        yield outcome
        if progress:
            progress(done, num_accepted)


def _propose(
    clip: Clip,
    findings: Iterator[_Found | VideoError],
    *,
    dialect: str,
    variety: int,
    seed: int,
) -> Outcome:
    if clip.cycles is not None:
        detail = f"clip {clip.id!r}: has cycle marks already; --teacher annotations uses them"
        return Outcome(clip, reason="has_marks", detail=detail)
    found = next(findings)
    if isinstance(found, VideoError):
        return Outcome(clip, reason="unreadable_video", detail=str(found))
    proposal = proposal_of(clip, found.cycles, found.score, is_sure=found.is_sure)
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


@dataclass(frozen=True)
class PseudoLabel:
    """What the detector says of a clip whose count nobody gave.

    Attributes:
        name: Id of the clip.
        clip: The clip with the detector's count and cycles; None if it has none.
        reason: Why it has none, in a word: "not_sure", "unreadable_video"; else empty.
        detail: The same in a sentence.
    """

    name: str
    clip: Clip | None
    reason: str = ""
    detail: str = ""


def pseudo_labels(
    clips: Iterable[Clip],
    *,
    journal: Journal | None = None,
    progress: Callable[[int, int], None] | None = None,
    num_processes: int | None = None,
) -> Iterator[PseudoLabel]:
    """The detector's count of each clip, in order, or why there is none.

    A reward that asks for this count pays for agreement with the detector: learning without labels.

    Args:
        clips: The clips; their videos are read, their labels are not.
        journal: What was found before, and where what is found now is kept.
        progress: Called with (clips done, clips labelled).
        num_processes: As of `propose_answers`.
    """
    wanted, num_labelled = list(clips), 0
    findings = _findings(wanted, journal, num_processes)
    for done, (clip, found) in enumerate(zip(wanted, findings, strict=True), start=1):
        label = _label(clip, found)
        num_labelled += label.clip is not None
        yield label
        if progress:
            progress(done, num_labelled)


def _label(clip: Clip, found: _Found | VideoError) -> PseudoLabel:
    if isinstance(found, VideoError):
        return PseudoLabel(clip.id, None, "unreadable_video", str(found))
    if not found.is_sure:
        told = f"{len(found.cycles)} cycles with periodicity {found.score:.2f}"
        return PseudoLabel(clip.id, None, "not_sure", f"the detector doubts its {told}")
    labelled = replace(
        clip,
        count=len(found.cycles),
        cycles=found.cycles,
        cycles_source=SOURCE,
        flags=tuple(dict.fromkeys((*clip.flags, PSEUDO_LABEL))),
    )
    return PseudoLabel(clip.id, labelled)


def _findings(
    clips: Sequence[Clip], journal: Journal | None, num_processes: int | None
) -> Iterator[_Found | VideoError]:
    """What the detector finds in each clip, or found in the same file before; why it cannot look.

    What is new is in the journal when it is told. With more than a few new clips, processes share
    them.
    """
    keys = [_key_of(clip) for clip in clips]
    known = [journal.get(key) if journal is not None else None for key in keys]
    new = [clip for clip, row in zip(clips, known, strict=True) if row is None]
    with shared_map(_look, new, num_processes) as looks:
        for clip, key, row in zip(clips, keys, known, strict=True):
            if row is None:
                found = next(looks)
                if isinstance(found, VideoError):
                    yield found
                    continue
                row = {"key": key, "id": clip.id, **found}
                if journal is not None:
                    journal.add(row)
            cycles = tuple((start, end) for start, end in row["cycles"])
            yield _Found(cycles, row["score"], row["is_sure"])


def _look(clip: Clip) -> dict[str, Any] | VideoError:
    try:
        found = detect_cycles(clip)
    except VideoError as error:
        return error
    return {
        "cycles": [list(cycle) for cycle in found.cycles],
        "score": found.score,
        "is_sure": found.verdict != NOT_SURE,
    }


def _key_of(clip: Clip) -> str:
    """Of everything that the detector's answer depends on."""
    state = astuple(FileState.of(clip.video))
    about = (VERSION, clip.id, clip.start_s, clip.end_s, clip.video_fps, *state)
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]

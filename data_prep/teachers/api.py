"""The teacher behind an API: candidates for each clip, until one is accepted.

    clips ─► in_parallel ─► ask (data_prep.chat_api)
                 ▲      │ answer
                 │      ▼
                 │   journal (synced) ─► accepted? ─ yes ─► the clip's text
                 └────────── no: the next candidate ◄┘

Owns which candidate is kept, and that none is paid for twice. A candidate is kept if it passes
`data_prep.cot.rejection` and does not speak of its labels.
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.chat_api import (
    ChatClient,
    in_parallel,
    refuse_below_one,
    refuse_not_positive,
    sampling_of,
)
from data_prep.chat_errors import ApiError, NoAnswerError
from data_prep.cot import rejection
from data_prep.schema import Clip
from data_prep.teachers.answers import CotReport, Outcome, write_answers, write_report
from data_prep.teachers.journal import Journal
from data_prep.teachers.prompt import (
    completed,
    content_for,
    plan_for,
    prompt_for,
    says_that_it_was_told,
)
from data_prep.teachers.settings import ApiSettings
from data_prep.video import FramePlan, VideoError

Progress = Callable[[int, int, int], None]  # clips done, of all, accepted


def journal_path(out: Path) -> Path:
    """Path of the kept answers of a run that writes `out`."""
    return out.with_name(f"{out.name}.calls.jsonl")


def ask_api(
    clips: Sequence[Clip], out: Path, settings: ApiSettings, *, progress: Progress | None = None
) -> CotReport:
    """Ask for an answer about each clip and write those that are accepted, in order, to `out`.

    Called again after it was cut short, it goes on: answers are kept in `journal_path(out)`.

    Args:
        clips: With absolute video paths.
        out: The JSONL to write; its report and its journal lie beside it.
        settings: Endpoint, model and pace.
        progress: Called after each clip.

    Raises:
        ApiError: if the settings are wrong, the endpoint refuses everything (its key, its model),
            asks for too long a wait, or answers nothing any more.
        DataError: if another run writes the same file, or its journal cannot be read.
    """
    refuse_below_one(
        num_candidates=settings.num_candidates,
        max_frames=settings.max_frames,
        max_pixels=settings.max_pixels,
    )
    refuse_not_positive(fps=settings.fps)
    client = ChatClient(settings, subject="clips")
    with Journal(journal_path(out)) as journal:
        run = _Run(settings, client, journal)
        try:
            outcomes = asyncio.run(run.all(clips, progress))
        except ApiError as error:
            raise ApiError(
                f"{error}. The {len(journal)} answers so far are kept: run again to go on"
            ) from error
        report = write_answers(out, outcomes, settings.model)
        report.figures = run.figures()
        write_report(out, report)
        return report


class _Run:
    """One call of `ask_api`."""

    def __init__(self, settings: ApiSettings, client: ChatClient, journal: Journal) -> None:
        self.settings = settings
        self.client = client
        self.journal = journal
        self._sampling = sampling_of(settings)
        self.num_asked = self.num_reused = self.num_accepted = 0
        self.rejected = Counter[str]()  # candidates

    async def all(self, clips: Sequence[Clip], progress: Progress | None) -> list[Outcome]:
        """What came of each clip, in order."""

        def done(number: int) -> None:
            if progress is not None:
                progress(number, len(clips), self.num_accepted)

        async with self.client:
            return await in_parallel(
                clips, self._about, concurrency=self.settings.concurrency, done=done
            )

    def figures(self) -> dict[str, Any]:
        """Figures of the report."""
        client = self.client
        return {
            "candidates": {
                "asked": self.num_asked,
                "reused": self.num_reused,
                "accepted": self.num_accepted,
                "rejected": dict(self.rejected.most_common()),
            },
            "requests": {"sent": client.num_sent, "failed": dict(client.failed.most_common())},
            "tokens": dict(client.tokens),
        }

    async def _about(self, clip: Clip) -> Outcome:
        """Candidates for one clip until one is accepted."""
        reasons = Counter[str]()
        if clip.images:
            return Outcome(clip, reason="images_before_it", detail="the teacher sees a clip alone")
        try:
            plan = plan_for(clip, self.settings)
            try:
                prompt = prompt_for(clip, self.settings.dialect)
            except ValueError as error:  # a cycle of which nothing is left at one decimal
                return Outcome(clip, reason="bad_marks", detail=str(error))
            content: list[dict[str, Any]] = []
            for number in range(self.settings.num_candidates):
                key = self._key_of(clip, plan, prompt, number)
                row = self.journal.get(key)
                if row is not None:
                    self.num_reused += 1
                else:
                    quality = self.settings.jpeg_quality
                    content = content or await asyncio.to_thread(content_for, plan, prompt, quality)
                    answer = await self.client.ask(content)
                    row = {"key": key, "clip": clip.id, "candidate": number, **asdict(answer)}
                    self.journal.add(row)
                    self.num_asked += 1
                reason = self._judge(row, clip)
                if reason is None:
                    self.num_accepted += 1
                    return Outcome(clip, completed(row["text"], self.settings.dialect))
                reasons[reason] += 1
                self.rejected[reason] += 1
        except VideoError as error:
            return Outcome(clip, reason="unreadable_video", detail=str(error))
        except NoAnswerError as error:
            return Outcome(clip, reason=error.reason, detail=str(error))
        detail = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
        return Outcome(clip, reason="no_candidate_accepted", detail=detail)

    def _judge(self, row: dict[str, Any], clip: Clip) -> str | None:
        """Why a candidate is not kept."""
        text = completed(row["text"], self.settings.dialect)
        if not text:
            return "empty"
        if row["finish_reason"] == "length":
            return "truncated"
        if reason := rejection(text, clip, dialect=self.settings.dialect):
            return reason
        return "says_that_it_was_told" if says_that_it_was_told(text) else None

    def _key_of(self, clip: Clip, plan: FramePlan, prompt: str, number: int) -> str:
        """Names one candidate by all that its answer depends on; not by where files lie."""
        frames = (plan.num_bytes, plan.times_s, plan.fps, plan.height, plan.width)
        named = json.dumps([clip.id, prompt, frames, self._sampling, number], sort_keys=True)
        return hashlib.sha256(named.encode()).hexdigest()[:32]

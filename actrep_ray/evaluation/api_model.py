"""A model behind an API as a predictor: the questions, parser and files of any other.

    clips ─► in_parallel ─► frames or video ─► ChatClient (pace, retries) ─► endpoint
                                                    │ answer
                                                    ▼
                              OUT_DIR/answered-NAME.jsonl (synced) ─► predictions-NAME.jsonl

What was answered is on the disk before it is counted as done, and is never asked for again. A clip
without an answer is one whose answer cannot be read: it stays in the denominator, its prediction
says why (`problem`), and the next call with `--resume` asks about it again.

    OUT_DIR/requests-NAME.json    who was asked, requests, failures and tokens of the last call,
                                  and each clip without an answer with its reason
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actrep_ray.config import Recipe
from actrep_ray.evaluation.begun import begin
from actrep_ray.evaluation.predictions import (
    Prediction,
    line_of,
    prediction_of_text,
    read_predictions,
    write_predictions,
)
from actrep_ray.evaluation.run_results import write_settings
from actrep_ray.models.row_plans import plan_row
from actrep_ray.tasks.base import Task
from actrep_ray.tasks.loading import load_clips, load_task
from data_prep.chat_api import ChatClient, check_settings, in_parallel, sampling_of
from data_prep.chat_content import frames_content, video_content
from data_prep.chat_dialects import Answer
from data_prep.chat_errors import ApiError, NoAnswerError
from data_prep.chat_settings import ChatSettings
from data_prep.files import AppendedLines, write_json
from data_prep.rows import Row
from data_prep.schema import Clip
from data_prep.video import FramePlan, VideoError

SENDS = ("frames", "video")
_FACTOR = 32  # of a frame's sides, as of Qwen3-VL; others do not care
_FRAMES_NOTE = "The images are frames of one video clip in order, each after its time in seconds."
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class ApiEvaluation:
    """An evaluation of a model behind an API, checked; nothing has been asked.

    Attributes:
        recipe: Its `data`, `video` and `task` say what is asked and shown.
        clips: What is asked about.
        settings: Endpoint, model, pace, and how answers are written.
        sends: One of `SENDS`.
        out_dir: Gets all that is written.
        name: Of the predictor.
    """

    recipe: Recipe
    clips: list[Row]
    settings: ChatSettings
    sends: str
    out_dir: Path
    name: str

    @property
    def path(self) -> Path:
        """The file of its predictions."""
        return self.out_dir / f"predictions-{self.name}.jsonl"

    @property
    def report_path(self) -> Path:
        """The file of what it took."""
        return self.out_dir / f"requests-{self.name}.json"

    @property
    def journal_path(self) -> Path:
        """The file of what was paid for."""
        return self.out_dir / f"answered-{self.name}.jsonl"

    def left(self) -> list[Row]:
        """The clips that have no answer yet."""
        answered = {one.clip_id for one in self._read_journal()}
        return [clip for clip in self.clips if clip.id not in answered]

    def run(self, progress: Callable[[int], None]) -> "ApiReport":
        """Ask about each clip that has no answer, and write all predictions, in order.

        Args:
            progress: Called with the number of clips that were asked about in this call.

        Raises:
            ApiError: if the endpoint is of no use any more; what was answered is kept.
            ConfigError: if the folder's evaluation was begun with something else.
        """
        task = load_task(self.recipe.task)
        answers = {"model": f"{self.settings.model} at {self.settings.base_url}"}
        answers["request"] = _digest([sampling_of(self.settings), self.settings.api, self.sends])
        begin(self.out_dir, self.name, answers=answers, recipe=self.recipe, clips=self.clips)
        client = ChatClient(self.settings, subject="clips")
        with AppendedLines(self.journal_path, is_durable=True) as journal:
            run = _Run(self, client, task, journal)
            left = self.left()
            try:
                asyncio.run(run.all(left, progress))
            except ApiError as error:
                num = len(self._read_journal())
                raise ApiError(
                    f"{error}. The {num} of {len(self.clips)} answers so far are kept: --resume "
                    "goes on without asking for them again"
                ) from error
        found = {one.clip_id: one for one in self._read_journal()} | run.unanswered
        write_predictions(self.path, [found[clip.id] for clip in self.clips], task)
        write_settings(self.out_dir, self.recipe, answers["model"])
        report = ApiReport(
            num_clips=len(self.clips),
            num_reused=len(self.clips) - len(left),
            num_sent=client.num_sent,
            failed=dict(client.failed.most_common()),
            tokens={name: client.tokens[name] for name in ("prompt", "completion")},
            finished=dict(run.finished.most_common()),
            unanswered=[
                {"clip_id": clip_id, "reason": str(one.problem), "detail": run.details[clip_id]}
                for clip_id, one in run.unanswered.items()
            ],
        )
        who = {"api": self.settings.api, "sends": self.sends, **answers}
        write_json(self.report_path, {**who, **vars(report)})
        return report

    def plan(self, row: Row) -> FramePlan:
        """The frames of a row."""
        return plan_row(row, self.recipe.video, _FACTOR)

    def question(self, row: Row, task: Task) -> str:
        """What is asked about a row, in words."""
        question = task.question(row, self.recipe.data)
        return f"{_FRAMES_NOTE}\n{question}" if self._is_told_in_frames(row) else question

    def content(self, row: Row, task: Task) -> list[dict[str, Any]]:
        """The whole message about a row.

        Raises:
            VideoError: if its file cannot be read.
        """
        plan = self.plan(row)
        if self.sends == "video" and isinstance(row, Clip):
            shown = video_content(row, plan, _JPEG_QUALITY)
        else:
            shown = frames_content(plan, _JPEG_QUALITY)
        return [*shown, {"type": "text", "text": self.question(row, task)}]

    def _is_told_in_frames(self, row: Row) -> bool:
        return self.sends == "frames" and isinstance(row, Clip)

    def _read_journal(self) -> list[Prediction]:
        if not self.journal_path.is_file():
            return []
        AppendedLines(self.journal_path).close()  # a line that was cut off is gone
        return read_predictions(self.journal_path, load_task(self.recipe.task))


@dataclass(frozen=True)
class ApiReport:
    """What a call took.

    Attributes:
        num_clips: All of the evaluation.
        num_reused: Of these, answered by an earlier call.
        num_sent: Requests.
        failed: Requests that failed, by reason.
        tokens: Of the answers of this call, "prompt" and "completion", where the endpoint told.
        finished: Answers of this call by what ended them; "length" is the limit on tokens.
        unanswered: `clip_id`, `reason` and `detail` of each clip without an answer.
    """

    num_clips: int
    num_reused: int
    num_sent: int
    failed: dict[str, int]
    tokens: dict[str, int]
    finished: dict[str, int] = field(default_factory=dict)
    unanswered: list[dict[str, str]] = field(default_factory=list)


class _Run:
    """One call of `ApiEvaluation.run`."""

    def __init__(
        self, job: ApiEvaluation, client: ChatClient, task: Task, journal: AppendedLines
    ) -> None:
        self.job, self.client, self.task, self.journal = job, client, task, journal
        self.unanswered: dict[str, Prediction] = {}
        self.details: dict[str, str] = {}
        self.finished = Counter[str]()

    async def all(self, clips: Sequence[Row], progress: Callable[[int], None]) -> None:
        """Ask about each."""
        async with self.client:
            concurrency = self.job.settings.concurrency
            await in_parallel(clips, self._about, concurrency=concurrency, done=progress)

    async def _about(self, row: Row) -> None:
        try:
            content = await asyncio.to_thread(self.job.content, row, self.task)
            answer = await self.client.ask(content)
        except VideoError as error:
            self._give_up(row, "unreadable_video", str(error))
        except NoAnswerError as error:
            self._give_up(row, error.reason, str(error))
        else:
            self.finished[answer.finish_reason] += 1
            self.journal.add(line_of(self._prediction(row, answer), self.task))

    def _prediction(self, row: Row, answer: Answer) -> Prediction:
        return prediction_of_text(
            row.id,
            answer.text,
            self.task,
            dialect=self.job.recipe.data.dialect,
            num_tokens=answer.tokens["completion"] or None,
            is_truncated=answer.finish_reason == "length",
        )

    def _give_up(self, row: Row, reason: str, detail: str) -> None:
        self.unanswered[row.id] = Prediction(row.id, None, problem=reason)
        self.details[row.id] = detail


def prepare_api_evaluation(
    recipe: Recipe,
    settings: ChatSettings,
    *,
    sends: str,
    split: str,
    out_dir: Path,
    name: str,
) -> ApiEvaluation:
    """Check everything that can be checked before anything is asked.

    Args:
        recipe: As of `ApiEvaluation`.
        settings: Likewise.
        sends: Likewise.
        split: What is asked about.
        out_dir: Likewise.
        name: Likewise.

    Raises:
        ValueError: for data or settings that cannot be used.
    """
    check_settings(settings)
    sampling_of(settings)
    clips = load_clips(recipe, split, limit=recipe.eval.num_clips)
    return ApiEvaluation(recipe, clips, settings, sends, out_dir, name)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

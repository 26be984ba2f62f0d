"""The teacher behind an API: any OpenAI-compatible endpoint, vLLM's and Gemini's among them.

    clips ─► workers (concurrency) ─► pace (rate, Retry-After) ─► endpoint
                 ▲      │ answer                                     │ 429, 5xx, timeouts: again,
                 │      ▼                                            ▼ after a growing wait
                 │   journal (synced) ─► accepted? ─ yes ─► the clip's text
                 └────────── no: the next candidate ◄┘

Owns asking: pace, retries, what counts as an answer, and that none is paid for twice. A candidate
is kept if it passes `data_prep.cot.rejection` and does not speak of its labels. The key is read
from the environment, sent in the Authorization header, and taken out of everything that is written
or raised.
"""

import asyncio
import email.utils
import hashlib
import json
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from data_prep.cot import rejection
from data_prep.schema import Clip, DataError
from data_prep.teachers.answers import CotReport, Outcome, write_answers, write_report
from data_prep.teachers.journal import Journal
from data_prep.teachers.prompt import content_for, plan_for, prompt_for, says_that_it_was_told
from data_prep.teachers.settings import ApiSettings
from data_prep.video import FramePlan, VideoError

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_REFUSED = frozenset({400, 413, 422})  # about this one request; other 4xx are about all of them
_MAX_BACKOFF_S = 60.0
_ERROR_CHARACTERS = 300

Progress = Callable[[int, int, int], None]  # clips done, of all, accepted


class TeacherError(DataError):
    """The endpoint or the settings are of no use; the message says why, without the key."""


class _RetryError(Exception):
    """A request that may succeed when it is sent again."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


class _NoAnswerError(Exception):
    """A request that is given up; `reason` is "no_answer" or "refused"."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def journal_path(out: Path) -> Path:
    """Where the answers of a run are kept that writes `out`."""
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
        TeacherError: if the settings are wrong, the endpoint refuses everything (its key, its
            model), asks for too long a wait, or answers nothing any more.
        DataError: if another run writes the same file, or its journal cannot be read.
    """
    _check(settings)
    key = _read_key(settings)
    with Journal(journal_path(out)) as journal:
        run = _Run(settings, key, journal)
        try:
            outcomes = asyncio.run(run.all(clips, progress))
        except BaseExceptionGroup as group:
            found = _first(group, TeacherError)
            if found is None:
                raise
            raise found from None
        report = write_answers(out, outcomes, settings.model)
        report.figures = run.figures()
        write_report(out, report)
        return report


class _Pace:
    """Lets requests through at a steady rate, and none while a server asks to wait."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._interval_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._paused_until = 0.0

    async def turn(self) -> None:
        """Wait for one's turn."""
        now = time.monotonic()
        at = max(self._next, now)
        self._next = at + self._interval_s
        while at > now:  # a pause may have been asked for meanwhile
            await asyncio.sleep(at - now)
            now = time.monotonic()
            if self._paused_until > now:
                at = self._next
                self._next = at + self._interval_s

    def pause(self, seconds: float) -> None:
        """Let nothing through for a while."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
        self._next = max(self._next, self._paused_until)


class _Run:
    """One call of `ask_api`."""

    def __init__(self, settings: ApiSettings, key: str, journal: Journal) -> None:
        self.settings = settings
        self.journal = journal
        self._key = key
        self._pace = _Pace(settings.requests_per_minute)
        self._url = f"{settings.base_url.rstrip('/')}/chat/completions"
        self._sampling = _sampling(settings)
        self._jitter = random.Random()  # waits alone depend on it
        self._unanswered = 0  # clips in a row
        self.num_asked = self.num_reused = self.num_sent = self.num_accepted = 0
        self.rejected = Counter[str]()  # candidates
        self.failed = Counter[str]()  # requests
        self.tokens = Counter[str]()

    async def all(self, clips: Sequence[Clip], progress: Progress | None) -> list[Outcome]:
        """What came of each clip, in order."""
        outcomes: dict[int, Outcome] = {}
        places = iter(range(len(clips)))
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        async with (
            httpx.AsyncClient(headers=headers, timeout=None) as client,  # _send has a deadline
            asyncio.TaskGroup() as group,
        ):

            async def work(places: Iterator[int]) -> None:
                for place in places:
                    outcomes[place] = await self._about(clips[place], client)
                    if progress is not None:
                        progress(len(outcomes), len(clips), self.num_accepted)

            for _ in range(min(self.settings.concurrency, len(clips))):
                group.create_task(work(places))
        return [outcomes[place] for place in range(len(clips))]

    def figures(self) -> dict[str, Any]:
        """For the report."""
        return {
            "candidates": {
                "asked": self.num_asked,
                "reused": self.num_reused,
                "accepted": self.num_accepted,
                "rejected": dict(self.rejected.most_common()),
            },
            "requests": {"sent": self.num_sent, "failed": dict(self.failed.most_common())},
            "tokens": dict(self.tokens),
        }

    async def _about(self, clip: Clip, client: httpx.AsyncClient) -> Outcome:
        """Candidates for one clip until one is accepted."""
        reasons = Counter[str]()
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
                    answer = await self._ask(content, client)
                    row = {"key": key, "clip": clip.id, "candidate": number, **answer}
                    self.journal.add(row)
                    self.num_asked += 1
                reason = self._judge(row, clip)
                if reason is None:
                    self.num_accepted += 1
                    return Outcome(clip, row["text"])
                reasons[reason] += 1
                self.rejected[reason] += 1
        except VideoError as error:
            return Outcome(clip, reason="unreadable_video", detail=str(error))
        except _NoAnswerError as error:
            self._check_alive(error)
            return Outcome(clip, reason=error.reason, detail=str(error))
        detail = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
        return Outcome(clip, reason="no_candidate_accepted", detail=detail)

    def _judge(self, row: dict[str, Any], clip: Clip) -> str | None:
        """Why a candidate is not kept."""
        text = row["text"]
        if not text:
            return "empty"
        if row["finish_reason"] == "length":
            return "truncated"
        if reason := rejection(text, clip, dialect=self.settings.dialect):
            return reason
        return "says_that_it_was_told" if says_that_it_was_told(text) else None

    def _key_of(self, clip: Clip, plan: FramePlan, prompt: str, number: int) -> str:
        """Names one candidate by all that its answer depends on; not by where files lie."""
        frames = (plan.num_bytes, plan.indices, plan.fps, plan.height, plan.width)
        named = json.dumps([clip.id, prompt, frames, self._sampling, number], sort_keys=True)
        return hashlib.sha256(named.encode()).hexdigest()[:32]

    def _check_alive(self, error: _NoAnswerError) -> None:
        self._unanswered += 1
        if self._unanswered >= max(3, self.settings.concurrency):
            raise TeacherError(
                f"{self.settings.base_url}: no answer about {self._unanswered} clips in a row; the "
                f"last: {error}. The {len(self.journal)} answers so far are kept: run again to go "
                "on"
            ) from error

    # --- one request

    async def _ask(
        self, content: list[dict[str, Any]], client: httpx.AsyncClient
    ) -> dict[str, Any]:
        """One candidate: text, finish_reason and usage."""
        body = self._sampling | {"messages": [{"role": "user", "content": content}]}
        for attempt in range(self.settings.max_retries + 1):
            await self._pace.turn()
            self.num_sent += 1
            try:
                answer = await self._send(body, client)
            except _RetryError as error:
                self.failed[error.reason] += 1
                last = error
            except _NoAnswerError as error:
                self.failed[error.reason] += 1
                raise
            else:
                self._unanswered = 0
                return answer
            if attempt < self.settings.max_retries:
                await self._wait(attempt, last.wait_s)
        raise _NoAnswerError("no_answer", f"{last.reason} after {attempt + 1} requests")

    async def _wait(self, attempt: int, asked_s: float) -> None:
        if asked_s > self.settings.max_retry_after_s:
            raise TeacherError(
                f"{self.settings.base_url}: asks to wait {asked_s:.0f} s, longer than "
                f"{self.settings.max_retry_after_s:.0f} s. The {len(self.journal)} answers so far "
                "are kept: run again later to go on"
            )
        if asked_s:
            self._pace.pause(asked_s)
        backoff = min(self.settings.backoff_s * 2**attempt, _MAX_BACKOFF_S)
        await asyncio.sleep(max(asked_s, backoff * self._jitter.uniform(0.5, 1.0)))

    async def _send(self, body: dict[str, Any], client: httpx.AsyncClient) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                response = await client.post(self._url, json=body)
        except TimeoutError as error:
            raise _RetryError("timeout") from error
        except httpx.TransportError as error:
            raise _RetryError(type(error).__name__) from error
        status = response.status_code
        if status in _RETRIED:
            raise _RetryError(f"http_{status}", _retry_after(response.headers.get("retry-after")))
        if status != 200:
            what = f"{self._url} answered {status}: {self._clean(response.text)}"
            if status in _REFUSED:
                raise _NoAnswerError("refused", what)
            raise TeacherError(what)
        return self._read(response)

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        try:
            content = response.json()
            choice = content["choices"][0]
            text = choice["message"].get("content") or ""
            usage = content.get("usage") or {}
            tokens = {
                name: int(usage.get(f"{name}_tokens") or 0) for name in ("prompt", "completion")
            }
            if not isinstance(text, str):
                raise TypeError("text")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _RetryError("malformed_body") from error
        self.tokens.update(tokens)
        return {
            "text": self._redact(text.strip()),
            "finish_reason": str(choice.get("finish_reason")),
            "tokens": tokens,
        }

    def _clean(self, text: str) -> str:
        return " ".join(self._redact(text).split())[:_ERROR_CHARACTERS]

    def _redact(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _check(settings: ApiSettings) -> None:
    url = urlsplit(settings.base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise TeacherError(
            f"base_url={settings.base_url!r}, expected for example http://localhost:8000/v1"
        )
    if url.username or url.password or url.query:
        raise TeacherError(
            f"base_url of {url.hostname}: expected no user, password or query in it; the key goes "
            "into an environment variable whose name is given by --api-key-env"
        )
    for name in ("num_candidates", "concurrency", "max_tokens", "max_frames", "max_pixels"):
        if getattr(settings, name) < 1:
            raise TeacherError(f"{name}={getattr(settings, name)}, expected at least 1")
    for name in ("timeout_s", "fps", "requests_per_minute"):
        value = getattr(settings, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise TeacherError(f"{name}={value}, expected a number above 0")
    for name in ("max_retries", "backoff_s", "temperature"):
        if not getattr(settings, name) >= 0:
            raise TeacherError(f"{name}={getattr(settings, name)}, expected at least 0")


def _first(group: BaseExceptionGroup, kind: type[TeacherError]) -> TeacherError | None:
    for error in group.exceptions:
        found = _first(error, kind) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, kind):
            return found
    return None


def _sampling(settings: ApiSettings) -> dict[str, Any]:
    """The request without its messages."""
    try:
        extra = json.loads(settings.extra_body)
    except ValueError as error:
        raise TeacherError(f"extra_body={settings.extra_body!r}: not JSON ({error})") from error
    if not isinstance(extra, dict):
        raise TeacherError(f"extra_body={settings.extra_body!r}, expected a JSON object")
    body = {
        "model": settings.model,
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        **extra,
    }
    return {name: value for name, value in body.items() if value is not None}


def _read_key(settings: ApiSettings) -> str:
    if settings.api_key_env is None:
        return ""
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        # The name is not repeated: it may be the key itself, given by mistake.
        raise TeacherError(
            "api_key_env: no environment variable of that name holds a key; give the NAME of the "
            "variable, for example OPENAI_API_KEY"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise TeacherError(
            f"the key in {settings.api_key_env} holds a space or a character that no key has"
        )
    return key


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for: a number, or a date; 0 where there is none."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0

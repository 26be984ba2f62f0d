"""A client of a chat endpoint: any that is OpenAI-compatible (vLLM's), or Gemini's own API.

    questions ─► in_parallel (concurrency) ─► pace (rate, Retry-After) ─► endpoint
                     ▲ answer                                               │ 429, 5xx, timeouts:
                     └────────────────────────────────────────────────────◄─┘ again, after a wait

Owns pace, retries and when an endpoint is given up; how it is asked is `chat_dialects`. The key is
read from the environment, sent in a header, and taken out of everything that is returned or raised,
in parts as well (`redaction`).
"""

import asyncio
import math
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx

from data_prep.chat_dialects import DIALECTS, Answer
from data_prep.chat_errors import ApiError, NoAnswerError, asked_wait_s, is_quota_used_up
from data_prep.chat_settings import APIS, ChatSettings
from data_prep.files import DataError
from data_prep.redaction import Redaction
from data_prep.strict_json import JsonError, parse_json

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_REFUSED = frozenset({400, 413, 422})  # about this one request; other 4xx are about all of them
_MAX_BACKOFF_S = 60.0
_ERROR_CHARACTERS = 300
_MIN_UNANSWERED = 3  # questions in a row, before an endpoint is given up

Item = TypeVar("Item")
Result = TypeVar("Result")


class _RetryError(Exception):
    """A request that may succeed when it is sent again."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


class ChatClient:
    """Asks one endpoint; use it as an asynchronous context manager.

    Args:
        settings: Endpoint, model and pace.
        subject: What a question is about, for messages, in the plural.

    Attributes:
        num_sent: Requests that were sent.
        failed: Requests that failed, by reason.
        tokens: Of all answers, "prompt" and "completion".

    Raises:
        ApiError: if the settings are wrong, or there is no key.
    """

    def __init__(self, settings: ChatSettings, *, subject: str = "questions") -> None:
        check_settings(settings)
        self.settings = settings
        self.subject = subject
        self.num_sent = 0
        self.failed = Counter[str]()
        self.tokens = Counter[str]()
        self._key = _read_key(settings)
        self._redaction = Redaction(self._key)
        self._pace = Pace(settings.requests_per_minute)
        self._dialect = DIALECTS[settings.api]
        self._url = self._dialect.url(settings)
        self._sampling = sampling_of(settings)
        self._jitter = random.Random()  # waits alone depend on it
        self._unanswered = 0  # questions in a row
        self._given_up: ApiError | None = None
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        headers = self._dialect.headers(self._key) if self._key else {}
        client = httpx.AsyncClient(headers=headers, timeout=None)  # _send has a deadline
        self._is_over = asyncio.Event()
        self._http = await self._opened.enter_async_context(client)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._opened.aclose()

    async def ask(self, content: list[dict[str, Any]]) -> Answer:
        """One answer to one message of a user.

        Args:
            content: The parts of the message, as the API takes them.

        Raises:
            NoAnswerError: if this question has no answer.
            ApiError: if no question has one any more: the endpoint refuses everything, its quota
                is used up, it asks for too long a wait, or left too many questions in a row
                without an answer.
        """
        try:
            answer = await self._ask(content)
        except NoAnswerError as error:
            if error.reason == "refused":
                self.failed["refused"] += 1
            self._unanswered += 1
            if self._unanswered >= max(_MIN_UNANSWERED, self.settings.concurrency):
                raise self._give_up(
                    f"{self.settings.base_url}: no answer about {self._unanswered} {self.subject} "
                    f"in a row; the last: {error}"
                ) from error
            raise
        self._unanswered = 0
        self.tokens.update(answer.tokens)
        return answer

    def _give_up(self, why: str) -> ApiError:
        """The error of this question, and of all others that wait."""
        self._given_up = self._given_up or ApiError(why)
        self._is_over.set()
        return self._given_up

    async def _unless_given_up(self, waiting: Coroutine[Any, Any, None]) -> None:
        """Wait, but not when the endpoint is given up meanwhile.

        Raises:
            ApiError: then.
        """
        wait, over = asyncio.ensure_future(waiting), asyncio.ensure_future(self._is_over.wait())
        try:
            await asyncio.wait({wait, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            wait.cancel()
            over.cancel()
        if self._given_up is not None:
            raise self._given_up

    async def _ask(self, content: list[dict[str, Any]]) -> Answer:
        body = self._dialect.body(self._sampling, content)
        for attempt in range(self.settings.max_retries + 1):
            await self._unless_given_up(self._pace.turn())
            self.num_sent += 1
            try:
                return await self._send(body)
            except _RetryError as error:
                self.failed[error.reason] += 1
                last = error
            if attempt < self.settings.max_retries:
                await self._wait(attempt, last.wait_s)
        raise NoAnswerError("no_answer", f"{last.reason} after {attempt + 1} requests")

    async def _wait(self, attempt: int, asked_s: float) -> None:
        if asked_s > self.settings.max_retry_after_s:
            raise self._give_up(
                f"{self.settings.base_url}: asks to wait {asked_s:.0f} s, longer than "
                f"{self.settings.max_retry_after_s:.0f} s"
            )
        if asked_s:
            self._pace.pause(asked_s)
        backoff = min(self.settings.backoff_s * 2**attempt, _MAX_BACKOFF_S)
        wait_s = max(asked_s, backoff * self._jitter.uniform(0.5, 1.0))
        await self._unless_given_up(asyncio.sleep(wait_s))

    async def _send(self, body: dict[str, Any]) -> Answer:
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                response = await self._http.post(self._url, json=body)
        except TimeoutError as error:
            raise _RetryError("timeout") from error
        except httpx.TransportError as error:
            raise _RetryError(type(error).__name__) from error
        status = response.status_code
        if status == 200:
            return self._read(response)
        told = " ".join(self._redaction.apply(response.text).split())[:_ERROR_CHARACTERS]
        what = f"{self._url} answered {status}: {told}"
        if status == 429 and is_quota_used_up(response.text):
            raise self._give_up(f"the quota is used up: {what}")
        if status in _RETRIED:
            wait_s = asked_wait_s(response.headers.get("retry-after"), response.text)
            raise _RetryError(f"http_{status}", wait_s)
        if status in _REFUSED:
            raise NoAnswerError("refused", what)
        raise self._give_up(what)

    def _read(self, response: httpx.Response) -> Answer:
        try:
            said = self._dialect.read(response.json())
        except (
            ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
        ) as error:  # fmt: skip
            raise _RetryError("malformed_body") from error
        return Answer(
            text=self._redaction.apply(_whole(said.text).strip()),
            finish_reason=self._redaction.apply(_whole(said.finish_reason)),
            tokens=said.tokens,
        )


async def in_parallel(
    items: Sequence[Item],
    work: Callable[[Item], Awaitable[Result]],
    *,
    concurrency: int,
    done: Callable[[int], None],
) -> list[Result]:
    """The results of some work on each item, in order.

    Args:
        items: What is worked on.
        work: Done for each.
        concurrency: Most at the same time.
        done: Called with the number of finished items, after each.

    Raises:
        DataError: the first that work raised, as `ApiError`; nothing is begun then, and what is
            under way is waited for, since it may be paid for.
    """
    results: dict[int, Result] = {}
    failed: list[DataError] = []
    places = iter(range(len(items)))

    async def take(places: Iterator[int]) -> None:
        for place in places:
            if failed:
                return
            try:
                results[place] = await work(items[place])
            except DataError as error:
                failed.append(error)
                return
            done(len(results))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(items))):
            group.create_task(take(places))
    if failed:
        raise failed[0]
    return [results[place] for place in range(len(items))]


class Pace:
    """Lets requests through at a steady rate, and none while a server asks to wait.

    Args:
        requests_per_minute: The rate; None sets no limit.
    """

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


def check_settings(settings: ChatSettings) -> None:
    """Refuse settings that no request can be made with.

    Raises:
        ApiError: naming the setting, its value and what was expected.
    """
    if settings.api not in APIS:
        raise ApiError(f"api={settings.api!r}, expected one of {', '.join(APIS)}")
    url = urlsplit(settings.base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ApiError(
            f"base_url={settings.base_url!r}, expected for example http://localhost:8000/v1"
        )
    if url.username or url.password or url.query:
        raise ApiError(
            f"base_url of {url.hostname}: expected no user, password or query in it; the key goes "
            "into an environment variable whose name is given by --api-key-env"
        )
    refuse_below_one(concurrency=settings.concurrency, max_tokens=settings.max_tokens)
    refuse_not_positive(
        timeout_s=settings.timeout_s, requests_per_minute=settings.requests_per_minute
    )
    at_least_0 = {
        "max_retries": settings.max_retries,
        "backoff_s": settings.backoff_s,
        "temperature": settings.temperature,
    }
    for name, value in at_least_0.items():
        if not value >= 0:
            raise ApiError(f"{name}={value}, expected at least 0")


def refuse_below_one(**numbers: int) -> None:
    """Refuse settings below 1, by name."""
    for name, value in numbers.items():
        if value < 1:
            raise ApiError(f"{name}={value}, expected at least 1")


def refuse_not_positive(**numbers: float | None) -> None:
    """Refuse settings that are given and are no finite number above 0, by name."""
    for name, value in numbers.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ApiError(f"{name}={value}, expected a number above 0")


def sampling_of(settings: ChatSettings) -> dict[str, Any]:
    """The request without its messages.

    Raises:
        ApiError: if `extra_body` is no JSON object.
    """
    try:
        extra = parse_json(settings.extra_body)
    except JsonError as error:
        raise ApiError(f"extra_body={settings.extra_body!r}: {error}") from error
    if not isinstance(extra, dict):
        raise ApiError(f"extra_body={settings.extra_body!r}, expected a JSON object")
    return DIALECTS[settings.api].sampling(settings, extra)


def _read_key(settings: ChatSettings) -> str:
    if settings.api_key_env is None:
        return ""
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        # The name is not repeated: it may be the key itself, given by mistake.
        raise ApiError(
            "api_key_env: no environment variable of that name holds a key; give the NAME of the "
            "variable, for example OPENAI_API_KEY"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ApiError(
            f"the key in {settings.api_key_env} holds a space or a character that no key has"
        )
    return key


def _whole(text: str) -> str:
    """A text that a file can hold: halves of surrogate pairs become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

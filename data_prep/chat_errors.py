"""What endpoints answer in place of an answer: about one question, for now, or for good.

A status of 429 has two meanings. Too many requests a minute pass with a wait; a quota that is used
up does not, and asking on costs time and tries. Who is out of quota says so in the body:

    OpenAI    {"error": {"code": "insufficient_quota", ...}}
    Gemini    {"error": {"details": [{"violations": [{"quotaId": "...PerDay..."}]}]}}

Gemini says in the body as well how long to wait: `{"retryDelay": "34s"}` among the details.
"""

import email.utils
import json
import math
import re
import time
from collections.abc import Iterator
from typing import Any

from data_prep.files import DataError

_USED_UP = ("insufficient_quota", "billing_hard_limit_reached", "quota_exceeded")
_DELAY = re.compile(r"(\d+(?:\.\d+)?)s")


class ApiError(DataError):
    """The endpoint or the settings are of no use; the message says why, without the key."""


class NoAnswerError(Exception):
    """A question that is given up.

    Attributes:
        reason: "no_answer" or "refused".
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def is_quota_used_up(body: str) -> bool:
    """Whether the body of a 429 says that no wait of minutes will help."""
    for error in _errors_of(body):
        if error.get("code") in _USED_UP or error.get("type") in _USED_UP:
            return True
        for detail in _objects(error.get("details")):
            if any("PerDay" in str(v.get("quotaId")) for v in _objects(detail.get("violations"))):
                return True
    return False


def asked_wait_s(header: str | None, body: str) -> float:
    """Seconds that an endpoint asks to wait, by its Retry-After header or its body; 0: it does not.

    Args:
        header: A number of seconds, or a date.
        body: Of the same response.
    """
    if header:
        return retry_after(header)
    for error in _errors_of(body):
        for detail in _objects(error.get("details")):
            if found := _DELAY.fullmatch(str(detail.get("retryDelay"))):
                return float(found[1])
    return 0.0


def retry_after(value: str | None) -> float:
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


def _errors_of(body: str) -> Iterator[dict[str, Any]]:
    """The `error` of a body; Gemini's OpenAI endpoint puts it into a list."""
    try:
        content = json.loads(body)
    except (RecursionError, ValueError):
        return
    for one in content if isinstance(content, list) else [content]:
        if isinstance(one, dict) and isinstance(one.get("error"), dict):
            yield one["error"]


def _objects(values: Any) -> list[dict[str, Any]]:
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []

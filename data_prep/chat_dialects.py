"""How an endpoint is asked and how it answers: OpenAI's chat completions, Gemini's own API.

A message is a list of OpenAI's content parts; media are `data:` URLs (`chat_content`):

    openai   POST BASE/chat/completions             parts as they are; `video_url` is vLLM's
    gemini   POST BASE/models/MODEL:generateContent parts as `text` and `inlineData`

Both speak of the same three things: a text, why it ended ("length": it was cut off), its tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from data_prep.chat_errors import NoAnswerError
from data_prep.chat_settings import ChatSettings

_NO_OBJECT: dict[str, Any] = {}


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: The whole answer.
        finish_reason: As the endpoint names it; "length" if the text was cut off.
        tokens: Number of tokens, "prompt" and "completion", where the endpoint told.
    """

    text: str
    finish_reason: str
    tokens: dict[str, int]


class Dialect(Protocol):
    """One way of asking."""

    def url(self, settings: ChatSettings) -> str:
        """Where requests go."""
        ...

    def headers(self, key: str) -> dict[str, str]:
        """What carries the key."""
        ...

    def sampling(self, settings: ChatSettings, extra: Mapping[str, Any]) -> dict[str, Any]:
        """A request without its message; `extra` is put over it, null takes a key out."""
        ...

    def body(self, sampling: Mapping[str, Any], content: list[dict[str, Any]]) -> dict[str, Any]:
        """A request."""
        ...

    def read(self, content: Any) -> Answer:
        """The answer in the JSON value of a response.

        Raises:
            NoAnswerError: if the endpoint will not answer this question.
            LookupError, TypeError, ValueError, AttributeError: if there is none in it.
        """
        ...


class OpenAi:
    """Chat completions, as vLLM and most clouds take them."""

    def url(self, settings: ChatSettings) -> str:
        """Where requests go."""
        return f"{settings.base_url.rstrip('/')}/chat/completions"

    def headers(self, key: str) -> dict[str, str]:
        """What carries the key."""
        return {"Authorization": f"Bearer {key}"}

    def sampling(self, settings: ChatSettings, extra: Mapping[str, Any]) -> dict[str, Any]:
        """A request without its message."""
        return _without_nulls(
            {
                "model": settings.model,
                "temperature": settings.temperature,
                "max_tokens": settings.max_tokens,
                **extra,
            }
        )

    def body(self, sampling: Mapping[str, Any], content: list[dict[str, Any]]) -> dict[str, Any]:
        """A request; of a video no rate is told, for which there is no key."""
        told = [
            {**one, "video_url": {"url": one["video_url"]["url"]}} if "video_url" in one else one
            for one in content
        ]
        return {**sampling, "messages": [{"role": "user", "content": told}]}

    def read(self, content: Any) -> Answer:
        """The answer in a response; see `Dialect`."""
        choice = content["choices"][0]
        text = choice["message"].get("content") or ""
        usage = content.get("usage") or {}
        tokens = {name: int(usage.get(f"{name}_tokens") or 0) for name in ("prompt", "completion")}
        return Answer(_text(text), str(choice.get("finish_reason")), tokens)


class Gemini:
    """generateContent of Gemini's own API, which takes videos; thoughts are no answer."""

    def url(self, settings: ChatSettings) -> str:
        """Where requests go."""
        return f"{settings.base_url.rstrip('/')}/models/{settings.model}:generateContent"

    def headers(self, key: str) -> dict[str, str]:
        """What carries the key."""
        return {"x-goog-api-key": key}

    def sampling(self, settings: ChatSettings, extra: Mapping[str, Any]) -> dict[str, Any]:
        """A request without its message; `extra` is put over its generationConfig."""
        config = {
            "temperature": settings.temperature,
            "maxOutputTokens": settings.max_tokens,
            **extra,
        }
        return {"model": settings.model, "generationConfig": _without_nulls(config)}

    def body(self, sampling: Mapping[str, Any], content: list[dict[str, Any]]) -> dict[str, Any]:
        """A request; the model stands in its URL."""
        parts = [_in_gemini(one) for one in content]
        return {
            "contents": [{"role": "user", "parts": parts}],
            "generationConfig": sampling["generationConfig"],
        }

    def read(self, content: Any) -> Answer:
        """The answer in a response; see `Dialect`."""
        blocked = (content.get("promptFeedback") or _NO_OBJECT).get("blockReason")
        if blocked:
            raise NoAnswerError("refused", f"blocked: {blocked}")
        candidate = content["candidates"][0]
        said = (candidate.get("content") or _NO_OBJECT).get("parts") or []
        text = "".join(_text(one.get("text") or "") for one in said if not one.get("thought"))
        ended = str(candidate.get("finishReason"))
        usage = content.get("usageMetadata") or {}
        written = ("candidatesTokenCount", "thoughtsTokenCount")  # both are paid for
        tokens = {
            "prompt": int(usage.get("promptTokenCount") or 0),
            "completion": sum(int(usage.get(name) or 0) for name in written),
        }
        return Answer(text, {"MAX_TOKENS": "length", "STOP": "stop"}.get(ended, ended), tokens)


DIALECTS: dict[str, Dialect] = {"openai": OpenAi(), "gemini": Gemini()}


def _in_gemini(one: Mapping[str, Any]) -> dict[str, Any]:
    if one["type"] == "text":
        return {"text": one["text"]}
    media = one[one["type"]]
    kind, _, data = media["url"].removeprefix("data:").partition(";base64,")
    found: dict[str, Any] = {"inlineData": {"mimeType": kind, "data": data}}
    if fps := media.get("fps"):
        found["videoMetadata"] = {"fps": fps}
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    return value


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

"""Settings of a model behind an API. Imports nothing, so that `--help` can show them."""

from dataclasses import dataclass

GEMINI_URL = "https://generativelanguage.googleapis.com/v1beta/openai"
GEMINI_OWN_URL = GEMINI_URL.removesuffix("/openai")
"""Of its own API, which `api="gemini"` speaks."""

APIS = ("openai", "gemini")


@dataclass(frozen=True)
class ChatSettings:
    """What is asked of whom, and how fast.

    Attributes:
        base_url: Of the endpoint, for example `http://localhost:8000/v1`; to it the path of the API
            is added (`/chat/completions`).
        model: Name that the endpoint knows the model by.
        api_key_env: NAME of the environment variable that holds the key; None sends no key.
        concurrency: Requests under way at the same time.
        requests_per_minute: Most requests in a minute; None sets no limit.
        timeout_s: Longest wait for one answer, seconds.
        max_retries: How often one request is sent again.
        backoff_s: Wait before the first retry, seconds; it doubles with each, up to 60.
        max_retry_after_s: Longest wait that a server may ask for, seconds; above it the run stops.
        temperature: Of sampling.
        max_tokens: Most tokens of an answer.
        extra_body: JSON object that is put over the request (of gemini: over its
            generationConfig); null takes a key out.
        api: What the endpoint speaks, one of `APIS`.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout_s: float = 120.0
    max_retries: int = 6
    backoff_s: float = 1.0
    max_retry_after_s: float = 600.0
    temperature: float = 0.7
    max_tokens: int = 2048
    extra_body: str = "{}"
    api: str = "openai"

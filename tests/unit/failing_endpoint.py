"""An endpoint that misbehaves as it is asked: `python failing_endpoint.py PORT LOG QUOTA`.

It speaks OpenAI's chat completions and Gemini's generateContent. How it misbehaves is the first
word of the action in the question; "plain 7" is answered at once. QUOTA is a file with the number
of answers that it gives in all. Each request and each answer is a line of LOG.
"""

import asyncio
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from aiohttp import web

ANSWER = "<think>\nrep1: 0.5-1.2s\nrep2: 1.2-2.0s\nTotal: 2\n</think>\n<answer>2</answer>"
OPENAI_QUOTA = {"error": {"code": "insufficient_quota", "message": "You are out of credit."}}
GEMINI_QUOTA = {
    "error": {
        "code": 429,
        "status": "RESOURCE_EXHAUSTED",
        "details": [{"violations": [{"quotaId": "GenerateRequestsPerDayPerModel-FreeTier"}]}],
    }
}
GEMINI_WAIT = {"error": {"code": 429, "details": [{"retryDelay": "0.2s"}]}}


class Endpoint:
    """Knows what it was asked before, also before it was killed."""

    def __init__(self, log: Path, quota: Path) -> None:
        self.log, self.quota = log, quota
        lines = log.read_text().splitlines() if log.exists() else []
        self.asked = Counter(line.split("\t")[1] for line in lines if line.startswith("asked\t"))
        self.num_answered = sum(line.startswith("answered\t") for line in lines)

    def note(self, event: str, action: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{event}\t{action}\n")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        content = body["messages"][0]["content"]
        for one in content:
            if one["type"] != "text":
                assert set(one[one["type"]]) == {"url"}
        assert request.headers["Authorization"] == "Bearer key-of-the-test"
        seen = [one["type"] for one in content]
        choice = {"message": {"content": ANSWER}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100 + len(content), "completion_tokens": 40}
        refused = web.json_response({"error": {"message": "too long"}}, status=400)
        return await self.answer(
            request,
            content[-1]["text"],
            seen,
            {"choices": [choice], "usage": usage},
            quota=OPENAI_QUOTA,
            limited=web.Response(status=429, headers={"Retry-After": "0.2"}),
            refused=refused,
        )

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        parts = body["contents"][0]["parts"]
        assert request.headers["x-goog-api-key"] == "key-of-the-test"
        assert set(body["generationConfig"]) == {"temperature", "maxOutputTokens", "topK"}
        seen = []
        for one in parts[:-1]:
            kind = one["inlineData"]["mimeType"] if "inlineData" in one else "text"
            seen.append(f"{kind}@{one['videoMetadata']['fps']}" if "videoMetadata" in one else kind)
        said = [{"text": "I look.", "thought": True}, {"text": ANSWER}]
        tokens = {"promptTokenCount": 90, "candidatesTokenCount": 30, "thoughtsTokenCount": 12}
        good = {
            "candidates": [{"content": {"parts": said}, "finishReason": "STOP"}],
            "usageMetadata": tokens,
        }
        return await self.answer(
            request,
            parts[-1]["text"],
            seen,
            good,
            quota=GEMINI_QUOTA,
            limited=web.json_response(GEMINI_WAIT, status=429),
            refused=web.json_response({"promptFeedback": {"blockReason": "SAFETY"}}),
        )

    async def answer(
        self,
        request: web.Request,
        question: str,
        seen: list[str],
        good: dict[str, Any],
        *,
        quota: dict[str, Any],
        limited: web.Response,
        refused: web.Response,
    ) -> web.StreamResponse:
        """What comes of one request; `seen` is noted for who looks at the log."""
        named = re.search(r"How often is (.*) done\?", question)
        assert named is not None
        kind, number = named[1].split()[0], self.asked[named[1]]
        self.asked[named[1]] += 1
        self.note("asked", named[1])
        if number == 0:
            self.note("seen", " ".join(seen))
        if self.num_answered >= int(self.quota.read_text()):
            return web.json_response(quota, status=429)
        if kind == "limited" and number == 0:
            return limited
        if kind == "refused":
            return refused
        if (kind == "broken" and number < 2) or kind == "hopeless":
            return web.Response(status=500 + 3 * (number % 2), text="internal")
        if kind == "slow" and number == 0:
            await asyncio.sleep(3600)
        if kind == "garbled" and number < 3:
            return web.Response(text=["{", "[]", '{"choices": [], "candidates": []}'][number])
        if kind == "halved" and number == 0:
            half = web.StreamResponse(headers={"Content-Length": "1000"})
            await half.prepare(request)
            await half.write(b'{"choices": [{"message": {"content": "<answer>')
            assert request.transport is not None
            request.transport.close()
            return half
        self.num_answered += 1
        if kind == "late":
            await asyncio.sleep(0.3)
        self.note("answered", named[1])
        return web.json_response(good)


if __name__ == "__main__":
    app = web.Application(client_max_size=2**26)
    endpoint = Endpoint(Path(sys.argv[2]), Path(sys.argv[3]))
    app.router.add_post("/v1/chat/completions", endpoint.chat)
    app.router.add_post("/v1beta/models/tiny:generateContent", endpoint.generate)
    web.run_app(
        app, host="127.0.0.1", port=int(sys.argv[1]), print=lambda _: print("ready", flush=True)
    )

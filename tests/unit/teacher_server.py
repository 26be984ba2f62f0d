"""An OpenAI-compatible endpoint that misbehaves on demand: `python teacher_server.py PORT LOG`.

It answers well by filling in the form that the prompt shows. How it misbehaves before that is the
first word of the clip's action: "limited one" is asked to wait once, "hopeless" never gets a right
list. Each request and each answer is a line of LOG and of stdout: `asked|answered ACTION SECONDS`.
"""

import asyncio
import re
import sys
import time
from collections import Counter
from pathlib import Path

from aiohttp import web

FILLED = "A person bends the knees and rises."


class Teacher:
    """Knows what it was asked before, also before it was killed."""

    def __init__(self, log: Path) -> None:
        self.log = log
        lines = log.read_text().splitlines() if log.exists() else []
        self.asked = Counter(line.split("\t")[1] for line in lines if line.startswith("asked\t"))

    def note(self, event: str, action: str) -> None:
        line = f"{event}\t{action}\t{time.monotonic():.3f}\n"
        with self.log.open("a") as file:
            file.write(line)
        sys.stdout.write(line)
        sys.stdout.flush()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        parts = body["messages"][0]["content"]
        prompt = parts[-1]["text"]
        images = [part for part in parts if part["type"] == "image_url"]
        assert all(p["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/") for p in images)
        named = re.search(r'the action "([^"]*)"', prompt)
        assert named is not None
        action = named[1]
        number = self.asked[action]
        self.asked[action] += 1
        self.note("asked", action)
        response = await self.misbehave(action.split()[0], number, request)
        if response is None:
            finish = "length" if action.startswith("cut") and number == 0 else "stop"
            content = spoil(action.split()[0], number, well_formed(prompt))
            choice = {"message": {"role": "assistant", "content": content}, "finish_reason": finish}
            usage = {"prompt_tokens": 100 + len(images), "completion_tokens": 50}
            response = web.json_response({"choices": [choice], "usage": usage})
            self.note("answered", action)
        return response

    async def misbehave(
        self, kind: str, number: int, request: web.Request
    ) -> web.StreamResponse | None:
        echo = request.headers.get("Authorization", "")
        if kind == "limited" and number == 0:
            return web.json_response(
                {"error": "slow down"}, status=429, headers={"Retry-After": "1"}
            )
        if kind == "broken" and number < 2:
            return web.Response(status=500 + 3 * number, text="internal")
        if kind == "slow" and number == 0:
            await asyncio.sleep(3600)
        if kind == "garbled" and number < 3:
            return web.Response(
                text=["{", '{"choices": []}', '{"choices": [{"message": 3}]}'][number]
            )
        if kind == "dropped" and number == 0:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if kind == "refused":
            return web.json_response({"error": f"too many images, {echo}"}, status=400)
        if kind == "forbidden":
            return web.json_response([{"error": f"bad key {echo}"}], status=401)
        if kind == "away":
            return web.Response(status=503)
        if kind == "tomorrow":
            return web.Response(status=429, headers={"Retry-After": "86400"})
        if kind == "echoing":
            text = f"the header was {echo}"
            return web.json_response({"choices": [{"message": {"content": text}}]})
        return None


def well_formed(prompt: str) -> str:
    form = re.search(r"<think>.*</answer>", prompt, re.DOTALL)
    assert form is not None
    return re.sub(r"\[[^]]*\]", FILLED, form[0])


def spoil(kind: str, number: int, text: str) -> str:
    if kind == "miscounted" and number == 0:
        return text.replace("<answer>2", "<answer>3")
    if kind == "talkative" and number == 0:
        return text.replace(FILLED, "The annotation says so.", 1)
    if kind == "hopeless":
        return re.sub(r"rep2: .*", "rep2: 7.0-8.5s", text)
    if kind == "silent":
        return ""
    if kind == "behind":  # a template that opened the reasoning
        return text.removeprefix("<think>\n")
    if kind == "thought":  # likewise, and the model thought for itself first
        return f"Down and up, twice.\n</think>\n\n{text}"
    return text


if __name__ == "__main__":
    app = web.Application(client_max_size=2**26)
    teacher = Teacher(Path(sys.argv[2]))
    app.router.add_post("/v1/chat/completions", teacher.complete)
    web.run_app(
        app, host="127.0.0.1", port=int(sys.argv[1]), print=lambda _: print("ready", flush=True)
    )

"""The client of a chat endpoint by itself: bodies that no server should send, work in parallel."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data_prep.chat_api import ChatClient, in_parallel
from data_prep.chat_dialects import Answer
from data_prep.chat_errors import ApiError, NoAnswerError
from data_prep.chat_settings import ChatSettings
from data_prep.teachers.journal import Journal

CONTENT = [{"type": "text", "text": "How often?"}]
GOOD = '{"choices": [{"message": {"content": " 3 "}, "finish_reason": "stop"}]}'


class Server(ThreadingHTTPServer):
    """Answers with the bodies that it is given, in order."""

    bodies: list[str]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        self.rfile.read(int(self.headers["Content-Length"]))
        body = self.server.bodies.pop(0).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def settings_for(server: Server, **changes: Any) -> ChatSettings:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return ChatSettings(url, "tiny", backoff_s=0.0, **changes)


def ask(client: ChatClient) -> Answer:
    async def once() -> Answer:
        async with client:
            return await client.ask(CONTENT)

    return asyncio.run(once())


def test_a_key_that_is_told_in_part_is_taken_out(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-proj-4fQ9zL2mX7aB1cD3"
    monkeypatch.setenv("TEACHER_KEY", key)
    server.bodies = [
        GOOD.replace('" 3 "', f'"you sent {key[:14]}"').replace('"stop"', f'"{key[9:]}"')
    ]
    answer = ask(ChatClient(settings_for(server, api_key_env="TEACHER_KEY")))
    assert (answer.text, answer.finish_reason) == ("you sent ***", "***")


def test_an_answer_with_half_a_character_can_be_kept(server: Server, tmp_path: Path) -> None:
    text = '"1 \\ud800 2 \\ud83d\\ude00 \u2028 3 \\udc00"'
    server.bodies = [GOOD.replace('" 3 "', text)]
    answer = ask(ChatClient(settings_for(server)))
    assert answer.text == "1 \ufffd 2 \U0001f600 \u2028 3 \ufffd"
    path = tmp_path / "calls.jsonl"
    with Journal(path) as journal:
        journal.add({"key": "a", "text": answer.text})
    with Journal(path) as journal:
        assert journal.get("a") == {"key": "a", "text": answer.text}


def test_a_body_that_cannot_be_used_is_asked_for_again(server: Server) -> None:
    usage = ', "usage": {"prompt_tokens": 5, "completion_tokens": 1e400}}'
    server.bodies = [
        "[" * 100_000, "null", '{"choices": []}', GOOD[:-1] + usage, GOOD.replace('" 3 "', "[1]"),
        GOOD,
    ]  # fmt: skip
    client = ChatClient(settings_for(server))
    assert ask(client) == Answer("3", "stop", {"prompt": 0, "completion": 0})
    assert (client.num_sent, client.failed) == (6, {"malformed_body": 5})


def test_an_endpoint_that_answers_nothing_is_given_up(server: Server) -> None:
    server.bodies = ["nonsense"] * 3
    client = ChatClient(settings_for(server, max_retries=0, concurrency=1), subject="videos")

    async def about(_: int) -> str:
        try:
            await client.ask(CONTENT)
        except NoAnswerError as error:
            return error.reason
        return ""

    async def all_of() -> list[str]:
        async with client:
            return await in_parallel(range(9), about, concurrency=1, done=lambda _: None)

    with pytest.raises(ApiError, match=r"no answer about 3 videos in a row; the last: malformed"):
        asyncio.run(all_of())


def test_results_are_in_order_and_no_more_run_at_once_than_asked_for() -> None:
    running, most = 0, 0
    told: list[int] = []

    async def work(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01 * (5 - item % 5))
        running -= 1
        return item * item

    found = asyncio.run(in_parallel(range(20), work, concurrency=3, done=told.append))
    assert found == [item * item for item in range(20)]
    assert most == 3
    assert told == list(range(1, 21))

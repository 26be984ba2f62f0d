"""The teacher behind an API, against a real server that misbehaves, is killed and comes back."""

import asyncio
import email.utils
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actrep_ray.cli.main import main
from data_prep.chat_api import Pace, sampling_of
from data_prep.chat_errors import ApiError, retry_after
from data_prep.cot import read_answers, rejection, render_answer
from data_prep.files import DataError
from data_prep.schema import Clip, write_clips
from data_prep.shown import ShownImage
from data_prep.teachers.answers import CotReport
from data_prep.teachers.api import ask_api, journal_path
from data_prep.teachers.journal import Journal
from data_prep.teachers.prompt import completed, prompt_for, says_that_it_was_told
from data_prep.teachers.settings import ApiSettings
from data_prep.video_writer import encode_mp4

pytestmark = pytest.mark.lengthy

SERVER = Path(__file__).with_name("teacher_server.py")
SECRET = "sk-do-not-write-me-4711"
MakeClip = Callable[..., Clip]
CYCLES = ((0.5, 1.2), (1.2, 2.0))


class Server:
    """The server as a process of its own, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(SERVER), str(self.port), str(self.log)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.wait_for("ready")

    def wait_for(self, event: str, number: int = 1) -> None:
        """Until the server has said so often that something happened."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            number -= line.startswith(event)
            if number == 0:
                return
        raise AssertionError(f"the server ended before {event!r}")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def times(self, event: str, action: str = "") -> list[float]:
        rows = [line.split("\t") for line in self.log.read_text().splitlines()]
        return [float(row[2]) for row in rows if row[0] == event and action in ("", row[1])]

    def num(self, event: str) -> Counter[str]:
        rows = [line.split("\t") for line in self.log.read_text().splitlines()]
        return Counter(row[1] for row in rows if row[0] == event)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEACHER_KEY", SECRET)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    rng = np.random.default_rng(0)
    encode_mp4(path, rng.integers(0, 255, (36, 64, 64, 3), np.uint8), 12)
    return path


@pytest.fixture
def make_clip(video: Path) -> MakeClip:
    def make(action: str, **changes: Any) -> Clip:
        clip = Clip(
            id=action.replace(" ", "-"),
            dataset="test",
            split="train",
            video=str(video),
            start_s=0.0,
            end_s=3.0,
            video_fps=12.0,
            num_frames=36,
            width=64,
            height=64,
            action=action,
            count=2,
            cycles=CYCLES,
        )
        return replace(clip, **changes)

    return make


def settings_for(server: Server, **changes: Any) -> ApiSettings:
    settings = ApiSettings(
        f"http://127.0.0.1:{server.port}/v1",
        "tiny",
        api_key_env="TEACHER_KEY",
        backoff_s=0.02,
        timeout_s=60.0,
        fps=2.0,
        max_pixels=64 * 64,
    )
    return replace(settings, **changes)


def test_every_kind_of_trouble_is_lived_with_or_counted(
    server: Server, make_clip: MakeClip, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    kinds = (
        "plain", "limited", "broken", "slow", "garbled", "dropped", "miscounted", "talkative",
        "cut", "hopeless", "silent", "refused", "echoing",
    )  # fmt: skip
    clips = [make_clip(kind) for kind in kinds]
    clips.append(make_clip("plain unmarked", cycles=None))
    clips.append(make_clip("plain still", count=0, cycles=()))
    clips.append(make_clip("plain unread", video=str(tmp_path / "absent.mp4")))
    clips.append(make_clip("plain short", count=1, cycles=((0.5, 0.51),)))
    clips.append(make_clip("plain shown", images=(ShownImage("a.png", 64, 64),)))
    out = tmp_path / "out" / "cot.jsonl"
    settings = settings_for(server, concurrency=4, num_candidates=3, timeout_s=4.0)
    seen: list[tuple[int, int, int]] = []
    report = ask_api(clips, out, settings, progress=lambda *numbers: seen.append(numbers))

    answers = read_answers(out)
    good = [*kinds[:9], "plain-still"]
    assert list(answers) == good
    by_id = {clip.id: clip for clip in clips}
    assert all(rejection(text, by_id[name]) is None for name, text in answers.items())
    assert report.reasons == {
        "no_candidate_accepted": 4, "refused": 1, "unreadable_video": 1, "bad_marks": 1,
        "images_before_it": 1,
    }  # fmt: skip
    details = {name: detail for name, _, detail in report.rejected}
    assert details["hopeless"] == "wrong_cycles 3"
    assert details["silent"] == "empty 3"
    assert details["plain-unmarked"] == "malformed 3"  # the server cannot list by itself
    candidates = report.figures["candidates"]
    assert candidates["accepted"] == 10
    assert candidates["asked"] == server.num("answered").total() + 3  # those that echo
    assert candidates["rejected"] == {
        "malformed": 6, "wrong_cycles": 3, "empty": 3, "wrong_count": 1, "truncated": 1,
        "says_that_it_was_told": 1,
    }  # fmt: skip
    assert report.figures["requests"]["failed"] == {
        "malformed_body": 3, "http_429": 1, "http_500": 1, "http_503": 1, "timeout": 1,
        "RemoteProtocolError": 1, "refused": 1,
    }  # fmt: skip
    assert report.figures["tokens"]["completion"] == 50 * server.num("answered").total()
    assert seen[-1] == (len(clips), len(clips), 10)
    first, second = server.times("asked", "limited")
    assert second - first >= 1.0  # as Retry-After says

    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != server.log]
    assert {path.name for path in written} >= {"cot.jsonl", "cot.jsonl.calls.jsonl"}
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert SECRET not in caplog.text
    assert "the header was Bearer ***" in journal_path(out).read_text()
    assert "too many images, Bearer ***" in details["refused"]


def test_a_second_run_asks_for_nothing_that_it_has(
    server: Server, make_clip: MakeClip, tmp_path: Path
) -> None:
    clips = [make_clip("plain"), make_clip("miscounted"), make_clip("hopeless")]
    out = tmp_path / "cot.jsonl"
    ask_api(clips, out, settings_for(server, num_candidates=2))
    first = out.read_bytes()
    num_asked = server.num("asked")
    report = ask_api(clips, out, settings_for(server, num_candidates=2))
    assert server.num("asked") == num_asked == {"plain": 1, "miscounted": 2, "hopeless": 2}
    assert out.read_bytes() == first
    candidates = report.figures["candidates"]
    assert (candidates["asked"], candidates["reused"]) == (0, 5)
    # One more candidate, another clip and another question cost what is new about them.
    more = [*clips, make_clip("plain more"), make_clip("plain", id="b", count=1, cycles=CYCLES[:1])]
    ask_api(more, out, settings_for(server, num_candidates=3))
    asked = server.num("asked") - num_asked
    assert asked == {"hopeless": 1, "plain more": 1, "plain": 1}


def test_a_server_that_is_killed_and_comes_back_is_waited_for(
    server: Server, make_clip: MakeClip, tmp_path: Path
) -> None:
    clips = [make_clip(f"plain {i}") for i in range(40)]
    settings = settings_for(
        server, concurrency=2, requests_per_minute=1200, backoff_s=0.1, max_retries=12
    )
    result: list[CotReport] = []
    client = threading.Thread(
        target=lambda: result.append(ask_api(clips, tmp_path / "cot.jsonl", settings))
    )
    client.start()
    server.wait_for("answered", 10)
    server.kill()
    server.start()
    client.join()
    (report,) = result
    assert report.num_accepted == 40
    assert report.figures["requests"]["failed"]
    answered = server.num("answered")
    assert len(answered) == 40
    assert answered.total() <= 40 + settings.concurrency  # those on their way when it was killed


def test_a_run_that_is_killed_goes_on_without_paying_twice(
    server: Server, make_clip: MakeClip, tmp_path: Path
) -> None:
    clips = [make_clip(f"plain {i}") for i in range(24)]
    data, out = tmp_path / "clips.jsonl", tmp_path / "cot.jsonl"
    write_clips(data, clips)
    arguments = [
        "cot", str(data), "--teacher", "api", "--out", str(out), "--model", "tiny",
        "--allow-outside", str(Path(clips[0].video).parent),
        "--base-url", f"http://127.0.0.1:{server.port}/v1", "--api-key-env", "TEACHER_KEY",
        "--concurrency", "2", "--fps", "2",
    ]  # fmt: skip
    command = [sys.executable, "-m", "actrep_ray", *arguments, "--requests-per-minute", "400"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    server.wait_for("answered", 8)
    run.send_signal(signal.SIGKILL)
    output, _ = run.communicate()
    assert not out.exists()
    with journal_path(out).open("ab") as file:
        file.write(b'{"key": "torn')  # what a kill in the middle of a write leaves
    with Journal(journal_path(out)) as journal:
        num_kept = len(journal)
    assert 6 <= num_kept < 24
    num_asked = server.num("asked").total()
    assert main(arguments) == 0
    assert server.num("asked").total() - num_asked == 24 - num_kept
    assert len(read_answers(out)) == 24
    assert SECRET.encode() not in output


def test_requests_keep_to_the_rate_and_to_pauses() -> None:
    async def times() -> list[float]:
        pace = Pace(requests_per_minute=1200)  # one in 0.05 s
        began = time.monotonic()
        passed = []

        async def one() -> None:
            await pace.turn()
            passed.append(time.monotonic() - began)
            if len(passed) == 3:
                pace.pause(0.3)

        await asyncio.gather(*(one() for _ in range(6)))
        return passed

    passed = asyncio.run(times())
    assert all(passed[i] >= 0.05 * i for i in range(3))
    assert all(at >= 0.1 + 0.3 for at in passed[3:])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("forbidden", r"answered 401: .*bad key Bearer \*\*\*"),
        ("tomorrow", "asks to wait 86400 s, longer than 600 s"),
        ("away", r"no answer about 3 clips in a row; the last: http_503 after 2 requests"),
    ],
)
def test_an_endpoint_of_no_use_stops_the_run(
    kind: str, message: str, server: Server, make_clip: MakeClip, tmp_path: Path
) -> None:
    clips = [make_clip(f"{kind} {i}") for i in range(20)]
    settings = settings_for(server, concurrency=1, max_retries=1)
    with pytest.raises(ApiError, match=message) as error:
        ask_api(clips, tmp_path / "cot.jsonl", settings)
    assert SECRET not in str(error.value)
    assert server.num("asked").total() < 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "localhost:8000"}, "expected for example http://"),
        ({"base_url": f"http://x/v1?key={SECRET}"}, "no user, password or query"),
        ({"base_url": f"http://{SECRET}@x/v1"}, "no user, password or query"),
        ({"api_key_env": SECRET}, "give the NAME of the variable"),
        ({"num_candidates": 0}, "num_candidates=0, expected at least 1"),
        ({"timeout_s": 0.0}, "timeout_s=0.0, expected a number above 0"),
        ({"extra_body": "[]"}, r"extra_body='\[\]', expected a JSON object"),
        ({"extra_body": "{"}, "extra_body='{': not JSON"),
        ({"api_key_env": "BAD_KEY"}, "the key in BAD_KEY holds a space or a character"),
    ],
)
def test_wrong_settings_are_refused_without_the_key(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_KEY", f"{SECRET}\nX-Other: 1")
    settings = replace(ApiSettings("http://127.0.0.1:9/v1", "tiny"), **changes)
    with pytest.raises(ApiError, match=message) as error:
        ask_api([], tmp_path / "cot.jsonl", settings)
    assert SECRET not in str(error.value)


def test_waits_that_a_server_asks_for() -> None:
    assert retry_after("7") == 7.0
    assert retry_after("0.5") == 0.5
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 95 < retry_after(later) <= 100
    for value in (None, "", "soon", "-3", "inf", "nan", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert retry_after(value) == 0.0


def test_a_request_can_be_changed(server: Server, make_clip: MakeClip, tmp_path: Path) -> None:
    clips, out = [make_clip("plain")], tmp_path / "cot.jsonl"
    extra = '{"max_tokens": null, "max_completion_tokens": 77}'
    settings = settings_for(server, extra_body=extra)
    sampling = sampling_of(settings)
    assert sampling == {"model": "tiny", "temperature": 0.7, "max_completion_tokens": 77}
    assert ask_api(clips, out, settings).num_accepted == 1
    again = ask_api(clips, out, settings_for(server))  # another request: another answer
    assert again.figures["candidates"]["asked"] == 1


def test_one_run_at_a_time_writes_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    with Journal(path) as journal:
        journal.add({"key": "a", "text": "x"})
        with pytest.raises(DataError, match="another run is writing it"):
            Journal(path)
    path.write_text('{"key": "a"}\nnonsense\n{"key": "b"}\n')
    with pytest.raises(DataError, match=r"calls.jsonl:2: expected a JSON object with a key"):
        Journal(path)


def test_the_prompt_shows_labels_and_the_form(make_clip: MakeClip) -> None:
    prompt = prompt_for(make_clip("push_up"), "think")
    assert 'the action "push up" is repeated 2 times.' in prompt
    assert "rep1: 0.5-1.2s\nrep2: 1.2-2.0s\nCheck: [" in prompt
    assert "Total: 2\n</think>\n<answer>2</answer>" in prompt
    unmarked = prompt_for(make_clip("unknown", cycles=None), "thinking")
    assert "an action is repeated 2 times" in unmarked
    assert "</thinking>" in unmarked
    assert "List 2 repetitions in the order of time" in unmarked
    assert says_that_it_was_told("as I was told, the person squats")
    assert not says_that_it_was_told("An instructor squats and rises.")


def test_an_answer_is_made_whole_where_the_server_opened_its_reasoning(make_clip: MakeClip) -> None:
    clip = make_clip("push_up")
    whole = render_answer(clip)
    behind = whole.removeprefix("<think>\n")
    for text in (whole, behind, f"The times are even.\n</think>\n\n{whole}"):
        assert completed(text, "think") == whole
        assert rejection(completed(text, "think"), clip) is None
    assert rejection(behind, clip) == "malformed"
    for text in ("", "no tag", "<think>\nnever closed", whole.replace("think>", "thinking>")):
        assert completed(text, "think") == text
    assert rejection(completed(f"{whole}\n{whole}", "think"), clip) == "malformed"


@pytest.mark.parametrize("how", ["behind", "thought"])
def test_a_server_that_opened_the_reasoning_is_a_teacher(
    server: Server, make_clip: MakeClip, tmp_path: Path, how: str
) -> None:
    clips = [make_clip(how)]
    ask_api(clips, tmp_path / "cot.jsonl", settings_for(server))
    (text,) = read_answers(tmp_path / "cot.jsonl").values()
    assert text.startswith("<think>\n")
    assert rejection(text, clips[0]) is None


def test_the_report_of_the_command_is_printed(
    server: Server, make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "clips.jsonl", tmp_path / "cot.jsonl"
    clips = [make_clip("plain"), make_clip("hopeless"), make_clip("broken")]
    write_clips(data, clips)
    url = f"http://127.0.0.1:{server.port}/v1"
    arguments = ["cot", str(data), "--teacher", "api", "--out", str(out), "--model", "tiny"]
    arguments += ["--allow-outside", str(Path(clips[0].video).parent)]
    assert main([*arguments, "--base-url", url, "--num-candidates", "2", "--fps", "1"]) == 0
    shown = capsys.readouterr().out
    assert "answers for 2 of 3 clips" in shown
    assert "4 asked, 0 from an earlier run, 2 accepted; rejected:" in shown
    assert "2  wrong_cycles" in shown
    assert "6 sent; failed: http_500 1, http_503 1; tokens" in shown
    report = json.loads((tmp_path / "cot.jsonl.report.json").read_text())
    assert report["rejected_clips"][0]["id"] == "hopeless"
    assert main([*arguments, "--overwrite"]) == 2
    assert "--teacher api needs --base-url" in capsys.readouterr().err
    assert os.environ["TEACHER_KEY"] == SECRET

"""A model behind an API is judged: against a real server that fails in every way that is known."""

import base64
import io
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from actrep_ray.cli.main import main
from actrep_ray.config import ConfigError, load_recipe
from actrep_ray.evaluation.api_cost import Estimate, Prices, estimate
from actrep_ray.evaluation.api_model import ApiEvaluation, prepare_api_evaluation
from actrep_ray.tasks.loading import load_task
from data_prep.chat_errors import ApiError, asked_wait_s, is_quota_used_up
from data_prep.chat_settings import ChatSettings
from data_prep.schema import Clip, write_clips
from data_prep.video_writer import encode_mp4
from tests.free_port import free_port
from tests.unit.failing_endpoint import ANSWER, GEMINI_QUOTA, GEMINI_WAIT, OPENAI_QUOTA

pytestmark = pytest.mark.lengthy

SERVER = Path(__file__).with_name("failing_endpoint.py")
QUESTION = "data.question=How often is {action} done?"
KINDS = {
    "plain": 700, "limited": 60, "broken": 60, "garbled": 40, "halved": 40, "slow": 40,
    "refused": 30, "hopeless": 30,
}  # fmt: skip


class Server:
    """The endpoint as a process of its own, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.log, self.quota, self.port = folder / "server.log", folder / "quota", free_port()
        self.quota.write_text("1000000")
        command = [
            sys.executable,
            str(SERVER),
            str(self.port),
            str(self.log),
            str(self.quota),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def wait_for(self, event: str, number: int) -> None:
        ends = time.monotonic() + 60
        while not self.log.exists() or self.num(event).total() < number:
            assert time.monotonic() < ends
            time.sleep(0.02)

    def num(self, event: str) -> Counter[str]:
        rows = [line.split("\t") for line in self.log.read_text().splitlines()]
        return Counter(row[1] for row in rows if row[0] == event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEST_KEY", "key-of-the-test")
    server = Server(tmp_path)
    yield server
    server.process.kill()
    server.process.communicate()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    encode_mp4(path, np.random.default_rng(0).integers(0, 255, (36, 64, 64, 3), np.uint8), 12)
    return path


def write_data(video: Path, actions: list[str], **changes: Any) -> Path:
    clip = Clip(
        id="", dataset="test", split="test", video=video.name, start_s=0.0, end_s=3.0,
        video_fps=12.0, num_frames=36, width=64, height=64, action="", count=2,
    )  # fmt: skip
    path = video.with_name(f"{len(actions)}-{abs(hash((*actions, *changes)))}.jsonl")
    named = [(action, action.replace(" ", "-")) for action in actions]
    write_clips(path, [replace(clip, id=name, action=action, **changes) for action, name in named])
    return path


def job_of(
    data: Path, server: Server, out: Path, *settings: str, sends: str = "frames", **changes: Any
) -> ApiEvaluation:
    set_ = ["video.fps=1", "video.min_frames=1", "video.max_pixels=4096", "eval.num_bootstrap=50"]
    recipe = load_recipe(None, [f"data.path={data}", QUESTION, *set_, *settings])
    of_endpoint: dict[str, Any] = {
        "api_key_env": "TEST_KEY", "backoff_s": 0.02, "temperature": 0.0,
        "max_tokens": recipe.rollout.max_response_tokens, **changes,
    }  # fmt: skip
    asked = ChatSettings(of_endpoint.pop("base_url", server.url), "tiny", **of_endpoint)
    out.mkdir(exist_ok=True)
    return prepare_api_evaluation(
        recipe, asked, sends=sends, split="test", out_dir=out, name="tiny"
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_of_a_thousand_each_is_answered_once_or_listed_with_its_reason(
    server: Server, video: Path, tmp_path: Path
) -> None:
    actions = [f"{kind} {i}" for kind, number in KINDS.items() for i in range(number)]
    random.Random(0).shuffle(actions)
    data = write_data(video, actions)
    job = job_of(
        data, server, tmp_path / "out", "data.check_videos=false",
        concurrency=16, max_retries=3, timeout_s=4.0,
    )  # fmt: skip
    done = list[int]()
    report = job.run(done.append)
    assert done == list(range(1, 1001))
    answered = server.num("answered")
    good = {action for action in actions if action.split()[0] not in ("refused", "hopeless")}
    assert answered == dict.fromkeys(good, 1)
    rows = rows_of(job.path)
    assert [row["clip_id"] for row in rows] == [action.replace(" ", "-") for action in actions]
    assert Counter((row["count"], row["problem"]) for row in rows) == {
        (2, None): 940, (None, "refused"): 30, (None, "no_answer"): 30,
    }  # fmt: skip
    assert {row["text"] for row in rows} == {ANSWER, ""}
    assert {row["num_tokens"] for row in rows if row["count"] == 2} == {40}
    listed = json.loads(job.report_path.read_text())["unanswered"]
    assert Counter((one["clip_id"].split("-")[0], one["reason"]) for one in listed) == {
        ("refused", "refused"): 30, ("hopeless", "no_answer"): 30,
    }  # fmt: skip
    assert "answered 400" in next(o["detail"] for o in listed if o["reason"] == "refused")
    # halved: half a body is no JSON, or a body that ended too soon, as its end comes
    halved = report.failed.pop("RemoteProtocolError", 0) + report.failed.pop("ReadError", 0)
    assert report.failed == {
        "http_500": 60 + 60, "http_503": 60 + 60, "http_429": 60, "timeout": 40,
        "malformed_body": 3 * 40, "refused": 30,
    }  # fmt: skip
    assert halved == 40
    assert report.num_sent == server.num("asked").total() == 940 + 60 + 120 + 120 + 40 + 40 + 150
    assert report.tokens == {"prompt": 940 * (100 + 7), "completion": 940 * 40}  # 3 frames

    with pytest.raises(ApiError, match=r"no answer about 16 clips in a row.* The 940 of 1000"):
        job.run(done.append)  # of the 60 that are left none is answered, as by a dead endpoint
    again = replace(job, settings=replace(job.settings, concurrency=64)).run(done.append)
    assert server.num("answered") == answered
    assert (again.num_reused, again.num_sent, len(again.unanswered)) == (940, 150, 60)
    assert rows_of(job.path) == rows
    with pytest.raises(ConfigError, match=r"another one of: video.fps \(1.0 -> 2.0\);"):
        job_of(data, server, tmp_path / "out", "video.fps=2").run(done.append)
    with pytest.raises(ConfigError, match="another one of: request;"):
        job_of(data, server, tmp_path / "out", sends="video").run(done.append)


def words_of(server: Server, data: Path, out: Path, *more: str) -> list[str]:
    return [
        "evaluate", "--method", "api", "--base-url", server.url, "--model", "org/tiny:free",
        "--api-key-env", "TEST_KEY", "--data", str(data), "--out", str(out), "--concurrency", "4",
        "--set", QUESTION, "--set", "video.fps=1", "--set", "video.max_pixels=4096",
        "--set", "eval.num_bootstrap=50", "--no-baseline", *more,
    ]  # fmt: skip


def test_killed_it_goes_on_and_asks_nothing_twice(
    server: Server, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_data(video, [f"plain {i}" for i in range(40)]), tmp_path / "out"
    words = words_of(server, data, out, "--price-in", "2", "--price-out", "10")
    run = subprocess.Popen(
        [sys.executable, "-m", "actrep_ray", *words, "--requests-per-minute", "600"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server.wait_for("answered", 12)
    run.send_signal(signal.SIGKILL)
    assert run.wait(30) == -signal.SIGKILL
    journal = out / "answered-tiny-free.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"clip_id": "torn')
    kept = {row["clip_id"] for row in rows_of_whole(journal)}
    assert 8 <= len(kept) < 40
    assert main([*words, "--overwrite", "--estimate"]) == 2  # neither loses nor asks anything
    assert main([*words, "--estimate"]) == 0
    told = capsys.readouterr().out
    assert f"{40 - len(kept)} of 40 clips to ask about, {4 * (40 - len(kept))} frames" in told
    assert {row["clip_id"] for row in rows_of_whole(journal)} == kept
    assert main([*words, "--resume"]) == 0
    asked = server.num("asked")
    assert all(asked[name.replace("-", " ")] == 1 for name in kept)
    assert asked.total() <= 40 + 4  # those that were on their way when it was killed
    assert len(rows_of(out / "predictions-tiny-free.jsonl")) == 40
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["obz"]["value"], metrics["predictors"]["tiny-free"]["mae"]["value"]) == (1, 0)
    tokens_in, tokens_out = 109 * (40 - len(kept)), 40 * (40 - len(kept))
    shown = capsys.readouterr().out
    assert f"{tokens_in:,} in, {tokens_out:,} out" in shown
    assert f"told: {(2 * tokens_in + 10 * tokens_out) / 1e6:.4f}" in shown


def rows_of_whole(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


@pytest.mark.parametrize("api", ["openai", "gemini"])
def test_a_quota_that_is_used_up_stops_it_and_nothing_is_paid_twice(
    api: str, server: Server, video: Path, tmp_path: Path
) -> None:
    data = write_data(video, [f"late {i}" for i in range(40)])
    server.quota.write_text("21")
    more: dict[str, Any] = {"concurrency": 4, "api": api}
    if api == "gemini":
        more |= {"base_url": server.url + "beta", "extra_body": '{"topK": 1}'}
    job = job_of(data, server, tmp_path / "out", **more)
    with pytest.raises(ApiError, match=r"the quota is used up: .* 21 of 40 answers so far"):
        job.run(lambda _: None)
    assert len(rows_of(job.journal_path)) == server.num("answered").total() == 21
    assert server.num("asked").total() <= 21 + 4
    assert not job.path.exists()
    server.quota.write_text("40")
    report = job.run(lambda _: None)
    assert (report.num_reused, report.num_sent, report.unanswered) == (21, 19, [])
    assert set(server.num("answered").values()) == {1}
    assert len(rows_of(job.path)) == 40


def test_gemini_is_asked_in_its_own_words(server: Server, video: Path, tmp_path: Path) -> None:
    data = write_data(video, ["plain 1", "limited 1", "garbled 1", "refused 1"])
    gemini: dict[str, Any] = {
        "base_url": server.url + "beta", "api": "gemini", "extra_body": '{"topK": 1}',
        "concurrency": 4,
    }  # fmt: skip
    job = job_of(data, server, tmp_path / "out", **gemini)
    report = job.run(lambda _: None)
    rows = rows_of(job.path)
    assert [row["count"] for row in rows] == [2, 2, 2, None]
    assert {row["text"] for row in rows[:3]} == {ANSWER}  # without the thought
    assert rows[3]["problem"] == "refused"
    assert [one["detail"] for one in report.unanswered] == ["blocked: SAFETY"]
    assert report.tokens == {"prompt": 270, "completion": 3 * 42}
    assert report.failed == {"http_429": 1, "malformed_body": 3, "refused": 1}
    frames = " ".join(["text image/jpeg"] * 3)
    assert server.num("seen") == {frames: 4}
    job_of(data, server, tmp_path / "video", sends="video", **gemini).run(lambda _: None)
    assert server.num("seen") == {frames: 4}  # what is noted is the first request about a clip
    whole = write_data(video, ["plain 2"])
    job_of(whole, server, tmp_path / "whole", sends="video", **gemini).run(lambda _: None)
    assert server.num("seen")["video/mp4@1.0"] == 1


def test_a_clip_is_sent_as_its_file_or_as_its_frames(
    server: Server, video: Path, tmp_path: Path
) -> None:
    def sent(**changes: Any) -> bytes:
        data = write_data(video, ["plain 1"], **changes)
        job = job_of(data, server, tmp_path / "out", sends="video")
        shown, question = job.content(job.clips[0], load_task("counting"))
        assert question == {"type": "text", "text": "How often is plain 1 done?"}
        kind, _, content = shown["video_url"]["url"].partition(";base64,")
        assert kind == "data:video/mp4"
        return base64.b64decode(content)

    assert sent() == video.read_bytes()
    cut = av.open(io.BytesIO(sent(start_s=1.0)))  # a part of the file: its planned frames
    assert [round(float(frame.time), 3) for frame in cut.decode(video=0)] == [0.0, 1.0]


def test_what_it_costs_is_told_before_it_is_spent(
    server: Server, video: Path, tmp_path: Path
) -> None:
    data = write_data(video, ["plain 1", "plain 2"])
    more = ("rollout.max_response_tokens=50",)
    job = job_of(data, server, tmp_path / "out", *more)
    question = job.question(job.clips[0], load_task("counting"))
    text = -(-len(question) // 4)
    # 64 x 64 pixels: 4 tokens and 4 of its time, 3 frames a clip
    assert estimate(job) == Estimate(2, 6, 2 * (3 * 8 + text), 100)
    assert estimate(job, 100) == Estimate(2, 6, 2 * (3 * 104 + text), 100)
    assert Prices(2.0, 8.0).of(1_500_000, 250_000) == 5.0
    assert not server.log.exists()


def test_a_body_says_whether_waiting_helps() -> None:
    assert is_quota_used_up(json.dumps(OPENAI_QUOTA))
    assert is_quota_used_up(json.dumps([GEMINI_QUOTA]))
    assert not is_quota_used_up(json.dumps(GEMINI_WAIT))
    for body in ("", "[" * 100_000, '{"error": "slow down"}', '{"error": {"details": [3]}}'):
        assert not is_quota_used_up(body)
        assert asked_wait_s(None, body) == 0.0
    assert asked_wait_s(None, json.dumps(GEMINI_WAIT)) == 0.2
    assert asked_wait_s("3", json.dumps(GEMINI_WAIT)) == 3.0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--base-url", "http://api.example/v1"], "api.example is another machine"),
        (["--base-url", "127.0.0.1:8000"], "expected for example http://"),
        (["--checkpoint", "runs/x"], "--checkpoint belongs to --method model"),
        (["--samples", "4"], "--samples belongs to --method model"),
        (["--price-in", "3"], "expected both or neither"),
        (["--price-in", "-1", "--price-out", "3"], "--price-in -1.0, expected a number of"),
        (["--tokens-per-frame", "0"], "--tokens-per-frame 0, expected at least 1"),
        (["--method", "periodicity"], "--base-url belongs to --method api"),
        (["--extra-body", "[]"], "expected a JSON object"),
    ],
)
def test_careless_words_are_refused_in_one_line(
    more: list[str], told: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(video, ["plain 1"])
    words = [
        "evaluate", "--method", "api", "--base-url", "http://127.0.0.1:9/v1", "--model", "m",
        "--data", str(data), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main([*words, *more]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1

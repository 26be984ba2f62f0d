"""`actrep demo` without its page: what is refused, what counts, and what is shown of a count."""

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actrep_ray.cli.main import main
from actrep_ray.config import Recipe
from actrep_ray.counting.by_model import checked
from actrep_ray.counting.record import VideoCount
from actrep_ray.counting.videos import Failure, Source
from actrep_ray.demo.counters import DETECTOR, Counters
from actrep_ray.demo.examples import EXAMPLES
from actrep_ray.demo.guard import POLICY, Guard, make_room
from actrep_ray.demo.limits import Limits
from actrep_ray.demo.shown import bars_of, show, show_nothing
from actrep_ray.demo.threads import in_thread
from actrep_ray.evaluation.confidence import reliability, write_calibration
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.run.record import model_fingerprint
from data_prep.loopback import is_loopback
from data_prep.video_writer import encode_mp4
from tests.unit.test_count import counted, seen, text_of


class Elements(HTMLParser):
    """What a browser finds: elements with what they hold as text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.seeks: list[float] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        found = dict(attrs).get("data-seek")
        if found is not None:
            self.seeks.append(float(found))

    def handle_data(self, data: str) -> None:
        self.text += data


# --- what is shown


def test_a_count_is_shown_with_what_it_rests_on() -> None:
    found = counted(text_of(2, 2, 2))
    seen = Elements(show(found))
    assert "2 repetitions" in seen.text
    assert "confidence 0.67 of 1" in seen.text
    assert "consistent: list, total and answer are the same number" in seen.text
    assert text_of(2, 2, 2) in seen.text
    starts = [round(start, 3) for start, _ in found.cycles]
    assert seen.seeks == [*starts, *starts]  # the bars, and the list
    assert "Not sure" not in seen.text


def test_a_contradiction_is_told() -> None:
    seen = Elements(show(counted(text_of(10, 12, 11)))).text
    assert "Not sure" in seen
    assert "the answer contradicts itself: answer 10, total 12, list 11" in seen
    assert "10 repetitions counted all the same" in seen
    assert "NOT consistent: answer 10, total 12, list 11" in seen


def test_a_clip_unlike_the_training_and_a_second_opinion_are_told() -> None:
    found = checked(replace(counted(text_of(4, 4, 4)), unlike=9.0), seen(5, 0.8))
    told = Elements(show(found)).text
    assert "the model was trained on clips that look otherwise" in told
    assert "with the periodicity detector, which finds 5 repetitions" in told
    assert "the periodicity detector counts 5 (0.80 sure)" in told


def test_what_people_and_models_write_is_text() -> None:
    """Neither an action, nor a name of a file, nor an answer becomes an element."""
    bad = "<script>alert(1)</script>\ud800\x1b"
    plain = Elements(show(replace(counted(text_of(1, 1, 1)), action="squat")))
    found = replace(
        counted(f"{bad}{text_of(1, 1, 1)}"), action=bad, video=Path(f"a{bad.replace('/', '')}.mp4")
    )
    page = show(found)
    seen = Elements(page)
    assert seen.names == plain.names
    assert seen.text.count("<script>alert(1)") == 3
    assert "\x1b" not in page
    page.encode()
    failed = Elements(show(Failure(Path("a.mp4"), bad)))
    assert failed.names == ["div"]
    assert "<script>" in failed.text


def test_no_repetition_and_a_doubt_are_no_numbers(tmp_path: Path) -> None:
    still = np.zeros((24, 32, 32, 3), np.uint8)
    jump = still.copy()
    jump[8:12, :, 8:24] = 200  # one event
    counters = Counters(Limits())
    for name, frames, told in (
        ("still", still, ("No repetition", "nothing moves")),
        ("jump", jump, ("Not sure", "one event, no repetition")),
    ):
        encode_mp4(tmp_path / f"{name}.mp4", frames, 8)
        seen = Elements(show(counters.count(tmp_path / f"{name}.mp4", DETECTOR))).text
        assert all(words in seen for words in told)
        assert "0 repetitions" not in seen
    assert Elements(show_nothing()).text.strip() == "The count will stand here."


@given(
    st.lists(st.tuples(st.floats(-5, 50), st.floats(-5, 50)), max_size=5),
    st.floats(0, 30),
)
def test_bars_lie_within_the_timeline(cycles: list[tuple[float, float]], duration: float) -> None:
    for bar, (start, end) in zip(bars_of(cycles, duration), cycles, strict=True):
        assert (bar.start_s, bar.end_s) == (start, end)
        assert bar.left >= 0
        assert bar.width >= 0
        assert bar.left + bar.width <= 100.001


# --- what counts


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return EXAMPLES[0].draw(tmp_path_factory.mktemp("examples"))


def test_the_page_says_what_actrep_count_says(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["count", str(clip), "--method", "periodicity", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = Counters(Limits()).count(clip, DETECTOR)
    assert isinstance(found, VideoCount)
    assert found.to_json() == told
    assert told["count"] == int(EXAMPLES[0].name.split()[0])
    seen = Elements(show(found))
    assert f"{told['count']} repetitions" in seen.text
    assert seen.seeks[: told["count"]] == [start for start, _ in told["cycles"]]


@pytest.mark.lengthy
def test_examples_are_what_their_names_say(tmp_path: Path) -> None:
    found = [Counters(Limits()).count(one.draw(tmp_path), DETECTOR) for one in EXAMPLES]
    said = [(one.count, one.verdict) for one in found if isinstance(one, VideoCount)]
    assert said == [(5, "count"), (8, "count"), (1, "not sure")]


def test_what_is_too_much_or_no_video_is_one_line(clip: Path, tmp_path: Path) -> None:
    text, large = tmp_path / "notes.mp4", tmp_path / "large.mp4"
    text.write_text("no video")
    large.write_text("no video, and " + "long " * 1000)
    counters = Counters(Limits(max_upload_mb=0.004, max_duration_s=6.5))
    told = {
        path.name: counters.count(path, DETECTOR)
        for path in (text, large, tmp_path / "deleted.mp4")
    }
    assert {name: getattr(one, "reason", "")[:52] for name, one in told.items()} == {
        "notes.mp4": "notes.mp4: cannot be opened as a video (Invalid data",
        "large.mp4": "large.mp4: 0.00478 MiB, at most 0.004 MiB",
        "deleted.mp4": "deleted.mp4 was deleted here meanwhile: drop it agai",
    }
    long = Counters(Limits(max_duration_s=6.5)).count(clip, DETECTOR)
    assert isinstance(long, Failure)
    assert long.reason == f"{clip.name}: lasts 7.0 s, at most 6.5 s are counted here"
    unknown = counters.count(clip, "somebody")
    assert isinstance(unknown, Failure)
    assert "expected one of periodicity detector" in unknown.reason


def test_an_action_reaches_whoever_is_asked_about_it(clip: Path) -> None:
    asked: list[str] = []

    def count(sources: Sequence[Source]) -> list[VideoCount | Failure]:
        asked.extend(source.clip.action for source in sources)
        return [Failure(source.video, "") for source in sources]

    named = Counters(Limits(), count, names_action=True)
    assert (named.names, named.preferred) == (("model", DETECTOR), "model")
    for action in (" squat ", "", "<script>"):
        named.count(clip, "model", action)
    Counters(Limits(), count).count(clip, "model", "squat")
    assert asked == ["squat", "unknown", "<script>", "unknown"]
    long = named.count(clip, "model", "x" * 101)
    assert isinstance(long, Failure)
    assert not named.asks_action(DETECTOR)
    assert Counters(Limits(), count, prefers_detector=True).preferred == DETECTOR


class Engineless:
    """Stands for a model's counter, without its engine."""

    made: dict[str, Any]

    def __init__(self, model: Path, recipe: Recipe, **options: Any) -> None:
        type(self).made = options

    def __enter__(self) -> "Engineless":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def count(self, sources: Sequence[Source]) -> list[VideoCount | Failure]:
        return []


def test_a_calibration_reaches_the_models_counter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of `actrep count`; of answers drawn otherwise, and without a model, it is refused."""
    model, file = write_tiny_model(tmp_path / "model"), tmp_path / "calibration.json"
    told = reliability([0.3, 0.7], [False, True], 5)
    drawn = {"num": 5, "temperature": 1.0, "top_p": 1.0}
    write_calibration(file, told, model_fingerprint(model), drawn)
    monkeypatch.setattr("actrep_ray.cli.demo._check_gradio", lambda: None)
    monkeypatch.setattr("actrep_ray.counting.by_model.ModelCounter", Engineless)
    monkeypatch.setattr("actrep_ray.demo.server.serve", lambda *_, **__: None)
    words = ["demo", "--port", "0", "--calibration", str(file)]
    asked = [*words, "--checkpoint", str(model), "--set", "rollout.temperature=1.0"]
    assert main([*asked, "--samples", "5"]) == 0
    assert Engineless.made == {"num_answers": 5, "calibration": told.calibration}
    assert main(asked) == 2
    assert f"{file}: is of answers drawn with" in capsys.readouterr().err
    assert main(words) == 2
    assert "--checkpoint DIR is missing" in capsys.readouterr().err


def test_one_video_is_counted_at_a_time(clip: Path) -> None:
    running: list[int] = []
    most: list[int] = []

    def count(sources: Sequence[Source]) -> list[VideoCount | Failure]:
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()
        return [Failure(source.video, "") for source in sources]

    counters = Counters(Limits(), count)
    threads = [threading.Thread(target=counters.count, args=(clip, "model")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_a_thread_tells_its_result_or_its_error() -> None:
    def fail() -> None:
        raise KeyError("no")

    async def wait() -> tuple[int, bool]:
        number = await in_thread(threading.get_ident)
        with pytest.raises(KeyError):
            await in_thread(fail)
        given_up = asyncio.ensure_future(in_thread(lambda: time.sleep(0.1)))
        await asyncio.sleep(0.01)
        given_up.cancel()
        await asyncio.sleep(0.2)
        return number, given_up.cancelled()

    number, is_cancelled = asyncio.run(wait())
    assert number != threading.get_ident()
    assert is_cancelled


# --- what reaches the page


def asked(
    guard_of: Any, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer to one request; 204 is what the page itself answers."""
    sent: list[Any] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read of what is refused")

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": named}
    asyncio.run(guard_of(page)(scope, receive, send))
    answer = sent[0]
    return answer["status"], {name.decode(): value.decode() for name, value in answer["headers"]}


def test_requests_of_other_pages_are_refused(tmp_path: Path) -> None:
    def local(page: Any) -> Guard:
        return Guard(page, Limits(), tmp_path, frozenset(("127.0.0.1", "[::1]")))

    here = "127.0.0.1:7860"
    status, headers = asked(local, "/", host=here)
    assert status == 204
    assert headers["content-security-policy"] == POLICY
    assert asked(local, "/", host="[::1]:7860")[0] == 204
    assert asked(local, "/", host="127.0.0.1")[0] == 204
    assert asked(local, "/", host="evil.example:7860")[0] == 403
    assert asked(local, "/")[0] == 403
    join = "/gradio_api/queue/join"
    assert asked(local, join, "POST", host=here, origin=f"http://{here}")[0] == 204
    assert asked(local, join, "POST", host=here)[0] == 204  # no browser
    for stranger in ("https://evil.example", "null", "http://127.0.0.1:8000"):
        assert asked(local, join, "POST", host=here, origin=stranger)[0] == 403
    anybody = asked(lambda page: Guard(page, Limits(), tmp_path, None), "/", host="a.example")
    assert anybody[0] == 204


def test_what_the_page_does_not_ask_for_is_not_there(tmp_path: Path) -> None:
    def guard(page: Any) -> Guard:
        return Guard(page, Limits(), tmp_path, None)

    there = ("/", "/config", "/assets/index.js", "/gradio_api/file=/tmp/a.mp4")
    assert [asked(guard, path)[0] for path in there] == [204] * len(there)
    for path in (
        "/gradio_api/file=http://a.example/",
        "/gradio_api/proxy=http://a.example/",
        "/monitoring",
        "/openapi.json",
    ):
        assert asked(guard, path)[0] == 404
    for path in ("/gradio_api/run/count", "/gradio_api/component_server", "/login"):
        assert asked(guard, path, "POST")[0] == 404


def test_uploads_are_bounded_before_they_are_read(tmp_path: Path) -> None:
    def guard(page: Any) -> Guard:
        return Guard(page, Limits(max_upload_mb=1), tmp_path, None)

    def upload(**headers: str) -> int:
        return asked(guard, "/gradio_api/upload", "POST", **headers)[0]

    assert upload(content_length=str(2**20)) == 204
    assert upload(content_length=str(2**20 + 2**17)) == 413
    assert upload() == 411
    assert upload(content_length="-1") == 411


def test_the_oldest_uploads_give_way(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        path = tmp_path / name / f"{name}.mp4"
        path.parent.mkdir()
        path.write_bytes(b"x" * 100)
        os.utime(path, (1e9 - age, 1e9 - age))
    make_room(tmp_path, 300)
    assert len(list(tmp_path.rglob("*.mp4"))) == 3
    make_room(tmp_path, 250)
    assert {path.stem for path in tmp_path.rglob("*.mp4")} == {"new", "middle"}
    make_room(tmp_path, -1)
    assert not list(tmp_path.rglob("*.mp4"))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("localhost.example", False),
    ],
)
def test_which_addresses_are_this_machines_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


# --- the command


def test_without_gradio_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--port", "0"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{sys.executable} -m pip install 'gradio>=6.31,<7'" in err
    stated = Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
    assert 'demo = ["gradio>=6.31,<7"]' in stated


@pytest.mark.parametrize(
    "words",
    [
        ["--port", "65536"],
        ["--queue", "0"],
        ["--max-duration-s", "0"],
        ["--max-upload-mb", "nan"],
        ["--samples", "0"],
    ],
)
def test_a_limit_that_is_none_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["demo", *words])
    assert f"argument {words[0]}: {words[1]}: expected" in capsys.readouterr().err


def test_what_cannot_be_served_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, expected in (
            (["--port", port], f"--host 127.0.0.1 --port {port}: Address already in use"),
            (["--method", "model"], "--checkpoint DIR is missing"),
            (["--samples", "3"], "--checkpoint DIR is missing"),
            (["--port", "0", "--checkpoint", "nowhere"], "nowhere"),
            (["--host", "no.such.host.invalid"], "--host no.such.host.invalid --port 7860: "),
        ):
            assert main(["demo", *words]) == 2
            out, err = capsys.readouterr()
            assert (out, err.count("\n")) == ("", 1)
            assert expected in err

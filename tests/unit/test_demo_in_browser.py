"""The page of `actrep demo` in a headless Chromium: files are uploaded, buttons clicked.

Screenshots lie in the folder that ACTREP_SCREENSHOTS names, else in that of the test.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

from actrep_ray.cli.main import main
from actrep_ray.demo.examples import EXAMPLES, Example
from actrep_ray.models.tiny import write_tiny_model
from tests.browser import CONTRAST, CUT_OFF, NAMES, Tab, browser, find_browser
from tests.demo_server import FIELD, Server, clear, demo, opened, upload

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason=f"no {' or '.join(NAMES)} is installed"),
    pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed"),
]

VIEWS = list(product((390, 1280), (False, True)))  # width in pixels, dark


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """By the detector, with the limits that it has by default."""
    with demo(tmp_path_factory.mktemp("server")) as found:
        yield found
        assert "Traceback" not in found.errors.read_text()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Examples, and files that are refused."""
    folder = tmp_path_factory.mktemp("clips")
    drawn = (*EXAMPLES[:2], Example("long", "easy", 1, 64))
    found = {one.name: one.draw(folder) for one in drawn}
    for name, text in (("notes", "no video"), ("large", "x" * 5 * 2**20)):
        found[name] = folder / f"{name}.mp4"
        found[name].write_text(text)
    return found


def counted_by_command(
    video: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["count", str(video), "--json", *words]) in (0, 3)
    out = capsys.readouterr().out
    assert out.startswith("{"), out
    record: dict[str, Any] = json.loads(out)
    return record


def test_an_upload_is_counted_and_a_click_seeks(
    server: Server, address: str, clips: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = counted_by_command(clips["5 squats"], capsys, "--method", "periodicity")

    async def look() -> None:
        async with Tab(address) as tab:
            await opened(tab, server.url)
            text = await upload(tab, clips["5 squats"])
            assert f"{expected['count']} repetitions" in text
            assert f"confidence {expected['confidence']:.2f} of 1" in text
            for kind in (".bar", ".repetitions button"):
                every = f"[...document.querySelectorAll('#result {kind}')]"
                starts = await tab.value(f"{every}.map(one => Number(one.dataset.seek))")
                assert starts == [start for start, _ in expected["cycles"]]
                for i in (3, 1):
                    await tab.value(f"{every}[{i}].click()")
                    time_s = await tab.value("document.querySelector('#player video').currentTime")
                    assert time_s == pytest.approx(starts[i], abs=1e-3)
            await tab.wait("document.querySelector('.so-far').textContent === '1 / 5 so far'")
            now = await tab.value(
                "[...document.querySelectorAll('.bar')].map(one => one.matches('.is-now'))"
            )
            assert now == [False, True, False, False, False]

    asyncio.run(look())


def test_what_is_refused_is_a_line_and_the_page_lives_on(
    address: str, clips: dict[str, Path], tmp_path: Path
) -> None:
    async def look(url: str) -> None:
        async with Tab(address) as tab:
            await opened(tab, url)
            assert "notes.mp4: cannot be opened as a video" in await upload(tab, clips["notes"])
            await clear(tab)
            long = await upload(tab, clips["long"])
            assert long.strip() == "long.mp4: lasts 11.5 s, at most 11 s are counted here"
            await clear(tab)
            await tab.choose(FIELD, clips["large"])
            told = 'exceed the maximum allowed size of 4.0 Mb: "large.mp4"'
            await tab.wait(f"document.body.innerText.includes({json.dumps(told)})")
            await opened(tab, url)
            assert "5 repetitions" in await upload(tab, clips["5 squats"])

    with demo(tmp_path, "--max-upload-mb", "4", "--max-duration-s", "11") as server:
        asyncio.run(look(server.url))
        assert "Traceback" not in server.errors.read_text()


def test_two_at_once_get_their_own(
    server: Server, address: str, clips: dict[str, Path], tmp_path: Path
) -> None:
    async def one(address: str, name: str) -> str:
        async with Tab(address) as tab:
            await opened(tab, server.url)
            return await upload(tab, clips[name])

    async def both(other: str) -> tuple[str, str]:
        return await asyncio.gather(one(address, "5 squats"), one(other, "8 arm raises"))

    with browser(tmp_path) as other:  # of one browser, only one tab is drawn
        squats, raises = asyncio.run(both(other))
    assert "5-squats.mp4" in squats
    assert "5 repetitions" in squats
    assert "8-arm-raises.mp4" in raises
    assert "8 repetitions" in raises


def test_nobody_else_is_asked_for_anything(server: Server, address: str) -> None:
    """Neither by the page nor by the server; the browser's policy had nothing to refuse."""
    listen = (
        "addEventListener('securitypolicyviolation', "
        "told => (window.refused ??= []).push(told.blockedURI))"
    )

    async def look() -> tuple[list[str], Any]:
        async with Tab(address) as tab:
            await tab.ask("Network.enable")
            await tab.ask("Page.addScriptToEvaluateOnNewDocument", source=listen)
            await opened(tab, server.url)
            await tab.value("document.querySelector('#examples button').click()")
            await tab.wait("!!document.querySelector('#result .count')")
            return tab.requested, await tab.value("window.refused")

    requested, refused = asyncio.run(look())
    assert len(requested) > 5
    own = (server.url, "data:", "blob:")
    assert [url for url in requested if not url.startswith(own)] == []
    assert refused is None
    assert "ELSEWHERE" not in server.errors.read_text()


def named(path: str) -> dict[str, Any]:
    """A file as a request names it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_a_request_may_name_uploads_alone(tmp_path: Path) -> None:
    """No address to fetch, no other file of this machine: as a video, as text, as what to load."""
    secret = tmp_path / "secret.txt"  # in the folder that the server runs in
    secret.write_text("a secret")
    with demo(tmp_path) as server:
        ask_for(server, secret)


def ask_for(server: Server, secret: Path) -> None:
    config = httpx.get(f"{server.url}config").json()
    counts = next(one for one in config["dependencies"] if len(one["inputs"]) == 3)
    paths = ("http://127.0.0.1:1/a.mp4", "http://192.0.2.1/a.mp4", str(secret), "secret.txt")
    for path in paths:
        for data in ([named(path), "periodicity detector", ""], [None, named(path), named(path)]):
            assert not told_of(server, counts["id"], data)["success"]
        assert httpx.get(f"{server.url}gradio_api/file={path}").status_code in (403, 404)
    kept = [path for path in server.temporary.rglob("*") if path.is_file()]
    assert not any(b"a secret" in path.read_bytes() for path in kept)
    assert "ELSEWHERE" not in server.errors.read_text()


def told_of(server: Server, function: int, data: list[Any]) -> dict[str, Any]:
    """What the queue comes to say of one call."""
    body = {"data": data, "fn_index": function, "session_hash": "a"}
    answer = httpx.post(f"{server.url}gradio_api/queue/join", json=body)
    assert answer.status_code == 200, answer.text
    url = f"{server.url}gradio_api/queue/data?session_hash=a"
    with httpx.stream("GET", url, timeout=30) as stream:
        for line in stream.iter_lines():
            told = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if told.get("msg") == "process_completed":
                return dict(told)
    raise AssertionError("no answer")


def join(server: Server, video: Path, times: int = 1) -> list[int]:
    """Status of each request to count in an upload, one after the other; nobody waits for it."""
    with httpx.Client() as client:
        config = client.get(f"{server.url}config").json()
        counts = next(one for one in config["dependencies"] if len(one["inputs"]) == 3)
        with video.open("rb") as file:
            (path,) = client.post(f"{server.url}gradio_api/upload", files={"files": file}).json()
        bodies = [
            {
                "data": [named(path), "periodicity detector", ""],
                "fn_index": counts["id"],
                "session_hash": f"session-{i}",
            }
            for i in range(times)
        ]
        url = f"{server.url}gradio_api/queue/join"
        return [client.post(url, json=body).status_code for body in bodies]


def test_the_queue_is_bounded(tmp_path: Path, clips: dict[str, Path]) -> None:
    with demo(tmp_path, "--queue", "2", "--no-examples") as server:
        assert "Examples" not in httpx.get(f"{server.url}config").text
        codes = join(server, clips["8 arm raises"], times=8)
    assert codes[0] == 200
    assert codes.count(200) <= 4
    assert set(codes) == {200, 503}


def test_uploads_are_private_and_go(tmp_path: Path, clips: dict[str, Path]) -> None:
    """While it runs by their age, and all of them when it ends, by whatever ends it."""
    sooner = (
        "import actrep_ray.demo.limits as l; l.KEPT_S = 1.0\n"
        "import actrep_ray.demo.page as p; p._EVERY_S = 1"
    )
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with demo(tmp_path / number.name, before=sooner) as server:
            (folder,) = server.temporary.glob("actrep-demo-*")
            assert folder.stat().st_mode & 0o077 == 0
            with clips["5 squats"].open("rb") as file:
                url = f"{server.url}gradio_api/upload"
                (path,) = httpx.post(url, files={"files": file}).json()
            assert Path(path).is_relative_to(folder)
            end = time.monotonic() + 20
            while Path(path).exists():
                assert time.monotonic() < end, "never deleted"
                time.sleep(0.2)
            assert server.end(number) == code
            assert not folder.exists()
            assert "Traceback" not in server.errors.read_text()


def test_the_end_does_not_wait_for_a_count(tmp_path: Path, clips: dict[str, Path]) -> None:
    slow = (
        "import time, actrep_ray.demo.counters as c\n"
        "c.count_by_detector = lambda sources: print('COUNTS', flush=True) or time.sleep(100)"
    )
    with demo(tmp_path, before=slow) as server:
        join(server, clips["5 squats"])
        assert server.process.stdout is not None
        assert server.process.stdout.readline() == "COUNTS\n"
        began = time.monotonic()
        assert server.end() == 130
        assert time.monotonic() - began < 20


def test_an_address_that_others_reach_is_warned_of(tmp_path: Path) -> None:
    with demo(tmp_path, "--host", "0.0.0.0") as server:
        assert "warning: --host 0.0.0.0 lets everybody" in server.errors.read_text()
        assert httpx.get(server.url).status_code == 200


def test_a_checkpoint_or_the_detector(
    tmp_path: Path, address: str, clips: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Loaded once; what it says is what `actrep count` says; an action is text."""
    model = write_tiny_model(tmp_path / "model")
    question = "data.question=How often is {action} repeated? {form}"
    words = (
        "--checkpoint",
        str(model),
        "--set",
        question,
        "--set",
        "rollout.max_response_tokens=40",
    )
    script = "<script>document.title = 'run'</script>"
    expected = counted_by_command(clips["5 squats"], capsys, *words, "--action", script)

    async def look(url: str) -> None:
        async with Tab(address) as tab:
            await opened(tab, url)
            await upload(tab, clips["5 squats"])
            field = "document.querySelector('#action textarea, #action input')"
            await tab.value(
                f"{field}.value = {json.dumps(script)};"
                f"{field}.dispatchEvent(new Event('input', {{bubbles: true}}));"
                "document.querySelector('#count').click()"
            )
            await tab.wait("document.querySelector('#result .of')?.innerText.includes('<script>')")
            text = await tab.value("document.querySelector('#result .reasoning').textContent")
            assert text == expected["text"]
            verdict = await tab.value("document.querySelector('#result .count').dataset.verdict")
            assert verdict == expected["verdict"]
            assert expected["reason"] in await tab.value(
                "document.querySelector('#result').innerText"
            )
            assert await tab.value("document.title") != "run"
            await tab.value("document.querySelectorAll('#name input')[1].click()")
            await tab.wait("document.querySelector('#result .number')?.innerText[0] === '5'")
            await tab.wait(f"!{field}?.offsetParent")

    with demo(tmp_path, *words) as server:
        asyncio.run(look(server.url))
        assert "Traceback" not in server.errors.read_text()


def test_the_page_is_shown_whole(server: Server, address: str, tmp_path: Path) -> None:
    """At every width, dark or not: before and after a count, nothing cut off, text to be read."""
    pictures = Path(os.environ.get("ACTREP_SCREENSHOTS", tmp_path))
    pictures.mkdir(parents=True, exist_ok=True)

    async def look() -> None:
        async with Tab(address) as tab:
            for width, is_dark in VIEWS:
                name = f"{width}-{'dark' if is_dark else 'light'}"
                await opened(tab, server.url, width, is_dark=is_dark)
                await tab.picture(pictures / f"demo-start-{name}.png")
                await tab.value("document.querySelector('#examples button').click()")
                await tab.wait("!!document.querySelector('#result .count')")
                await tab.wait("document.querySelector('#player video')?.readyState >= 2")
                await tab.value("document.querySelectorAll('.repetitions button')[2].click()")
                await tab.wait("!!document.querySelector('.repetitions .is-now')")
                await tab.picture(pictures / f"demo-{name}.png")
                assert await tab.value(CUT_OFF.replace("body *", "#result *, #head *")) == [], name
                assert await tab.value(CONTRAST) >= 4.5, name

    asyncio.run(look())

"""The page of a report and TensorBoard in a browser: nothing is cut off, at any width, dark or not.

Screenshots lie in the folder that ACTREP_SCREENSHOTS names, else in that of the test.
"""

import asyncio
import base64
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.evaluation.report import report_run
from actrep_ray.run.metrics import MetricLogger
from tests.browser import CONTRAST, CUT_OFF, NAMES, Tab, browser, find_browser
from tests.unit.test_evaluation_report import folder, runs

__all__ = ["folder", "runs"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason=f"no {' or '.join(NAMES)} is installed"),
]

VIEWS = list(product((390, 1280, 2560), (False, True)))  # width in pixels, dark
HEIGHT = 900


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    path = Path(os.environ.get("ACTREP_SCREENSHOTS", tmp_path))
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_a_report_is_shown_whole(runs: Path, address: str, pictures: Path) -> None:
    url = report_run(runs).page.absolute().as_uri()

    async def look() -> dict[tuple[int, bool], dict[str, Any]]:
        seen = {}
        async with Tab(address) as tab:
            for width, is_dark in VIEWS:
                await tab.show(url, width, HEIGHT, is_dark=is_dark)
                name = f"report-{width}-{'dark' if is_dark else 'light'}.png"
                await tab.picture(pictures / name)
                seen[width, is_dark] = {
                    "cut": await tab.value(CUT_OFF),
                    "contrast": await tab.value(CONTRAST),
                    "ground": await tab.value("getComputedStyle(document.body).backgroundColor"),
                    "main": await tab.value(
                        "document.querySelector('main').getBoundingClientRect().width"
                    ),
                    "clipped pictures": await tab.value(
                        "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
                    ),
                }
        return seen

    seen = asyncio.run(look())
    assert [(view, found["cut"]) for view, found in seen.items() if found["cut"]] == []
    for (width, is_dark), found in seen.items():
        assert found["contrast"] >= 4.5, (width, is_dark)
        assert found["clipped pictures"] == 0
        assert min(width, 2400) * 0.95 <= found["main"] <= width  # it uses the window
        brightness = sum(map(int, found["ground"].strip("rgb()").split(","))) / 3
        assert (brightness < 60) == is_dark


def test_each_answer_of_a_report_is_opened_by_a_click(
    runs: Path, address: str, pictures: Path
) -> None:
    """Clicked one after the other: its frames, cycles and reasoning are seen, and fit."""
    url = report_run(runs).page.absolute().as_uri()

    async def look(width: int) -> list[dict[str, Any]]:
        seen = []
        async with Tab(address) as tab:
            await tab.ask("Network.enable")
            await tab.show(url, width, HEIGHT, is_dark=False)
            num = await tab.value("document.querySelectorAll('summary').length")
            for i in range(num):
                one = f"document.querySelectorAll('details')[{i}]"
                if not await tab.value(f"{one}.open"):
                    at = f"{one}.querySelector('summary')"
                    await tab.value(f"{at}.scrollIntoView({{block: 'center'}})")
                    box = f"{at}.getBoundingClientRect()"
                    x, y = await tab.value(f"{box}.left") + 8, await tab.value(f"{box}.top") + 8
                    for kind in ("mousePressed", "mouseReleased"):
                        await tab.ask(
                            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
                            clickCount=1,
                        )  # fmt: skip
                    await tab.wait(f"{one}.open")
                seen.append(
                    {
                        "title": await tab.value(f"{one}.querySelector('summary').innerText"),
                        "text": await tab.value(f"{one}.querySelector('pre').innerText"),
                        "image": await tab.value(f"{one}.querySelector('img').naturalWidth"),
                        "marks": await tab.value(
                            f"[...{one}.querySelectorAll('.lane i')].filter("
                            "i => i.getBoundingClientRect().width > 1).length"
                        ),
                    }
                )
            assert await tab.value(CUT_OFF) == []
            await tab.picture(pictures / f"report-answers-{width}.png")
            assert [u for u in tab.requested if not u.startswith(("file:", "data:"))] == []
        return seen

    for width in (390, 1280):
        seen = asyncio.run(look(width))
        assert len(seen) == 6
        assert "answered 40, off by 34" in seen[0]["title"]
        assert seen[0]["text"] == "text 5 </pre>"
        # Six true ones; of the forty listed, those that begin in the clip's 8 s.
        assert seen[0]["marks"] == 6 + 7
        assert all(one["image"] > 0 for one in seen)


def test_a_report_is_printed_on_white(runs: Path, address: str, pictures: Path) -> None:
    """Also from a dark screen; answers that are closed are printed as well."""
    url = report_run(runs).page.absolute().as_uri()

    async def look() -> tuple[str, str, int, bytes]:
        async with Tab(address) as tab:
            await tab.show(url, 794, 1123, is_dark=True)
            told = await tab.ask("Page.printToPDF", printBackground=True)
            dark = {"name": "prefers-color-scheme", "value": "dark"}
            await tab.ask("Emulation.setEmulatedMedia", media="print", features=[dark])
            style = "getComputedStyle(document.body)"
            ground = await tab.value(f"{style}.backgroundColor")
            ink = await tab.value(f"{style}.color")
            await tab.picture(pictures / "report-print.png")
            wide = await tab.value("document.documentElement.scrollWidth")
            return ground, ink, wide, base64.b64decode(told["data"])

    ground, ink, wide, printed = asyncio.run(look())
    (pictures / "report.pdf").write_bytes(printed)
    assert ground == "rgb(255, 255, 255)"
    assert ink == "rgb(0, 0, 0)"
    assert wide <= 794  # A4 at 96 dots an inch
    assert printed.startswith(b"%PDF")


def test_tensorboard_shows_curves(tmp_path: Path, address: str, pictures: Path) -> None:
    """It opens on those that say something, at every width; the page is no wider than it."""
    with MetricLogger(tmp_path / "run") as logger:
        for step in range(1, 6):
            values = {"eval/obo": 0.1 * step, "reward/mean": 0.05 * step}
            logger.log(step, {**values, "alarms/flat": 0.0, "checkpoint/step": step})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(tmp_path),
        "--port",
        str(port),
    ]
    board = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def look() -> None:
        async with Tab(address) as tab:
            for width, is_dark in VIEWS:
                for _ in range(60):
                    await tab.show(f"http://127.0.0.1:{port}/", width, HEIGHT, is_dark=is_dark)
                    if await tab.value("location.protocol === 'http:'"):
                        break
                    await asyncio.sleep(1)
                await tab.wait("document.body.innerText.includes('eval')")
                await tab.wait("document.body.innerText.includes('reward')")
                await asyncio.sleep(2)
                shown = await tab.value("document.body.innerText")
                assert "alarms" not in shown
                assert "checkpoint" not in shown
                name = f"tensorboard-{width}-{'dark' if is_dark else 'light'}.png"
                await tab.picture(pictures / name)
                page = "document.documentElement"  # at 390 its own layout, drawn smaller
                is_whole = await tab.value(f"{page}.scrollWidth <= {page}.clientWidth")
                assert is_whole, (width, is_dark)

    try:
        asyncio.run(look())
    finally:
        board.terminate()
        board.wait(30)

"""The pictures of docs/images: small, and shown by README and docs; and what takes them again:

    ACTREP_TAKE_PICTURES=runs/quickstart .venv/bin/python -m pytest tests/unit/test_doc_pictures.py

The demo counts in one of its examples by the detector, and by the model of a quickstart in a clip
that this has held out; the report is that of the quickstart.
"""

import asyncio
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from tests.browser import NAMES, Tab, browser, find_browser
from tests.demo_server import demo, opened, upload

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
WIDTH, HEIGHT = 1280, 640
NUM_COLOURS = 128
MAX_BYTES = 200_000

RUN = "ACTREP_TAKE_PICTURES"
taken = pytest.mark.skipif(RUN not in os.environ, reason="takes pictures anew")
in_browser = pytest.mark.skipif(
    find_browser() is None, reason=f"no {' or '.join(NAMES)} is installed"
)


@pytest.mark.parametrize(
    ("name", "pages"),
    [
        ("demo", ("README.md", "docs/count.md")),
        ("demo-model", ("docs/count.md",)),
        ("report", ("README.md",)),
    ],
)
def test_a_picture_is_small_and_shown(name: str, pages: tuple[str, ...]) -> None:
    path = IMAGES / f"{name}.png"
    assert path.stat().st_size < MAX_BYTES
    with Image.open(path) as picture:
        assert picture.size == (WIDTH, HEIGHT)
    for shown_by in pages:
        assert f"images/{name}.png" in (ROOT / shown_by).read_text()


@taken
@in_browser
def test_the_report_is_taken(tmp_path: Path) -> None:
    url = (Path(os.environ[RUN]) / "report" / "report.html").absolute().as_uri()

    async def take(address: str) -> None:
        async with Tab(address) as tab:
            await tab.show(url, WIDTH, HEIGHT, is_dark=False)
            await tab.picture(IMAGES / "report.png", num_colours=NUM_COLOURS)

    with browser(tmp_path / "browser") as address:
        asyncio.run(take(address))


@taken
@in_browser
@pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")
def test_the_demo_is_taken(tmp_path: Path) -> None:
    async def take(address: str, url: str) -> None:
        async with Tab(address) as tab:
            await opened(tab, url, WIDTH, HEIGHT)
            await tab.value("document.querySelector('#examples button').click()")
            await tab.wait("!!document.querySelector('#result .count')")
            await picture(tab, 2, "demo")

    with browser(tmp_path / "browser") as address, demo(tmp_path / "server") as server:
        asyncio.run(take(address, server.url))


@taken
@in_browser
@pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")
def test_the_demo_of_a_model_is_taken(tmp_path: Path) -> None:
    run = Path(os.environ[RUN]).absolute()
    clip = run.parents[1] / "data" / "quickstart" / "medium" / "videos" / "test-00000.mp4"

    async def take(address: str, url: str) -> None:
        async with Tab(address) as tab:
            await opened(tab, url, WIDTH, HEIGHT)
            await upload(tab, clip)
            await picture(tab, 1, "demo-model")

    here = tmp_path / "server"  # the page names the checkpoint as it was given
    here.mkdir()
    (here / "runs").symlink_to(run.parent)
    words = ("--checkpoint", f"runs/{run.name}/grpo", "--samples", "5")
    with browser(tmp_path / "browser") as address, demo(here, *words) as server:
        asyncio.run(take(address, server.url))


async def picture(tab: Tab, repetition: int, name: str) -> None:
    """Write a picture of the page while one of the repetitions, from 0, is shown."""
    await tab.wait("document.querySelector('#player video')?.readyState >= 2")
    await tab.value(f"document.querySelectorAll('.repetitions button')[{repetition}].click()")
    await tab.wait("!!document.querySelector('.repetitions .is-now')")
    await asyncio.sleep(1)  # colours change slowly
    await tab.picture(IMAGES / f"{name}.png", num_colours=NUM_COLOURS)

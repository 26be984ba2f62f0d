"""A headless Chromium, asked over its DevTools protocol what a page looks like."""

import asyncio
import base64
import io
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import aiohttp
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_START_S, _LOAD_S = 60.0, 60.0

# What is wider than the window, or than its own box without a way to scroll there.
CUT_OFF = """(() => {
  const page = document.documentElement, cut = [];
  if (page.scrollWidth > page.clientWidth) cut.push(`page ${page.scrollWidth}`);
  for (const one of document.querySelectorAll("body *")) {
    const style = getComputedStyle(one), inScroll = one.closest(".scroll");
    const hides = ["hidden", "clip"].includes(style.overflowX);
    if (hides && one.scrollWidth > one.clientWidth + 1)
      cut.push(`${one.tagName} ${one.textContent.slice(0, 40)}: ${one.clientWidth} wide`);
    if (!inScroll && one.getBoundingClientRect().right > page.clientWidth + 1)
      cut.push(`${one.tagName} ends at ${one.getBoundingClientRect().right}`);
  }
  return cut;
})()"""
# Contrast of text and what it stands on, the least of all (WCAG asks for 4.5).
CONTRAST = """(() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const light = text => { const [r, g, b] = numbers(text).map(v => (v /= 255) <= 0.03928
    ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = one => { for (; one; one = one.parentElement) { const colour =
    getComputedStyle(one).backgroundColor; if (numbers(colour)[3] !== 0) return colour; }
    return "rgb(255, 255, 255)"; };
  let least = 21;
  const texts = "h1, h2, p, th, td, dt, dd, small, figcaption, pre";
  for (const one of document.querySelectorAll(texts)) {
    if (!one.textContent.trim()) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(ground(one))];
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
})()"""


def find_browser() -> str | None:
    """A Chromium of this machine."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def browser(folder: Path) -> Iterator[str]:
    """A running browser; yields the address that it is asked at.

    Args:
        folder: Of its profile.
    """
    program = find_browser()
    assert program is not None, f"none of {', '.join(NAMES)} is installed"
    line = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    line += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{_port(folder / 'DevToolsActivePort')}"
    finally:
        process.terminate()
        process.wait(30)


def _port(path: Path) -> int:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        with suppress(OSError, IndexError, ValueError):
            return int(path.read_text().splitlines()[0])
        time.sleep(0.2)
    raise TimeoutError(f"{path}: the browser did not start in {_START_S:g} s")


class Tab:
    """One tab; use it as an asynchronous context manager.

    Args:
        address: Of the browser.

    Attributes:
        requested: Addresses that its pages asked for, told since `ask("Network.enable")`.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._ids = itertools.count(1)
        self.requested: list[str] = []

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(trust_env=False)
        async with self._session.put(f"{self._address}/json/new?about:blank") as answer:
            opened = await answer.json(content_type=None)
        self._socket = await self._session.ws_connect(
            opened["webSocketDebuggerUrl"], max_msg_size=0
        )
        await self.ask("Page.enable")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._socket.close()
        await self._session.close()

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to one call of the protocol; of what is told beside it, requests are kept."""
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            told = json.loads((await asyncio.wait_for(self._socket.receive(), _LOAD_S)).data)
            if told.get("method") == "Network.requestWillBeSent":
                self.requested.append(told["params"]["request"]["url"])
            if told.get("id") == number:
                assert "error" not in told, told
                return dict(told["result"])

    async def show(self, url: str, width: int, height: int, *, is_dark: bool) -> None:
        """Load a page into a window of a size, in pixels."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        await self.ask("Emulation.setEmulatedMedia", features=[scheme])
        await self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 640,
        )
        await self.ask("Page.navigate", url=url)
        await self.wait("document.readyState === 'complete'")

    async def value(self, expression: str) -> Any:
        """What an expression of the page's own language comes to."""
        told = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + _LOAD_S
        while not await self.value(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            await asyncio.sleep(0.2)

    async def choose(self, selector: str, path: Path) -> None:
        """Give a file to a field for files, as a person would choose it."""
        root = (await self.ask("DOM.getDocument"))["root"]["nodeId"]
        found = await self.ask("DOM.querySelector", nodeId=root, selector=selector)
        await self.ask("DOM.setFileInputFiles", files=[str(path)], nodeId=found["nodeId"])

    async def picture(self, path: Path, *, num_colours: int | None = None) -> None:
        """Write what the window shows as PNG; of few colours it is smaller."""
        told = await self.ask("Page.captureScreenshot", format="png")
        data = base64.b64decode(told["data"])
        if num_colours is None:
            path.write_bytes(data)
            return
        with Image.open(io.BytesIO(data)) as whole:
            whole.convert("RGB").quantize(num_colours).save(path, optimize=True)

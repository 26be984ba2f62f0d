"""A running `actrep demo`, and what a person does with its page."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.browser import Tab

ROOT = Path(__file__).resolve().parents[1]
FIELD = "#player input[type=file]"
# A server that tells of every connection and every name that it looks up; `before` is run first.
PROGRAM = """
import socket, sys
def told(event, args):
    is_network = event == "socket.connect" and args[0].family != socket.AF_UNIX
    if is_network or event == "socket.getaddrinfo":
        where = args[1][0] if is_network else args[0]
        if where not in ("127.0.0.1", "::1", "localhost", "0.0.0.0", None, b"127.0.0.1"):
            print("ELSEWHERE", event, where, file=sys.stderr, flush=True)
sys.addaudithook(told)
{before}
from actrep_ray.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Server:
    """A running `actrep demo`."""

    process: "subprocess.Popen[str]"
    url: str
    errors: Path
    temporary: Path

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Its exit code; what it said on the way is in `errors`."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def demo(folder: Path, *words: str, before: str = "") -> Iterator[Server]:
    """A running `actrep demo`, ended at the end.

    Args:
        folder: It runs in, with its uploads below.
        words: Of the command.
        before: Lines of Python that are run before it.
    """
    temporary, errors = folder / "tmp", folder / "errors.txt"
    temporary.mkdir(parents=True)
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", PROGRAM.format(before=before), "demo", "--port", "0", *words]
    with errors.open("w") as file:
        process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=file, text=True, env=environment, cwd=folder
        )
    try:
        assert process.stdout is not None
        told = process.stdout.readline()
        assert told.startswith("http://"), errors.read_text()
        yield Server(process, told.split()[0] + "/", errors, temporary)
    finally:
        process.kill()
        process.communicate(timeout=30)


async def opened(
    tab: Tab, url: str, width: int = 1280, height: int = 900, *, is_dark: bool = False
) -> None:
    """Wait until the page can take a video."""
    await tab.show(url, width, height, is_dark=is_dark)
    await tab.wait(f"!!document.querySelector('{FIELD}') && !!document.querySelector('#result p')")


async def upload(tab: Tab, path: Path) -> str:
    """Text of what stands where the count stands, once there is one."""
    await tab.choose(FIELD, path)
    await tab.wait("!!document.querySelector('#result .count, #result .failure')")
    return str(await tab.value("document.querySelector('#result').innerText"))


async def clear(tab: Tab) -> None:
    """Take the video away, and wait until the page can take another."""
    await tab.value("document.querySelector('#player [aria-label=Clear]').click()")
    await tab.wait(f"!!document.querySelector('{FIELD}')")
    await tab.wait("!!document.querySelector('#result .waiting')")

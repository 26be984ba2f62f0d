"""The page served: a socket, uploads in a folder of their own, and an end that leaves nothing."""

import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from actrep_ray.cluster.stopping import handled
from actrep_ray.demo.counters import Counters
from actrep_ray.demo.guard import Guard
from actrep_ray.demo.page import make_page, settle_gradio
from data_prep.loopback import is_loopback

_ENDS_WITHIN_S = 2  # of a page that is open


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: Name or address.
        port: 0 takes one that is free.

    Raises:
        OSError: if the port is taken or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def address_of(listening: socket.socket, host: str) -> str:
    """What is typed into a browser."""
    named = f"[{host}]" if ":" in host else host
    return f"http://{named}:{listening.getsockname()[1]}"


def serve(
    counters: Counters,
    listening: socket.socket,
    host: str,
    *,
    has_examples: bool,
    ready: Callable[[], None],
) -> None:
    """Serve the page until somebody ends it (ctrl-C, SIGTERM).

    Args:
        counters: What counts.
        listening: Of `listen`.
        host: As it was given.
        has_examples: Whether clips are offered.
        ready: Called when the page can be opened.

    Raises:
        KeyboardInterrupt: after ctrl-C.
        SystemExit: after SIGTERM.
    """
    with (
        tempfile.TemporaryDirectory(prefix="actrep-demo-") as folder,  # for this user alone
        handled(signal.SIGTERM, _end),
    ):
        uploads, examples = Path(folder, "uploads"), Path(folder, "examples")
        uploads.mkdir()
        settle_gradio(uploads)
        app = make_page(counters, examples if has_examples else None)
        hosts = frozenset(("127.0.0.1", "localhost", "[::1]")) if is_loopback(host) else None
        _run(Guard(app, counters.limits, uploads, hosts), listening, ready)


def _run(app: Guard, listening: socket.socket, ready: Callable[[], None]) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=_ENDS_WITHIN_S
    )
    Server(config).run(sockets=[listening])


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)

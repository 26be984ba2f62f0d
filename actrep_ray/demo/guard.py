"""What a request must be like before the page sees it; and what the browser is told to load.

A page of somebody else, open in the same browser, can send requests to this machine: by its own
origin, or under a name of its own that leads here. Both are refused. The policy in the answers
keeps the browser from asking any other host for anything.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

from actrep_ray.demo.limits import Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; form-action 'self'"
)
"""Content-Security-Policy: Gradio's own scripts are inline."""

_PORT = re.compile(r":\d*$")
_UPLOAD = "/gradio_api/upload"
# What the page asks for. Gradio has more, as to fetch an address for whoever names it.
_READ = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|(assets|static|svelte)/.*|"
    r"gradio_api/(info|startup-events|app_id|heartbeat/.*|queue/data|upload_progress|file=/.*))?"
)
_WRITTEN = re.compile(r"/gradio_api/(upload|queue/join|cancel|reset)")
_OVERHEAD = 64 * 1024  # bytes of a form beside its file
_HEADERS = ((b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer"))


class Guard:
    """Stands before the page's application (ASGI).

    Args:
        app: The application.
        limits: Of uploads.
        uploads: Folder of the uploads: the oldest are deleted where there is no room for one more.
        hosts: Names that requests may be sent to, without the port; None allows every name.
    """

    def __init__(
        self, app: App, limits: Limits, uploads: Path, hosts: frozenset[str] | None
    ) -> None:
        self._app, self._limits, self._uploads, self._hosts = app, limits, uploads, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status, told = self._refusal(scope, headers)
        if status:
            await _answer(send, status, told)
            return

        async def with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self._app(scope, receive, with_policy)

    def _refusal(self, scope: Scope, headers: dict[bytes, str]) -> tuple[int, str]:
        """Status and words; 0 for a request that is let through."""
        host = headers.get(b"host", "")
        if self._hosts is not None and _PORT.sub("", host) not in self._hosts:
            return 403, f"host {host!r} is not this page's"
        is_read = scope["method"] in ("GET", "HEAD")
        if not (_READ if is_read else _WRITTEN).fullmatch(scope["path"]):
            return 404, "nothing of this page"
        if is_read:
            return 0, ""
        origin = headers.get(b"origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, f"a page of {origin} may not send requests here"
        if scope["path"] != _UPLOAD:
            return 0, ""
        length = headers.get(b"content-length", "")
        if not length.isdecimal():
            return 411, "an upload has to say how long it is"
        if int(length) > self._limits.max_bytes + _OVERHEAD:
            return 413, f"too large: at most {self._limits.told_upload}"
        make_room(self._uploads, self._limits.room_bytes - int(length))
        return 0, ""


def make_room(folder: Path, most_bytes: int) -> None:
    """Delete files of a folder, the oldest first, until they have at most so many bytes."""
    found = sorted(_files(folder), key=lambda one: one[1])
    total = sum(size for _, _, size in found)
    for path, _, size in found:
        if total <= most_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


def _files(folder: Path) -> Iterable[tuple[Path, float, int]]:
    """Path, time of change and bytes of each file that is still there."""
    for path in folder.rglob("*"):
        try:
            state = path.stat()
        except FileNotFoundError:
            continue
        if path.is_file():
            yield path, state.st_mtime, state.st_size


async def _answer(send: Send, status: int, told: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": told.encode()})

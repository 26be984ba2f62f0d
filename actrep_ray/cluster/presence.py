"""How a worker's process shows that it lives, and what it is at: without Ray, and without its help.

A thread writes the time into a file in memory, once a second, as long as Python gets on; SIGUSR2
has the stacks of all threads written into another one, whatever holds Python up. Whoever may look
at the process finds both among its open files.
"""

import faulthandler
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_PULSE, _STACKS, _WISH = "actrep-pulse", "actrep-stacks", "actrep-wish"
_BEAT_S = 1.0
_DUMP_S = 3.0  # longest wait for the stacks
_begun = threading.Lock()
_wishes: list[int] = []  # the file of this process, once it has begun


@dataclass(frozen=True)
class Signs:
    """What can be seen of a process from outside.

    Attributes:
        status: As psutil says: "running", "sleeping", "stopped", "zombie", ...; "gone" without one.
        beat: What its thread wrote last; "" if it has none.
        cpu_s: Seconds that it has computed, to a tenth.
    """

    status: str
    beat: str
    cpu_s: float


def begin() -> None:
    """Show signs of this process from now on; once."""
    if not _begun.acquire(blocking=False):
        return
    stacks = os.memfd_create(_STACKS)
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True, chain=False)
    _wishes.append(os.memfd_create(_WISH))
    pulse = os.memfd_create(_PULSE)
    threading.Thread(target=_beat, args=(pulse,), name="pulse", daemon=True).start()


def look(pid: int) -> Signs:
    """The signs of a process of this machine."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        status = str(process.status())
    except psutil.Error:
        return Signs("gone", "", 0.0)
    return Signs(status, _read(pid, _PULSE), round(times.user + times.system, 1))


def stacks_of(pid: int) -> str:
    """What a process is at: its state, and the Python stacks of its threads if it can tell them."""
    found = look(pid)
    lines = [f"process {pid}: {found.status}, {found.cpu_s:g} s of CPU, last beat {found.beat!r}"]
    before = _read(pid, _STACKS)
    with suppress(OSError):
        lines.append(f"waits in the kernel: {Path(f'/proc/{pid}/wchan').read_text() or '?'}")
    if _file_of(pid, _STACKS) is None:
        return "\n".join([*lines, "it has told no stacks: it is starting, or is of another user"])
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGUSR2)
    deadline, after = time.monotonic() + _DUMP_S, before
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now = _read(pid, _STACKS)
        if now != before and now == after:  # it has come to its end
            break
        after = now
    told = after[len(before) :]
    return "\n".join([*lines, told or "it tells no stacks, which a stopped process cannot"])


def wish(pid: int) -> None:
    """Wish that a process of this machine left what it is at."""
    path = _file_of(pid, _WISH)
    if path is not None:
        with suppress(OSError):
            path.write_bytes(b"1")


def is_wished() -> bool:
    """Whether somebody wishes that this process left what it is at."""
    return any(os.pread(file, 1, 0) == b"1" for file in _wishes)


def kill(pid: int) -> None:
    """End a process of this machine at once, one that is stopped as well."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _beat(pulse: int) -> None:
    while True:
        os.pwrite(pulse, f"{time.monotonic():020.3f}".encode(), 0)
        time.sleep(_BEAT_S)


def _file_of(pid: int, name: str) -> Path | None:
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if f"memfd:{name}" in str(path.readlink()):
                    return path
    return None


def _read(pid: int, name: str) -> str:
    path = _file_of(pid, name)
    if path is None:
        return ""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

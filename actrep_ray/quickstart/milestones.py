"""What of a quickstart is done, with what, and how long it took."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from actrep_ray.run.console import as_text
from data_prep.files import read_object, write_json


class Milestones:
    """Which milestones are done, with what, and how long they took.

    Args:
        path: JSON file that remembers it.
        console: Where a milestone is announced.
    """

    def __init__(self, path: Path, console: Console) -> None:
        self.path = path
        self.console = console
        self.done_now: set[str] = set()
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._done: dict[str, dict[str, Any]] = {}
        if path.is_file():
            self._done = read_object(path, "the milestones of a quickstart")

    def is_known(self, name: str) -> bool:
        """Whether a milestone was reached at all."""
        return name in self._done

    def is_done(self, name: str, key: str) -> bool:
        """Whether a milestone was finished with this key."""
        return self._done.get(name, {}).get("key") == key

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each finished milestone, in the order in which they ended."""
        return {name: milestone["seconds"] for name, milestone in self._done.items()}

    @property
    def total_s(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._began

    @contextmanager
    def doing(self, name: str, key: str = "") -> Iterator[None]:
        """Time a milestone and remember it, if it ends without an error."""
        self.console.print(as_text(name, "bold").append(" ...", "not bold"))
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        with self._lock:
            self._done.pop(name, None)
            self.done_now.add(name)
            self._done[name] = {"key": key, "seconds": round(seconds, 1)}
            write_json(self.path, self._done)
        self.console.print(as_text(name, "bold").append(f" took {seconds:.0f} s", "not bold"))

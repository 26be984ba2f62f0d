"""What was paid for: every answer of a teacher, kept the moment it arrives.

One JSON object a line, appended and synced to the disk before the next is asked for, so that a run
that is killed at any time goes on without asking twice. One run at a time may write it.
"""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from data_prep.schema import DataError


class Journal:
    """The answers so far, by key.

    Args:
        path: The file; made if missing. A last line without its end, which a killed run leaves, is
            cut off.

    Raises:
        DataError: if another run holds the file, or naming the line that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            self._lock()
            self._rows = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer of a key, if it has come."""
        return self._rows.get(key)

    def add(self, row: dict[str, Any]) -> None:
        """Keep an answer; it is on the disk when this returns."""
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._rows[row["key"]] = row

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{self.path}: another run is writing it; wait for its end") from error

    def _read(self) -> dict[str, dict[str, Any]]:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
        rows = {}
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                row = json.loads(line)
                rows[row["key"]] = row
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self.path}:{number}: expected a JSON object with a key; mend or remove the "
                    "line, or the answers that follow it would be paid for again"
                ) from error
        return rows

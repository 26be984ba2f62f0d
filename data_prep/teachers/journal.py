"""What was paid for: every answer of a teacher, kept the moment it arrives.

One JSON object a line, appended and synced to the disk before the next is asked for, so that a run
that is killed at any time goes on without asking twice. One run at a time may write it.
"""

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from data_prep.files import AppendedLines, DataError, LineError, read_jsonl
from data_prep.locks import BusyError, locked

_log = logging.getLogger(__name__)


class Journal:
    """The answers so far, by key.

    Args:
        path: The file; made if missing. A last line that a killed run cut off is removed.

    Raises:
        DataError: if another run holds the file, or naming the line that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with ExitStack() as stack:
            lock = path.with_name(f".{path.name}.lock")
            try:
                stack.enter_context(locked(lock, timeout_s=0.0, waits_for="another run"))
            except BusyError as error:
                told = "another run is writing it; wait for its end"
                raise DataError(f"{path}: {told}") from error
            self._rows = _read(path) if path.exists() else {}
            self._lines = stack.enter_context(AppendedLines(path, is_durable=True))
            self._held = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.close()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer of a key, if it has come."""
        return self._rows.get(key)

    def add(self, row: dict[str, Any]) -> None:
        """Keep an answer; it is on the disk when this returns."""
        self._lines.add(json.dumps(row, ensure_ascii=False))
        self._rows[row["key"]] = row


def _read(path: Path) -> dict[str, dict[str, Any]]:
    rows = {}
    try:
        for row in read_jsonl(path, "the journal of a teacher", on_cut=_log.warning):
            if not isinstance(row.values.get("key"), str):
                raise LineError(row.where, "no key")
            rows[row.values["key"]] = row.values
    except LineError as error:
        raise DataError(
            f"{error.where}: expected a JSON object with a key ({error.problem}); mend or remove "
            "the line, or the answers that follow it would be paid for again"
        ) from error
    return rows

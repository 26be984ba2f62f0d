"""Rows of the data that cannot be used: noted with their reasons, and not drawn again.

    RUN_DIR/quarantine.jsonl    one JSON object a row: row, path, step, reason, message

A run bears `data.max_quarantined_share` of its clips; where one more cannot be used, it is not a
few videos that are broken. What is in quarantine is part of a checkpoint: a resumed run finds again
what was found after it, in the same steps.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from actrep_ray.config import Recipe
from actrep_ray.tasks.loading import most_rows
from data_prep.files import AppendedLines, DataError, write_lines

STATE_KEY = "quarantine"  # in a checkpoint's driver.json

_FILE = "quarantine.jsonl"
_log = logging.getLogger(__name__)


class QuarantineFullError(DataError):
    """More rows of the data cannot be used than a run bears; the message names the last."""


@dataclass(frozen=True)
class QuarantinedRow:
    """A row that cannot be used.

    Attributes:
        row: Id of its clip in the data file.
        path: Its video.
        step: Of the run, in which that was found; 0 before the first.
        reason: A value of `BAD_DATA`.
        message: In words.
    """

    row: str
    path: str
    step: int
    reason: str
    message: str


class Quarantine:
    """The rows of a run that are not drawn again.

    Args:
        recipe: Settings of the run.
        num_clips: How many it trains on; the share is of them.
    """

    def __init__(self, recipe: Recipe, num_clips: int) -> None:
        self.path = recipe.run_dir / _FILE
        self.share = recipe.data.max_quarantined_share
        self.num_clips = num_clips
        self.limit = most_rows(self.share, num_clips)
        self.rows: dict[str, QuarantinedRow] = {}

    def __contains__(self, row: object) -> bool:
        return row in self.rows

    def add(self, found: Sequence[QuarantinedRow]) -> None:
        """Note rows; one that is known already is not counted again.

        Raises:
            QuarantineFullError: if there are more than the run bears, the last one noted.
        """
        for one in found:
            if one.row in self.rows:
                continue
            self.rows[one.row] = one
            self._write(one)
            told = "step %d: row %r is quarantined (%s, %d of %d that may be): %s"
            num = len(self.rows)
            _log.warning(told, one.step, one.row, one.reason, num, self.limit, one.message)
            if num > self.limit:
                raise QuarantineFullError(
                    f"{num} of {self.num_clips} clips cannot be used, more than "
                    f"data.max_quarantined_share={self.share:g} allows ({self.limit}): see "
                    f"{self.path}; the last: {one.message}"
                )

    def _write(self, one: QuarantinedRow) -> None:
        """A disk that does not take the line ends no run: what it says is logged as well."""
        try:
            with AppendedLines(self.path) as file:
                file.add(_line_of(one))
        except (OSError, DataError) as error:
            _log.error("%s: %s; the run goes on", self.path, error)

    def metrics(self) -> dict[str, float]:
        """How many rows are in it."""
        return {"data/quarantined": float(len(self.rows))}

    def describe(self) -> str | None:
        """What is in it, for the end of a run; None if nothing is."""
        if not self.rows:
            return None
        reasons = Counter(one.reason for one in self.rows.values())
        listed = ", ".join(f"{name} {number}" for name, number in sorted(reasons.items()))
        noun = "clip was" if len(self.rows) == 1 else "clips were"
        return f"{len(self.rows)} {noun} quarantined ({listed}): {self.path}"

    def state(self) -> list[dict[str, Any]]:
        """What `load_state` needs, as JSON-able values."""
        return [asdict(one) for one in self.rows.values()]

    def load_state(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Hold what was held then, and nothing that was found later; in the file likewise."""
        self.rows = {values["row"]: QuarantinedRow(**values) for values in state}
        if self.path.exists() or self.rows:
            write_lines(self.path, map(_line_of, self.rows.values()))


def _line_of(one: QuarantinedRow) -> str:
    return json.dumps(asdict(one), ensure_ascii=False)

"""Rows that are of one clip, and clips that share a name: what no row can tell alone.

    add, for every row ─► decide ─► verdicts: rows to reject, counts to change, names to extend

Two rows are of one clip if video, window and action are the same. If their counts are the same too,
the later one is a duplicate (of its split: the same clip in another split is for `validate` to
tell). If their counts differ, one of them is wrong, and a policy says what becomes of both:

    drop    none is kept
    first   the first row is kept
    mean    the first row is kept with the mean of the counts; none, if that is no whole number

Different clips of one name are all kept: each gets behind its name what tells them apart, the
video's suffix (or path), the window, the action. A name that one clip has stays as it is.

Rows lie in a database on disk: a larger table needs no more memory.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from data_prep.converters.values import without_suffix
from data_prep.schema import Clip

Conflicts = Literal["drop", "first", "mean"]
CONFLICTS: tuple[Conflicts, ...] = ("drop", "first", "mean")

_NUM_AT_ONCE = 32  # rows

_TABLES = """
CREATE TABLE rows (
    number INTEGER PRIMARY KEY, origin TEXT, id TEXT, split TEXT, video TEXT, stem TEXT,
    start_s REAL, end_s REAL, action TEXT, count INTEGER
);
CREATE TABLE verdicts (
    number INTEGER PRIMARY KEY, reason TEXT, detail TEXT, count INTEGER, id TEXT
);
CREATE TABLE new_ids (id TEXT PRIMARY KEY);
"""
_TOLD_TWICE = """
CREATE TABLE told_twice AS SELECT video, start_s, end_s, action FROM rows
GROUP BY video, start_s, end_s, action HAVING COUNT(*) > 1
"""
_BY_CLIP = """
SELECT number, origin, split, count, video, start_s, end_s, action
FROM rows JOIN told_twice USING (video, start_s, end_s, action)
ORDER BY video, start_s, end_s, action, number
"""
_NAMED_TWICE = "CREATE TABLE named_twice AS SELECT id FROM rows GROUP BY id HAVING COUNT(*) > 1"
_SHARED_NAMES = """
CREATE TABLE shared AS
SELECT id, COUNT(DISTINCT stem) > 1 AS stems, COUNT(DISTINCT video) > 1 AS videos,
    COUNT(DISTINCT start_s || ' ' || end_s) > 1 AS windows, COUNT(DISTINCT action) > 1 AS actions
FROM rows JOIN named_twice USING (id)
WHERE number NOT IN (SELECT number FROM verdicts WHERE reason IS NOT NULL)
GROUP BY id HAVING COUNT(*) > 1
"""
_OF_SHARED_NAMES = """
SELECT number, id, video, start_s, end_s, action, stems, videos, windows, actions
FROM rows JOIN shared USING (id)
WHERE number NOT IN (SELECT number FROM verdicts WHERE reason IS NOT NULL)
ORDER BY number
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the other rows of the table mean for a row.

    Attributes:
        number: Of the row, as it was given to `add`.
        problem: Why it is rejected (reason, detail), if it is.
        count: What it is kept with, where other rows contradict it.
        id: What it is called in place of its own name, if it is.
    """

    number: int
    problem: tuple[str, str] | None
    count: int | None
    id: str | None


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    origin: str
    split: str
    count: int


class SameClips:
    """The rows of a table, to be compared with each other."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # "" is a database on disk that goes with us
        self._database.executescript(_TABLES)
        self._added: list[tuple[object, ...]] = []  # not written yet

    def close(self) -> None:
        """Forget the rows."""
        self._database.close()

    def add(self, number: int, origin: str, clip: Clip, video: str) -> None:
        """Note a row.

        Args:
            number: Of the row; rows come in rising order.
            origin: Where it is, for messages: FILE:LINE.
            clip: What it says.
            video: Its video, relative to the folder of videos.
        """
        self._added.append((
            number, origin, clip.id, clip.split, video, without_suffix(video),
            clip.start_s, clip.end_s, clip.action, clip.count,
        ))  # fmt: skip
        if len(self._added) == _NUM_AT_ONCE:
            self._write()

    def _write(self) -> None:
        self._database.executemany(
            "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._added
        )
        self._added.clear()

    def decide(self, conflicts: Conflicts) -> None:
        """Compare the rows; once, when all are there."""
        self._write()
        self._database.execute(_TOLD_TWICE)
        for _, same in groupby(self._database.execute(_BY_CLIP), lambda row: row[4:]):
            self._decide_clip((_Row(*row[:4]) for row in same), conflicts)
        self._tell_names_apart()

    def verdicts(self) -> Iterator[Verdict]:
        """Verdicts on the rows to which something happens, in order."""
        found = self._database.execute(
            "SELECT number, reason, detail, count, id FROM verdicts ORDER BY number"
        )
        for number, reason, detail, count, name in found:
            yield Verdict(number, (reason, detail) if reason else None, count, name)

    def _decide_clip(self, rows: Iterable[_Row], conflicts: Conflicts) -> None:
        """Reject the duplicates among the rows of one clip, then what contradicts each other."""
        firsts: dict[tuple[str, int], _Row] = {}
        for row in rows:
            first = firsts.setdefault((row.split, row.count), row)
            if first is not row:
                detail = f"{first.origin} has the same video, window, action and count"
                self._reject(row, "duplicate_row", detail)
        different = list(firsts.values())
        if len({row.count for row in different}) > 1:
            self._settle(different, conflicts)

    def _settle(self, rows: list[_Row], conflicts: Conflicts) -> None:
        """Apply the policy to rows of one clip with different counts."""
        first = rows[0]
        counts = {row.count for row in rows}
        mean, rest = divmod(sum(counts), len(counts))
        remark = ""
        if conflicts == "mean" and rest:
            remark = f"; the mean {sum(counts) / len(counts):g} is no whole number"
        elif conflicts == "mean":
            remark = f"; {first.origin} is kept with the mean {mean}"
        elif conflicts == "first":
            remark = f"; {first.origin} is kept"
        keeps_first = conflicts == "first" or (conflicts == "mean" and not rest)
        other = next(row for row in rows if row.count != first.count)
        for row in rows[keeps_first:]:
            against = other if row.count == first.count else first
            detail = f"count={row.count}, but {against.origin} gives the same clip {against.count}"
            self._reject(row, "conflicting_counts", detail + remark)
        if keeps_first:
            kept = first.count if conflicts == "first" else mean
            self._database.execute(
                "INSERT INTO verdicts (number, count) VALUES (?, ?)", (first.number, kept)
            )

    def _reject(self, row: _Row, reason: str, detail: str) -> None:
        self._database.execute(
            "INSERT INTO verdicts (number, reason, detail) VALUES (?, ?, ?)",
            (row.number, reason, detail),
        )

    def _tell_names_apart(self) -> None:
        """Give clips that share a name names of their own."""
        self._database.execute(_NAMED_TWICE)
        self._database.execute(_SHARED_NAMES)
        if not self._database.execute("SELECT 1 FROM shared").fetchone():
            return
        self._database.execute("CREATE INDEX by_id ON rows (id)")
        for number, name, video, start_s, end_s, action, *differ in self._database.execute(
            _OF_SHARED_NAMES
        ):
            stems, videos, windows, actions = differ
            suffix = f"-{video}" if stems else video[len(without_suffix(video)) :] if videos else ""
            suffix += f"-{_seconds(start_s)}-{_seconds(end_s)}" if windows else ""
            suffix += f"-{action}" if actions else ""
            self._database.execute(
                "INSERT INTO verdicts (number, id) VALUES (?, ?) "
                "ON CONFLICT (number) DO UPDATE SET id = excluded.id",
                (number, self._unused(name + suffix)),
            )

    def _unused(self, wanted: str) -> str:
        """The name, with a number behind it if it is another clip's."""
        name, number = wanted, 1
        while not self._take(name):
            number += 1
            name = f"{wanted}-{number}"
        return name

    def _take(self, name: str) -> bool:
        """Whether a name was free; it is no longer."""
        if self._database.execute("SELECT 1 FROM rows WHERE id = ?", (name,)).fetchone():
            return False
        added = self._database.execute("INSERT OR IGNORE INTO new_ids VALUES (?)", (name,))
        return added.rowcount == 1


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")

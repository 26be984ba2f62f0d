"""What a run lost and made good: RUN_DIR/faults.jsonl, one JSON object an event.

    {"at": ..., "event": "lost", "role": "rollout", "worker": 1, "kind": "process",
     "method": "advance", "cause": "...", "given_again": 3}
    {"at": ..., "event": "replaced", "role": "rollout", "lost_s": 21.4}

`given_again` are the prompts (rollout) or groups (reward) that others were given in its place, or
the steps (learner) that are done again. `lost_s` is how long the pool had a worker less; a lost
rank stops the whole run for as long.
"""

import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from actrep_ray.cluster.supervision import Loss
from data_prep.files import AppendedLines, DataError, read_jsonl

FAULTS = "faults.jsonl"
ROLES = ("rollout", "reward", "learner")

_log = logging.getLogger(__name__)


@dataclass
class FaultSums:
    """What the events of a run add up to, each by role.

    Attributes:
        lost: Workers.
        kinds: By role and kind of loss.
        given_again: What others did in their place; see the module.
        lost_s: Seconds until another worker was there, of those that were replaced.
    """

    lost: Counter[str] = field(default_factory=Counter)
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    given_again: Counter[str] = field(default_factory=Counter)
    lost_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add_loss(self, role: str, kind: str, num_given_again: int) -> None:
        """Count a lost worker."""
        self.lost[role] += 1
        self.kinds[role, kind] += 1
        self.given_again[role] += num_given_again

    def describe(self) -> str | None:
        """All of it in one line, for people; None if nothing was lost."""
        if not self.lost:
            return None
        workers = [f"{role} {self.lost[role]}" for role in ROLES if self.lost[role]]
        kinds = Counter[str]()
        for (_, kind), number in self.kinds.items():
            kinds[kind] += number
        listed = ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items()))
        seconds = [f"{role} {self.lost_s[role]:.0f} s" for role in ROLES if role in self.lost_s]
        again, steps = self.given_again.total(), self.given_again["learner"]
        return (
            f"{self.lost.total()} workers were lost ({', '.join(workers)}; {listed}): "
            f"{again - steps} prompts and groups given to others, {steps} steps done again, "
            f"one worker less for {', '.join(seconds) or '0 s'}"
        )

    def metrics(self) -> dict[str, float]:
        """`faults/lost_<role>`, `faults/given_again` and `faults/lost_s`, since the run began."""
        values = {f"faults/lost_{role}": float(self.lost[role]) for role in ROLES}
        values["faults/given_again"] = float(self.given_again.total())
        return values | {"faults/lost_s": float(sum(self.lost_s.values()))}


class FaultLog:
    """Writes the events of a run down, and counts on from what an earlier process wrote.

    Args:
        run_dir: Folder of the run; None counts without writing.
        clock: Seconds that only rise.
    """

    def __init__(
        self, run_dir: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = run_dir / FAULTS if run_dir else None
        self._clock = clock
        self._missing: dict[str, list[float]] = defaultdict(list)  # since when, by role
        self.sums = read_faults(run_dir) if run_dir else FaultSums()

    def lost(self, loss: Loss, num_given_again: int) -> None:
        """Note a worker that is to be replaced.

        All ranks are started anew together: one that is lost before they are at work again adds no
        time to that for which the run stands still.
        """
        if loss.role != "learner" or not self._missing["learner"]:
            self._missing[loss.role].append(self._clock())
        self.sums.add_loss(loss.role, loss.kind.value, num_given_again)
        self._write(
            event="lost",
            role=loss.role,
            worker=loss.worker,
            kind=loss.kind.value,
            method=loss.method,
            cause=loss.cause,
            given_again=num_given_again,
        )

    def replaced(self, role: str) -> None:
        """Note that a worker of a role is at work; it takes the place of the one lost first."""
        if self._missing[role]:
            lost_s = self._clock() - self._missing[role].pop(0)
            self.sums.lost_s[role] += lost_s
            self._write(event="replaced", role=role, lost_s=round(lost_s, 3))

    def _write(self, **event: object) -> None:
        """A disk that does not take the line ends no run."""
        if self._path is None:
            return
        line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **event}
        try:
            with AppendedLines(self._path) as file:
                file.add(json.dumps(line))
        except (OSError, DataError) as error:
            _log.error("%s: %s; the run goes on", self._path, error)


def read_faults(run_dir: Path) -> FaultSums:
    """Sums of a run's events; zeros if it lost no worker.

    A last line that the end of a killed run cut off is left out, with a warning.

    Raises:
        DataError: naming the line that is no event.
    """
    sums, path = FaultSums(), run_dir / FAULTS
    for row in read_jsonl(path, "events", on_cut=_log.warning) if path.is_file() else ():
        event = row.values
        try:
            if event["event"] == "lost":
                sums.add_loss(str(event["role"]), str(event["kind"]), int(event["given_again"]))
            else:
                sums.lost_s[str(event["role"])] += float(event["lost_s"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{row.where}: {event}: expected an event of faults ({error!r})"
            ) from error
    return sums

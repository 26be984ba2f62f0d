"""A command of `actrep` that notes what it trains on, and kills itself or an engine at a moment.

    python noted_run.py NOTES VICTIM@STEP:PHASE train RECIPE ...    VICTIM: driver, engine, nobody

A line of NOTES is one call of the learner: its step, and of each row the prompt's id, its clip, the
answers' tokens and the bytes of their log-probabilities.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from actrep_ray.cli.main import main
from actrep_ray.driver.checkpoints import RunCheckpoints
from actrep_ray.driver.phases import Phases
from actrep_ray.driver.sources import GroupSource
from actrep_ray.records import RolloutGroup
from actrep_ray.weights.sync import WeightSync

DELAY_S = {"generate": 0.25, "update": 0.15, "score": 0.02, "push": 0.02, "save": 0.05}
"""How long after its beginning a phase is cut short: in the midst of it, on an idle machine."""


def kill(victim: str) -> None:
    pid = os.getpid()
    if victim == "engine":
        children = psutil.Process().children(recursive=True)
        pid = min(child.pid for child in children if "RolloutWorker" in child.name() + cmd(child))
    os.kill(pid, signal.SIGKILL)


def cmd(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


def note(path: Path, groups: Sequence[RolloutGroup], step: int) -> None:
    rows = [
        {
            "id": group.prompt.prompt_id,
            "clip": group.prompt.row_id,
            "attempt": group.prompt.attempt,
            "tokens": [rollout.token_ids.tolist() for rollout in group.rollouts],
            "log_probs": [rollout.rollout_log_probs.tobytes().hex() for rollout in group.rollouts],
        }
        for group in groups
    ]
    with path.open("a") as file:
        file.write(json.dumps({"step": step, "rows": rows}) + "\n")


def watch(notes: Path, victim: str, at: tuple[int, str]) -> None:
    """Wrap the phases of a step; the last one that began stands in NOTES.phase."""
    step_now = [0]

    def wrap(owner: type, name: str, before: Callable[..., None], phase: str = "") -> None:
        method = getattr(owner, name)

        def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
            before(self, *arguments)
            notes.with_suffix(".phase").write_text(phase or name)
            if victim != "nobody" and (step_now[0], name) == at:
                threading.Thread(target=later, daemon=True).start()
            return method(self, *arguments, **named)

        setattr(owner, name, wrapped)

    def later() -> None:
        time.sleep(DELAY_S[at[1]])
        kill(victim)

    def begin(_: Any, step: int) -> None:
        step_now[0] = step

    def nothing(*_: Any) -> None: ...

    wrap(Phases, "issue", begin)
    wrap(GroupSource, "generate", nothing)
    wrap(Phases, "score", nothing)

    def learn(_: Any, groups: Sequence[RolloutGroup], step: int) -> None:
        step_now[0] = step
        note(notes, groups, step)

    wrap(Phases, "update", learn)
    wrap(Phases, "push", nothing)
    wrap(RunCheckpoints, "save", nothing)
    # Of the asynchronous driver:
    wrap(WeightSync, "start_delivery", nothing, "push")


if __name__ == "__main__":
    victim, _, moment = sys.argv[2].partition("@")
    step, _, phase = moment.partition(":")
    watch(Path(sys.argv[1]), victim, (int(step or 0), phase))
    sys.exit(main(sys.argv[3:]))

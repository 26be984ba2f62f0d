"""The folder of a run: who may write into it, what it began with, and where it goes on.

RUN_DIR/.lock-000001             who works in it now (`lock.py`)
RUN_DIR/config.resolved.json     every setting, versions, commit, inputs, resumptions (`record.py`)
RUN_DIR/quarantine.jsonl         written by the driver
RUN_DIR/faults.jsonl             written by `faults.py`
RUN_DIR/metrics.jsonl, tb/       written by `metrics.py`
RUN_DIR/checkpoints/             written by `checkpoint.py`
RUN_DIR/predictions*.jsonl       written by evaluation
"""

import logging
import shutil
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actrep_ray.config import ConfigError, Recipe, write_resolved
from actrep_ray.run.checkpoint import Checkpoint, CheckpointStore, adopt
from actrep_ray.run.faults import FAULTS
from actrep_ray.run.lock import FolderLock
from actrep_ray.run.provenance import provenance
from actrep_ray.run.record import (
    RECORD,
    Change,
    changed_versions,
    check_changes,
    fingerprints,
    read_record,
)
from data_prep.partial_files import remove_leftovers

_OF_A_RUN = (
    RECORD, "checkpoints", "quarantine.jsonl", FAULTS, "metrics.jsonl", "texts.jsonl",
    "metrics.json", "tb", "profile", "predictions*.jsonl", "not-finite-*.json", "report",
    "tables", "stacks",
)  # fmt: skip
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenRun:
    """A run's folder that this process works in.

    Attributes:
        start: The checkpoint to go on from; None for a run from the start.
        lock: Held until it is released.
    """

    start: Checkpoint | None
    lock: FolderLock


def open_run(
    recipe: Recipe,
    model: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_changes: Collection[str] = (),
    check_start: Callable[[Checkpoint], None] = lambda _: None,
) -> OpenRun:
    """Make the run's folder, or go on in it; nothing in it is written before that is decided.

    Args:
        recipe: Settings.
        model: Folder of the model that the run starts from.
        resume: Go on with the run that is there.
        overwrite: Remove it instead.
        allow_changes: Settings that need not be what they were.
        check_start: Refuses a checkpoint that these settings cannot go on from.

    Raises:
        ConfigError: if there is a run and neither is given; if there is none to go on with, or it
            was begun with something else; if none of its checkpoints is whole.
        HeldError: if another process works in the folder.
    """
    folder = recipe.run_dir
    prints = fingerprints(recipe, model)
    _check(recipe, prints, resume, overwrite, allow_changes)
    lock = FolderLock.acquire(folder, f"actrep {'sft' if recipe.stage == 'sft' else 'train'}")
    try:
        # Again, for what has happened before the lock was ours.
        changes = _check(recipe, prints, resume, overwrite, allow_changes)
        if overwrite:
            _remove_run(folder)
        record = read_record(folder) if resume else {}
        start = _newest(recipe, folder) if resume else None
        run = str(record.get("run") or uuid.uuid4().hex)
        if start is not None:
            check_start(start)
            adopt(start, run)
        _write_record(recipe, folder, run, prints, record, changes, start)
    except BaseException:
        lock.release()
        raise
    return OpenRun(start, lock)


def _check(
    recipe: Recipe,
    prints: dict[str, str],
    resume: bool,
    overwrite: bool,
    allow_changes: Collection[str],
) -> list[Change]:
    folder = recipe.run_dir
    if resume:
        return check_changes(folder, read_record(folder), recipe, prints, allow_changes)
    if not overwrite and (held := _held_by(folder)):
        raise ConfigError(
            f"{folder}: holds a run ({held}); go on with --resume, start over with --overwrite, or "
            "choose another name with --set name=NAME"
        )
    return []


def _held_by(folder: Path) -> str:
    """What a folder holds of a run that took a step, in words; "" for none."""
    checkpoints = folder / "checkpoints"
    if checkpoints.is_dir():
        names = sorted(path.name for path in checkpoints.glob("step-*"))
        if names:
            return f"checkpoint {names[-1]}"
    for pattern in ("metrics.jsonl", "predictions*.jsonl"):
        for path in folder.glob(pattern):
            if path.stat().st_size:
                return path.name
    return ""


def _newest(recipe: Recipe, folder: Path) -> Checkpoint | None:
    """The checkpoint to go on from; None if the run was cut short before its first.

    Raises:
        ConfigError: if there are checkpoints and none is whole.
    """
    store = CheckpointStore(folder, keep=recipe.checkpoint.keep)
    if store.folder.is_dir():
        remove_leftovers(store.folder, are_all_dead=True)  # the lock is ours
    return store.newest_or_none_begun()


def _write_record(
    recipe: Recipe,
    folder: Path,
    run: str,
    prints: dict[str, str],
    before: dict[str, Any],
    changes: Sequence[Change],
    start: Checkpoint | None,
) -> None:
    """Write what the run is made of now, and when it was resumed with which changes."""
    made = provenance(recipe)
    resumed: list[dict[str, Any]] = list(before.get("resumed", ()))
    if before:
        if others := changed_versions(before, made["versions"]):
            _log.warning("%s: begun with other versions: %s", folder, ", ".join(others))
        resumed.append(
            {
                "step": start.step if start else 0,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "changes": [str(change) for change in changes],
                "commit": made["commit"],
            }
        )
    extra = {**made, "run": run, "fingerprints": prints, "resumed": resumed}
    write_resolved(recipe, folder / RECORD, extra)


def remove_others(folder: Path, kept: Path) -> None:
    """Remove all that a folder holds but for one file."""
    for path in folder.iterdir():
        if path != kept:
            _remove(path)


def _remove_run(folder: Path) -> None:
    """Remove what a run has written; the record first, so that half a run is none to resume."""
    for pattern in _OF_A_RUN:
        for path in folder.glob(pattern):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()

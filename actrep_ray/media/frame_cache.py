"""A node's cache of decoded clips: each clip is decoded once per plan, whoever asks first.

Files under one folder, named by the plan's hash and shared by every process of the node:

    HASH.npy    the frames, memory-mapped by readers; appears whole (written aside, then renamed)
    HASH.lock   held by the process that decodes; the kernel frees it if that process dies

The folder is bounded: the files that were longest not read are removed. To look at every file
after every write would cost more than decoding, so a process looks when its own writes could have
passed the bound, or came to 1/16 of it; with P processes the folder can pass it by P/16. A reader
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
        self._num_bytes_seen = 0  # in the folder, when it was last looked at
        self._num_bytes_written = max_bytes  # since then; the first write looks
        self.num_decoded = 0
        self.num_hits = 0

    def get(self, plan: FramePlan) -> np.ndarray:
        """The frames of a plan: uint8 [T, height, width, 3]; writing to them changes nothing.

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
            frames = np.load(path, mmap_mode="c", allow_pickle=False)
            os.utime(path)
        except FileNotFoundError:
            return None
        return frames

    def _store(self, path: Path, frames: np.ndarray) -> None:
        partial = path.with_name(f".{path.stem}.{os.getpid()}.partial")
        with partial.open("wb") as out:
            np.save(out, frames, allow_pickle=False)
        partial.replace(path)
        self._num_bytes_written += frames.nbytes
        may_exceed = self._num_bytes_seen + self._num_bytes_written > self.max_bytes
        if may_exceed or self._num_bytes_written > self.max_bytes // 16:
            self._evict(keep=path)

    def _evict(self, keep: Path) -> None:
        entries = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        self._num_bytes_seen = sum(size for _, size, _ in entries)
        self._num_bytes_written = 0
        excess = self._num_bytes_seen - self.max_bytes
        for _, size, path in sorted(entries):
            if excess <= 0:
                return
            if (path.suffix == ".npy" and path != keep) or _is_orphan(path):
                path.unlink(missing_ok=True)
                excess -= size
                self._num_bytes_seen -= size

    def _lock(self, name: str) -> "_FileLock":
        return _FileLock(self.folder / f"{name}.lock")


class _FileLock:
    """An exclusive lock on a file, freed by the kernel when its holder dies.

    The file is removed with the lock. Two processes may then hold locks of one name, on the old
    file and on a new one; both find the finished frames, or else both decode, which does no harm.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.file = self.path.open("w")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)
        self.file.close()


def _is_orphan(path: Path) -> bool:
    """Whether a partial file was left by a process that is gone."""
    if path.suffix != ".partial":
        return False
    pid = int(path.stem.rsplit(".", 1)[-1])
    return not Path(f"/proc/{pid}").exists()

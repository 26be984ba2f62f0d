"""A node's cache of decoded clips: each clip is decoded once per plan, whoever asks first.

Files under one folder, named by the plan's hash and shared by every process of the node:

    HASH.npy    the frames, memory-mapped by readers; appears whole (written aside, then renamed)
    HASH.lock   held by the process that decodes; the kernel frees it if that process dies

The folder is bounded: the files that were longest not read are removed. To look at every file
after every write would cost more than decoding, so a process looks when its own writes could have
passed the bound, or came to 1/16 of it; with P processes the folder can pass it by P/16. A reader
that has a removed file mapped keeps its pages, as POSIX promises.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np

from actrep_ray.config import VideoConfig
from data_prep.files import replacing
from data_prep.locks import locked
from data_prep.partial_files import is_leftover
from data_prep.video import FramePlan
from data_prep.video.guard import DEADLINE_S, read_guarded

_MAX_DECODES = 4  # by other processes, one after the other, that are waited for


class FrameCache:
    """Frames by plan, from memory-mapped files.

    Args:
        folder: Where the files lie; made if missing. One folder for all processes of a node.
        max_bytes: Size that the folder is kept under, in bytes, the newest file excepted.
        decode_timeout_s: Longest that decoding one plan may take, seconds.
    """

    def __init__(
        self, folder: str | Path, max_bytes: int, decode_timeout_s: float = DEADLINE_S
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.max_bytes = max_bytes
        self.decode_timeout_s = decode_timeout_s
        self._num_bytes_seen = 0  # in the folder, when it was last looked at
        self._num_bytes_written = max_bytes  # since then; the first write looks
        self.num_decoded = 0
        self.num_hits = 0

    @classmethod
    def of(cls, video: VideoConfig) -> Self:
        """The cache that a recipe's `video` section asks for."""
        return cls(video.cache_dir, int(video.cache_gib * 2**30), video.decode_timeout_s)

    def get(self, plan: FramePlan) -> np.ndarray:
        """The frames of a plan: uint8 [T, height, width, 3]; writing to them changes nothing.

        Raises:
            VideoError: if the clip cannot be decoded; nothing is left in the cache then.
            BusyError: if another process decodes the clip for longer than it may take.
        """
        path = self.folder / f"{plan.hash}.npy"
        if (frames := self._load(path)) is not None:
            self.num_hits += 1
            return frames
        lock = self.folder / f"{plan.hash}.lock"
        waits_for = f"the process that decodes {plan.video}"
        with locked(lock, timeout_s=_MAX_DECODES * self.decode_timeout_s, waits_for=waits_for):
            if (frames := self._load(path)) is not None:  # another process was faster
                self.num_hits += 1
                return frames
            decoded = read_guarded(plan, self.decode_timeout_s)
            self._store(path, decoded)
            self.num_decoded += 1
        return decoded

    def _load(self, path: Path) -> np.ndarray | None:
        try:
            frames: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (EOFError, ValueError):  # cut short by a loss of power
            return None
        return frames

    def _store(self, path: Path, frames: np.ndarray) -> None:
        # Not synced: what a loss of power takes from a cache is decoded again.
        with replacing(path, is_durable=False) as partial, partial.open("wb") as out:
            np.save(out, frames, allow_pickle=False)
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
            if (path.suffix == ".npy" and path != keep) or is_leftover(path.name):
                path.unlink(missing_ok=True)
                excess -= size
                self._num_bytes_seen -= size

"""A node's cache of decoded clips: each clip is decoded once per plan, whoever asks first.

Files of one folder (`cache_folder`), shared by every process of the node:

    HASH.frames   the frames (`frame_file`), by the video's content, the seconds and the size at
                  which it is shown; memory-mapped by readers; appears whole
    HASH.video    what a video holds (`video_content`)
    HASH.lock     held by the process that decodes; the kernel frees it if that process dies

A process reads a file through once and compares its checksum; from then on it is mapped as it is,
for as long as it is not written to. A file that is empty, cut, damaged or of something else is
decoded anew.

The folder is bounded (`bounded_folder`). Learners may keep files of their own beside these.
"""

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Self

import numpy as np

from actrep_ray.config import VideoConfig
from actrep_ray.media.bounded_folder import BoundedFolder
from actrep_ray.media.cache_folder import default_folder
from actrep_ray.media.frame_file import map_frames, write_frames
from actrep_ray.media.video_content import VideoContents, check_unchanged
from data_prep.locks import locked
from data_prep.video import FramePlan
from data_prep.video.guard import DEADLINE_S, read_guarded

_NAMES = re.compile(r"[0-9a-f]{32}\.(?:frames|video)")
_MAX_DECODES = 4  # by other processes, one after the other, that are waited for
_MOST_VERIFIED = 2**16  # files that a process remembers

_Version = tuple[int, int, int]  # inode, size and time of change of a file


class FrameCache:
    """Frames by plan, from memory-mapped files.

    Args:
        folder: Where the files lie; made if missing. One folder for all processes of a node.
        max_bytes: Size that they are kept under, in bytes, the newest file excepted.
        decode_timeout_s: Longest that decoding one plan may take, seconds.
        is_shared: Whether other users of the node read and write it too.

    Raises:
        DataError: if the folder cannot be trusted.
    """

    def __init__(
        self,
        folder: str | Path,
        max_bytes: int,
        decode_timeout_s: float = DEADLINE_S,
        *,
        is_shared: bool = False,
    ) -> None:
        self.folder = BoundedFolder(
            folder, _NAMES, max_bytes, "clips are decoded each time", is_shared=is_shared
        )
        self.decode_timeout_s = decode_timeout_s
        self._contents = VideoContents(self.folder)
        self._verified: dict[str, _Version] = {}
        self.num_decoded = 0
        self.num_hits = 0

    @classmethod
    def of(cls, video: VideoConfig) -> Self:
        """The cache that a recipe's `video` section asks for."""
        return cls(
            video.cache_dir or default_folder() / "frames",
            int(video.cache_gib * 2**30),
            video.decode_timeout_s,
            is_shared=video.shared_cache,
        )

    def get(self, plan: FramePlan) -> np.ndarray:
        """The frames of a plan: uint8 [T, height, width, 3]; writing to them changes nothing.

        Frames that are cached are given whatever became of the video since.

        Raises:
            VideoError: if the clip is not cached and cannot be decoded, or its file is no longer
                the one that was planned; nothing is left in the cache then.
            BusyError: if another process decodes the clip for longer than it may take.
            DataError: if the folder can no longer be trusted.
        """
        key = self.key_of(plan)
        if (frames := self._load(key, plan)) is not None:
            self.num_hits += 1
            return frames
        with locked(
            self.folder.path / f"{key}.lock",
            timeout_s=_MAX_DECODES * self.decode_timeout_s,
            waits_for=f"the process that decodes {plan.video}",
            mode=self.folder.file_mode,
        ):
            if (frames := self._load(key, plan)) is not None:  # another process was faster
                self.num_hits += 1
                return frames
            decoded = read_guarded(plan, self.decode_timeout_s)
            check_unchanged(plan)
            self.folder.store(
                f"{key}.frames", lambda out: write_frames(out, decoded, key), decoded.nbytes
            )
            self.num_decoded += 1
        return decoded

    def get_all(self, plan: FramePlan) -> list[np.ndarray]:
        """The frames of all that the prompt shows, in order (`FramePlan.shown`); see `get`."""
        return [self.get(shown) for shown in plan.shown]

    def key_of(self, plan: FramePlan) -> str:
        """32 hexadecimal digits that name what is shown: the video's content, seconds and size.

        Raises:
            VideoError: if its file is no longer the one that was planned, and was never read.
        """
        return _key_of(plan, self._contents.of(plan))

    def _load(self, key: str, plan: FramePlan) -> np.ndarray | None:
        name = f"{key}.frames"
        with self.folder.reading(name) as found:
            if found is None:
                return None
            file, status = found
            version = (status.st_ino, status.st_size, status.st_mtime_ns)
            is_verified = self._verified.get(name) == version
            shape = (plan.num_frames, plan.height, plan.width, 3)
            frames = map_frames(file, shape, key, is_verified=is_verified)
            if frames is None:
                return None
            if not is_verified:
                if len(self._verified) >= _MOST_VERIFIED:
                    self._verified.clear()
                self._verified[name] = version
            self.folder.touch(file, status, time.time_ns())
        return frames


def _key_of(plan: FramePlan, content: str) -> str:
    """32 hexadecimal digits that name what is shown."""
    shown = [content, plan.times_s, plan.height, plan.width]
    if plan.is_image:  # a file may be both, as an animated WebP
        shown.append("image")
    if plan.folder_fps is not None:  # which frame is shown at a second
        shown.append(f"folder {plan.folder_fps}")
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:32]

"""What bytes a video holds: a hash, computed once for each file and remembered beside the frames.

A cache that names frames by it gives the same ones for a file that was copied, moved or touched,
and others for one that was replaced by a file of the same name, size and time. What is remembered
also serves when the file has vanished or was cut since: for a plan of what it was, the frames of
what it was are still the right ones.
"""

import hashlib
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from actrep_ray.media.cache_folder import CacheFolder
from data_prep.video import FileState, FramePlan, VideoError, clip_problem, frames_of_folder

_REMEMBERED = re.compile(rb"actrep video 1 ([0-9a-f]{64}) (\d{1,20}) (\d{1,20})\n")
_MAX_BYTES = 256  # of a file that remembers
_MOST = 2**16  # contents that a process keeps at hand


class VideoContents:
    """Hashes of what videos hold.

    Args:
        folder: Where they are remembered, in files `HASH.video`: of the path, size and time of
            change that a plan holds.
    """

    def __init__(self, folder: CacheFolder) -> None:
        self._folder = folder
        self._known: dict[tuple[str, int, int], str] = {}

    def of(self, plan: FramePlan) -> str:
        """The hash of the file that a plan was made for: SHA-256, hexadecimal.

        Raises:
            VideoError: if the file is no longer that one, and was never read while it was.
        """
        identity = (plan.video, plan.num_bytes, plan.changed_ns)
        if (known := self._known.get(identity)) is not None:
            return known
        name = hashlib.sha256(repr(identity).encode(errors="surrogateescape")).hexdigest()[:32]
        content = self._find(plan, f"{name}.video")
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[identity] = content
        return content

    def _find(self, plan: FramePlan, name: str) -> str:
        remembered = self._remembered(name)
        state = _state_of(plan)
        if state is None:
            if remembered is None:
                raise VideoError(f"{plan.video}: {_why_not(plan)}")
            return remembered[0]
        if remembered is not None and remembered[1:] == state:
            return remembered[0]
        content = _hash_of(plan)
        # Where there is no room, the next process hashes it again.
        with suppress(OSError), self._folder.writing(name) as out:
            out.write(b"actrep video 1 %s %d %d\n" % (content.encode(), *state))
        return content

    def _remembered(self, name: str) -> tuple[str, int, int] | None:
        with self._folder.reading(name) as found:
            if found is None:
                return None
            match = _REMEMBERED.fullmatch(os.read(found[0], _MAX_BYTES))
        return None if match is None else (match[1].decode(), int(match[2]), int(match[3]))


def check_unchanged(plan: FramePlan) -> None:
    """Refuse a file that is no longer the one that a plan was made for.

    Raises:
        VideoError: naming it.
    """
    if _state_of(plan) is None:
        raise VideoError(f"{plan.video}: {_why_not(plan)}")


def _hash_of(plan: FramePlan) -> str:
    if plan.folder_fps is None:
        content = _digest_of(plan.video)
    else:
        told = "".join(_digest_of(frame) for frame in frames_of_folder(plan.video))
        content = hashlib.sha256(told.encode()).hexdigest()
    check_unchanged(plan)
    return content


def _digest_of(path: str | Path) -> str:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}") from error
    with os.fdopen(file, "rb", buffering=0) as video:
        return hashlib.file_digest(video, "sha256").hexdigest()


def _state_of(plan: FramePlan) -> tuple[int, int] | None:
    """Inode and time of change of the plan's file; None if it is no longer that one.

    That time changes also when the others are set back. Of a folder it is the latest of its frames.
    """
    try:
        status = Path(plan.video).stat()
        is_expected = stat.S_ISREG(status.st_mode)
        changed_ns = status.st_ctime_ns
        if plan.folder_fps is not None:
            is_expected = stat.S_ISDIR(status.st_mode)
            frames = frames_of_folder(plan.video)
            changed_ns = max(changed_ns, *(frame.stat().st_ctime_ns for frame in frames))
    except (OSError, VideoError):
        return None
    now = FileState.of(plan.video)
    is_same = (now.num_bytes, now.changed_ns) == (plan.num_bytes, plan.changed_ns)
    return (status.st_ino, changed_ns) if is_expected and is_same else None


def _why_not(plan: FramePlan) -> str:
    if problem := clip_problem(plan.video):
        return problem.message
    return "has changed since its frames were planned"

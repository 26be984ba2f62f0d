"""How much of a video the page takes."""

from dataclasses import dataclass
from pathlib import Path

from actrep_ray.counting.videos import Failure, Source, open_source

KEPT_S = 1800.0
"""How long an upload is kept for the player, seconds."""

_KEPT_UPLOADS = 16  # of the largest size, at most, whatever their age
_MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What is refused before anything is counted.

    Attributes:
        max_upload_mb: Largest file, MiB.
        max_duration_s: Longest video, seconds.
        queue: Videos that may wait while one is counted.
    """

    max_upload_mb: float = 200.0
    max_duration_s: float = 300.0
    queue: int = 8

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest file."""
        return int(self.max_upload_mb * _MIB)

    @property
    def room_bytes(self) -> int:
        """Bytes of all uploads that are kept; the oldest go first."""
        return _KEPT_UPLOADS * self.max_bytes

    def open(self, video: Path, action: str) -> Source | Failure:
        """A video as something to count in.

        Args:
            video: The file.
            action: What is repeated, for the question.

        Returns:
            A failure for a file that is too large, no video, or too long, looked at in this order.
        """
        size = video.stat().st_size if video.is_file() else 0
        if size > self.max_bytes:
            return Failure(video, f"{video}: {told_size(size)}, at most {self.told_upload}")
        source = open_source(video, action)
        if isinstance(source, Source) and source.clip.duration_s > self.max_duration_s:
            told = f"lasts {source.clip.duration_s:.1f} s, at most {self.max_duration_s:g} s"
            return Failure(video, f"{video}: {told} are counted here")
        return source

    @property
    def told_upload(self) -> str:
        """The largest file in words."""
        return told_size(self.max_bytes)


def told_size(num_bytes: int) -> str:
    """For example "1.5 MiB"."""
    return f"{num_bytes / _MIB:.3g} MiB"

"""Clips of video files at hand, and whether the files of clips and images can be read."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.rows import Row
from data_prep.schema import Clip
from data_prep.video.files import VideoError
from data_prep.video.guard import probe_guarded
from data_prep.video.image import image_size


def clip_of_video(path: str | Path, *, action: str = "unknown") -> Clip:
    """A clip that spans a whole video file, with no labels, for counting in a file at hand.

    Raises:
        VideoError: naming the file and why it cannot be read.
    """
    found = probe_guarded(path)
    return Clip(
        id=Path(path).stem,
        dataset="file",
        split="test",
        video=str(Path(path).absolute()),
        start_s=0.0,
        end_s=found.end_s,
        video_fps=found.fps,
        num_frames=found.num_frames,
        width=found.width,
        height=found.height,
        action=action,
        count=0,
    )


def check_videos(rows: Sequence[Row]) -> None:
    """Refuse a list of rows whose files cannot all be opened, before any work is done on them.

    Raises:
        VideoError: naming the first bad file and how many there are.
    """
    if problems := unreadable_videos(rows):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise VideoError(next(iter(problems.values())) + more)


def unreadable_videos(rows: Sequence[Row]) -> dict[str, str]:
    """Why videos and images cannot be opened, one line for each of them, by path."""
    problems = {}
    for path, row in {row.file: row for row in rows}.items():
        try:
            _look_at(row)
        except VideoError as error:
            problems[path] = f"{error} [clip {row.id!r}]"
    return problems


def _look_at(row: Row) -> None:
    if isinstance(row, Clip):
        probe_guarded(row.video)
        return
    height, width = image_size(row.image)
    if (height, width) != (row.height, row.width):
        raise VideoError(
            f"{row.image}: is {width}x{height} pixels, its row says {row.width}x{row.height}"
        )

"""Clips of video files at hand, and whether the files of clips and images can be read."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.images import LabelledImage
from data_prep.rows import Row
from data_prep.schema import Clip
from data_prep.shown import ShownImage
from data_prep.video.files import VideoError
from data_prep.video.folder import frames_of_folder, is_folder
from data_prep.video.guard import probe_guarded
from data_prep.video.image import image_size

Shown = tuple[str, tuple[ShownImage, ...]]
"""All files of a row: its own, and the images before it."""


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


def unreadable_videos(rows: Sequence[Row]) -> dict[Shown, str]:
    """Why what rows show cannot be opened, one line for each, by their file and images.

    A broken image before one row says nothing of another row of the same video.
    """
    problems = {}
    for shown, row in {(row.file, row.images): row for row in rows}.items():
        try:
            _look_at(row)
        except VideoError as error:
            problems[shown] = f"{error} [clip {row.id!r}]"
    return problems


def _look_at(row: Row) -> None:
    for image in row.images:
        _compare_size(image.image, image)
    if isinstance(row, LabelledImage):
        _compare_size(row.image, row)
    elif is_folder(row.video):
        _look_at_folder(row)
    else:
        probe_guarded(row.video)


def _look_at_folder(clip: Clip) -> None:
    frames = frames_of_folder(clip.video)
    if len(frames) != clip.num_frames:
        raise VideoError(
            f"{clip.video}: holds {len(frames)} frames, its row says num_frames={clip.num_frames}"
        )
    _compare_size(frames[0], clip)


def _compare_size(path: str | Path, told: LabelledImage | ShownImage | Clip) -> None:
    height, width = image_size(path)
    if (height, width) != (told.height, told.width):
        raise VideoError(
            f"{path}: is {width}x{height} pixels, its row says {told.width}x{told.height}"
        )

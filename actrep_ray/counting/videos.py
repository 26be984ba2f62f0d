"""Which videos are meant, and what of them can be opened."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import DataError
from data_prep.schema import Clip
from data_prep.video import VideoError, clip_of_video

SUFFIXES = frozenset(
    (
        ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".mpg", ".mpeg", ".ts", ".mts",
        ".m2ts", ".flv", ".ogv", ".3gp", ".gif",
    )
)  # fmt: skip
"""Names of the files that are taken out of a folder."""

_WILD = frozenset("*?[")


@dataclass(frozen=True)
class Source:
    """A video to count in.

    Attributes:
        video: As it was given.
        clip: All of it.
    """

    video: Path
    clip: Clip


@dataclass(frozen=True)
class Failure:
    """A video that could not be counted in.

    Attributes:
        video: As it was given.
        reason: Why, with the name of the file.
    """

    video: Path
    reason: str


def find_videos(given: Sequence[Path]) -> list[Path]:
    """The videos that are meant by files, folders and patterns, each once, in order.

    Args:
        given: A folder stands for the videos in it and below it, a pattern (`clips/*.mp4`) that no
            file has for a name for the files that match. Whether a file that is named can be read
            is not looked at.

    Raises:
        DataError: for a folder without videos, or a pattern that nothing matches.
    """
    found: dict[Path, None] = {}
    for one in given:
        found |= dict.fromkeys(_meant_by(one))
    return list(found)


def are_many(given: Sequence[Path]) -> bool:
    """Whether more than one video may be meant, whatever is there."""
    return len(given) > 1 or given[0].is_dir() or _is_pattern(given[0])


def _is_pattern(path: Path) -> bool:
    return bool(_WILD & set(str(path))) and not path.exists()


def _meant_by(path: Path) -> list[Path]:
    if path.is_dir():
        files = (one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES)
        videos = sorted(one for one in files if one.is_file() and not one.name.startswith("."))
        if not videos:
            raise DataError(f"{path}: no video in this folder (names that end in .mp4, .mkv, ...)")
        return videos
    if _is_pattern(path):
        root = Path(path.anchor)
        matched = root.glob(str(path.relative_to(root) if path.anchor else path))
        videos = sorted(one for one in matched if one.is_file())
        if not videos:
            raise DataError(f"{path}: no file matches this pattern")
        return videos
    return [path]


def open_source(video: Path, action: str) -> Source | Failure:
    """A video as something to count in; one that cannot be opened is a failure."""
    try:
        return Source(video, clip_of_video(video, action=action))
    except VideoError as error:
        return Failure(video, str(error))

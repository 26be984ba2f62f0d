"""Still images out of action videos: frames at even distances, of each video as many.

    ROOT/ApplyLipstick/v_ApplyLipstick_g08_c01.avi    UCF101: class and group are in the name
    ROOT/wave/7.mp4                                   any other: the folder is the class

Clips of one group of UCF101 are cut out of one recording. Groups 1 to 7 are the test and the others
are trained on, as in its first split (arXiv 1212.0402): no recording is in both. Of videos without
a group nothing says which belong together, so one frame of each is all that can be taken: two could
be a shot and be scored as well.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.activities.sources import Found
from data_prep.files import DataError, replacing
from data_prep.video import Video, VideoError

SUFFIXES = frozenset((".avi", ".mp4", ".mkv", ".webm", ".mov"))

_OF_UCF101 = re.compile(r"v_([A-Za-z0-9]+)_g(\d+)_c\d+")
_LAST_TEST_GROUP = 7
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_QUALITY = 95  # of the JPEG files


@dataclass
class Taken:
    """Frames that were written, and videos that were left out.

    Attributes:
        found: An image for each frame.
        unreadable: What is wrong with each video of which there is none.
    """

    found: list[Found] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def images_of_videos(root: Path, *, num_frames: int, out: Path) -> Taken:
    """Write frames of all videos below a folder as JPEG, in `frames` beside a file of rows.

    Args:
        root: The folder.
        num_frames: Frames of each video, at the middles of as many equal lengths of it.
        out: The file of rows that they are for.

    Raises:
        DataError: if there is no video, if some are named as those of UCF101 and others are not,
            if several frames are asked for of videos without a group, or if none can be read.
    """
    videos = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not videos:
        expected = ", ".join(sorted(SUFFIXES))
        raise DataError(f"{root}: holds no video of a class, expected CLASS/NAME with {expected}")
    grouped = [path for path in videos if _OF_UCF101.fullmatch(path.stem)]
    if grouped and len(grouped) < len(videos):
        other = next(path for path in videos if path not in grouped)
        raise DataError(
            f"{root}: {grouped[0].name} is named as a video of UCF101 and {other.name} is not, "
            "expected one kind"
        )
    if num_frames < 1 or (num_frames > 1 and not grouped):
        raise DataError(
            f"--frames {num_frames}: expected 1, of videos that no group tells apart (UCF101's "
            "names do: v_CLASS_g01_c01)"
            if num_frames > 1
            else f"--frames {num_frames}: expected at least 1"
        )
    taken = Taken()
    for path in videos:
        label, split = _class_of(path)
        try:
            for i, frame in enumerate(_frames_of(path, num_frames)):
                image = out.parent / "frames" / label / f"{path.stem}-{i}.jpg"
                with replacing(image, is_durable=False) as partial:
                    Image.fromarray(frame).save(partial, "JPEG", quality=_QUALITY)
                taken.found.append(Found(image, label, split))
        except VideoError as error:
            taken.unreadable.append(str(error))
    if not taken.found:
        raise DataError(f"no video can be used: {taken.unreadable[0]}")
    return taken


def _class_of(path: Path) -> tuple[str, str]:
    """Class and split of a video: ApplyLipstick of group 8 is apply_lipstick, train."""
    match = _OF_UCF101.fullmatch(path.stem)
    if match is None:
        return path.parent.name, ""
    split = "test" if int(match[2]) <= _LAST_TEST_GROUP else "train"
    return _CAPITAL.sub("_", match[1]).lower(), split


def _frames_of(path: Path, num_frames: int) -> Iterator[np.ndarray]:
    with Video(path) as video:
        step = video.probe.end_s / num_frames
        yield from list(video.frames_at([(i + 0.5) * step for i in range(num_frames)]))

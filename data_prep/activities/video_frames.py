"""Still images out of action videos: frames at even distances, of each video as many.

    ROOT/ApplyLipstick/v_ApplyLipstick_g08_c01.avi    UCF101: class and group are in the name
    ROOT/wave/7.mp4                                   any other: the folder is the class
    ROOT/train/wave/7.mp4                             either, below the folder of its split

Clips of one group of UCF101 are cut out of one recording. Groups 1 to 7 are the test and the others
are trained on, as in its first split (arXiv 1212.0402): no recording is in both. Folders of splits
decide where there are any, and may not part a recording either. Of videos without a group nothing
says which belong together, so one frame of each is all that can be taken: two could be a shot and
be scored as well.

A frame is `frames/CLASS/NAME-i.jpg` beside the file of rows. NAME is the path of the video below
ROOT without the folder of its class, joined by "-": `7`, or `train-7` below the folder of a split.
Its suffix is a part of it where two videos differ by nothing else: `1.avi` beside `1.mp4`.
"""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.activities.sources import SPLIT_FOLDERS, Found
from data_prep.files import DataError, replacing
from data_prep.video import FileState, FramePlan, VideoError
from data_prep.video.guard import probe_guarded, read_guarded

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
        root: The folder. Hidden files and folders in it are left alone.
        num_frames: Frames of each video, at the middles of as many equal lengths of it.
        out: The file of rows that they are for.

    Raises:
        DataError: if there is no video, if some are named as those of UCF101 and others are not,
            if several frames are asked for of videos without a group, if some lie below folders of
            splits and others do not, if one lies in no folder of a class, if a group is in two
            splits, if frames of two would have one name, or if none can be read.
    """
    paths = sorted(path for path in root.rglob("*") if _is_video(path.relative_to(root)))
    if not paths:
        expected = ", ".join(sorted(SUFFIXES))
        raise DataError(f"{root}: holds no video of a class, expected CLASS/NAME with {expected}")
    grouped = [path for path in paths if _OF_UCF101.fullmatch(path.stem)]
    if grouped and len(grouped) < len(paths):
        other = next(path for path in paths if path not in grouped)
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
    for video in _named(root, _videos_of(root, paths)):
        try:
            for i, frame in enumerate(_frames_of(video.path, num_frames)):
                image = out.parent / "frames" / video.label / f"{video.name}-{i}.jpg"
                with replacing(image, is_durable=False) as partial:
                    Image.fromarray(frame).save(partial, "JPEG", quality=_QUALITY)
                taken.found.append(Found(image, video.label, video.split))
        except VideoError as error:
            taken.unreadable.append(str(error))
    if not taken.found:
        raise DataError(f"no video can be used: {taken.unreadable[0]}")
    return taken


@dataclass(frozen=True)
class _Video:
    """A video and what its frames are called; `split` is "" if nothing says it."""

    path: Path
    label: str
    split: str
    name: str


def _is_video(below: Path) -> bool:
    return below.suffix.lower() in SUFFIXES and not any(name[0] == "." for name in below.parts)


def _videos_of(root: Path, paths: list[Path]) -> list[_Video]:
    """Class, split and name without suffix of each: ApplyLipstick is apply_lipstick."""
    tops = {path: path.relative_to(root).parts[0] for path in paths}
    in_splits = [path for path in paths if path.parent != root and tops[path] in SPLIT_FOLDERS]
    if in_splits and len(in_splits) < len(paths):
        other = next(path for path in paths if path not in in_splits)
        raise DataError(
            f"{root}: {in_splits[0].relative_to(root)} lies in the folder of a split and "
            f"{other.relative_to(root)} does not, expected one kind"
        )
    videos, split_of = [], dict[str, tuple[str, Path]]()
    for path in paths:
        *folders, _ = path.relative_to(root).parts
        above = folders[:1] if in_splits else []
        below = folders[len(above) :]
        split = SPLIT_FOLDERS[above[0]] if above else ""
        if match := _OF_UCF101.fullmatch(path.stem):
            label = _CAPITAL.sub("_", match[1]).lower()
            split = split or ("test" if int(match[2]) <= _LAST_TEST_GROUP else "train")
            below = [folder for folder in below if folder != match[1]]
            recording = f"v_{match[1]}_g{match[2]}"
            known, first = split_of.setdefault(recording, (split, path))
            if known != split:
                raise DataError(
                    f"{path}: is of {split}, and {first.name} of the same recording "
                    f"({recording}) of {known}, expected one split"
                )
        elif below:
            label, *below = below
        else:
            raise DataError(f"{path}: lies in no folder of a class, expected CLASS/{path.name}")
        videos.append(_Video(path, label, split, "-".join((*above, *below, path.stem))))
    return videos


def _named(root: Path, videos: list[_Video]) -> list[_Video]:
    """The same, with suffixes where names are those of several."""
    num = Counter((video.label, video.name) for video in videos)
    found: dict[tuple[str, str], _Video] = {}
    for video in videos:
        is_one = num[video.label, video.name] == 1
        name = video.name if is_one else f"{video.name}{video.path.suffix}"
        other = found.setdefault((video.label, name), replace(video, name=name))
        if other.path != video.path:
            raise DataError(
                f"{root}: frames of {other.path.relative_to(root)} and "
                f"{video.path.relative_to(root)} would both be called {name}, rename one"
            )
    return list(found.values())


def _frames_of(path: Path, num_frames: int) -> np.ndarray:
    """RGB at the size of the video, uint8 [num_frames, height, width, 3]."""
    found, state = probe_guarded(path), FileState.of(path)
    step = found.end_s / num_frames
    times_s = tuple((i + 0.5) * step for i in range(num_frames))
    size = found.height, found.width
    plan = FramePlan(str(path), state.num_bytes, times_s, found.fps, *size, state.changed_ns)
    return read_guarded(plan)

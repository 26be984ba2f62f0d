"""The clips of a quickstart: a set with marks, and a harder one of which only counts are known.

Few of the marked clips are long and of large counts (level `long`), as users have them; the others
are of level `easy`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.files import DataError, write_lines
from data_prep.schema import Clip, read_clips
from data_prep.synthetic.dataset import write_dataset

MARKED, COUNTED = "synthetic-marked", "synthetic-counted"  # `dataset` of the clips
LEVELS = {MARKED: {"easy": 0.95, "long": 0.05}, COUNTED: {"medium": 1.0}}  # share of each level
KEPT = 1 / 4  # of the clips to practise on from counts: of the marked kind, not to be forgotten
SEED = 0

NumClips = Mapping[str, Mapping[str, int]]
"""Clips by data set and split."""


def write_data(path: Path, num_clips: NumClips, *, overwrite: bool) -> None:
    """Render both sets beside a file that lists the clips of both.

    The marks of `COUNTED` are left out of its train and validation split; those of its test split
    stay, to judge lists by. To its train split are added clips of `MARKED` by their counts alone,
    `KEPT` of all that it then has.

    Args:
        path: The JSONL to write.
        num_clips: Clips that are rendered.
        overwrite: Whether sets of other settings, and a file of other clips, give way.

    Raises:
        DataError: naming the file or folder that holds something else.
    """
    clips = {
        name: list(_rendered(name, num_clips[name], path.parent, overwrite=overwrite))
        for name in LEVELS
    }
    num_kept = round(num_clips[COUNTED].get("train", 0) * KEPT / (1 - KEPT))
    clips[COUNTED] += _kept(clips[MARKED], num_kept)
    lines = [clip.to_json() for some in clips.values() for clip in some]
    if path.exists() and not overwrite and path.read_text("utf-8").splitlines() != lines:
        raise DataError(f"{path}: holds other clips than the quickstart's; give another data.path")
    write_lines(path, lines)


def of_levels(name: str, num_clips: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Clips of a data set by level and split; the first level takes what rounding leaves over."""
    first, *others = LEVELS[name]
    parts = {
        level: {split: round(num * LEVELS[name][level]) for split, num in num_clips.items()}
        for level in others
    }
    rest = {
        split: num - sum(part[split] for part in parts.values()) for split, num in num_clips.items()
    }
    return {first: rest, **parts}


def _rendered(
    name: str, num_clips: Mapping[str, int], folder: Path, *, overwrite: bool
) -> Iterator[Clip]:
    for level, num in of_levels(name, num_clips).items():
        if not any(num.values()):
            continue
        path = write_dataset(
            folder / level, level=level, num_clips=num, seed=SEED, overwrite=overwrite
        )
        for clip in read_clips(path):
            clip = replace(clip, dataset=name, video=os.path.relpath(clip.video, folder))
            yield _without_marks(clip) if name == COUNTED and clip.split != "test" else clip


def _kept(marked: Sequence[Clip], num: int) -> list[Clip]:
    """Clips of the marked set's train split, evenly spread over it, as clips with a mere count."""
    train = [clip for clip in marked if clip.split == "train"]
    num = min(num, len(train))
    chosen = [train[i * len(train) // num] for i in range(num)]
    return [
        _without_marks(replace(clip, id=f"{clip.id}-counted", dataset=COUNTED)) for clip in chosen
    ]


def _without_marks(clip: Clip) -> Clip:
    return replace(clip, cycles=None, cycles_source=None)

"""The clips of a quickstart: a set with marks, and a harder one of which only counts are known."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from data_prep.files import DataError, write_lines
from data_prep.schema import Clip, read_clips
from data_prep.synthetic.dataset import write_dataset

MARKED, COUNTED = "synthetic-easy", "synthetic-medium"  # `dataset` of the clips
LEVELS = {MARKED: "easy", COUNTED: "medium"}
SEED = 0


def write_data(path: Path, num_clips: Mapping[str, Mapping[str, int]], *, overwrite: bool) -> None:
    """Render both sets beside a file that lists the clips of both.

    The marks of `COUNTED` are left out of its train and validation split; those of its test split
    stay, to judge lists by.

    Args:
        path: The JSONL to write.
        num_clips: Clips of each set by split.
        overwrite: Whether sets of other settings, and a file of other clips, give way.

    Raises:
        DataError: naming the file or folder that holds something else.
    """
    clips: list[Clip] = []
    for name, level in LEVELS.items():
        folder = path.parent / level
        written = write_dataset(
            folder, level=level, num_clips=dict(num_clips[name]), seed=SEED, overwrite=overwrite
        )
        clips += _listed(written, name, path.parent)
    lines = [clip.to_json() for clip in clips]
    if path.exists() and not overwrite and path.read_text("utf-8").splitlines() != lines:
        raise DataError(f"{path}: holds other clips than the quickstart's; give another data.path")
    write_lines(path, lines)


def _listed(path: Path, name: str, folder: Path) -> Iterator[Clip]:
    for clip in read_clips(path):
        clip = replace(clip, dataset=name, video=os.path.relpath(clip.video, folder))
        if name == COUNTED and clip.split != "test":
            clip = replace(clip, cycles=None, cycles_source=None)
        yield clip

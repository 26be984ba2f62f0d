"""Few shots of each class, and the rest to be scored; base and new classes.

Which images are the shots is a function of the seed, the class and the ids, so that the shots of a
smaller k are among those of a larger one, and a class keeps its shots whatever other classes there
are. Where the splits of the images are known, shots are taken from train and nothing else changes;
else the next min(k, 4) of each class are for validation, as in CoOp (arXiv 2109.01134), and all
others are the test.

Base classes are the first half of the sorted names, rounded up, new ones the others (likewise).
"""

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from data_prep.files import DataError
from data_prep.images import LabelledImage
from rewards.recognition import normalize_label

SHOTS = (1, 2, 4, 8, 16)
"""The usual ones; any number can be taken."""

_MOST_VALIDATION = 4


def choose_classes(
    rows: Sequence[LabelledImage], which: Literal["all", "base", "new"]
) -> list[LabelledImage]:
    """The rows of all classes, or of the base or the new ones.

    Raises:
        DataError: if there are fewer than two classes to tell apart.
    """
    names = sorted({normalize_label(row.label) for row in rows})
    if len(names) < 2:
        raise DataError(f"{len(names)} class ({', '.join(names)}), expected two or more")
    half = -(-len(names) // 2)
    kept = {"all": names, "base": names[:half], "new": names[half:]}[which]
    return [row for row in rows if normalize_label(row.label) in kept]


def take_shots(
    rows: Sequence[LabelledImage], num_shots: int, *, seed: int, has_splits: bool
) -> list[LabelledImage]:
    """The same images with `num_shots` of each class to train on, balanced, in their order.

    Args:
        rows: The images.
        num_shots: k, of each class.
        seed: Decides which.
        has_splits: Whether their splits are known. Other images of train are then left out, for
            nobody may train on them, and were not meant to be scored.

    Raises:
        DataError: naming the class that has too few images, or an empty test.
    """
    if num_shots < 1:
        raise DataError(f"{num_shots} shots, expected at least 1")
    by_class: dict[str, list[LabelledImage]] = defaultdict(list)
    for row in rows:
        if not has_splits or row.split == "train":
            by_class[normalize_label(row.label)].append(row)
    num_others = 0 if has_splits else min(num_shots, _MOST_VALIDATION)
    needed = num_shots if has_splits else num_shots + num_others + 1
    split_of: dict[str, str] = {}
    for name in sorted({normalize_label(row.label) for row in rows}):
        mine = sorted(by_class[name], key=lambda row: row.id)
        if len(mine) < needed:
            what = "of train" if has_splits else "in all: some to validate with and to score"
            raise DataError(
                f"class {name!r} has {len(mine)} images, {num_shots} shots need {needed} {what}"
            )
        order = np.random.default_rng((seed, zlib.crc32(name.encode()))).permutation(len(mine))
        for position, i in enumerate(order.tolist()):
            is_shot, is_other = position < num_shots, position < num_shots + num_others
            split = "train" if is_shot else "validation" if is_other else "test"
            if is_shot or not has_splits:
                split_of[mine[i].id] = split
    if has_splits:
        split_of |= {row.id: row.split for row in rows if row.split != "train"}
        if "test" not in split_of.values():
            raise DataError("no image of split 'test': nothing to score")
    return [replace(row, split=split_of[row.id]) for row in rows if row.id in split_of]

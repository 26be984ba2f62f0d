"""The folder of a drawn set of activities::

OUT_DIR/rows.jsonl        one image a row, with its class and the words that tell it
OUT_DIR/images/*.png
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.activities.drawing import STYLES, draw_pose
from data_prep.activities.poses import POSES
from data_prep.files import DataError
from data_prep.images import LabelledImage
from data_prep.overwriting import refuse_filled
from data_prep.rows import write_rows
from data_prep.schema import SPLITS

FILE = "rows.jsonl"


def write_activities(
    out_dir: Path,
    *,
    style: str,
    num_images: Mapping[str, int],
    seed: int,
    size: int = 64,
    overwrite: bool = False,
) -> Path:
    """Draw a set: so many images of each class for each split.

    An image depends on style, seed, split, class and its number, on nothing else.

    Args:
        out_dir: The folder to write.
        style: Of `STYLES`; it names the data set as well.
        num_images: Images of each class by split.
        seed: Decides what varies.
        size: Height and width, pixels.
        overwrite: Whether a folder that holds something gives way.

    Returns:
        The path of the rows.

    Raises:
        DataError: for an unknown style or split, numbers that no image can be drawn of, or a folder
            that holds something.
    """
    if style not in STYLES:
        raise DataError(f"style={style!r}, expected one of {', '.join(STYLES)}")
    if seed < 0 or not 16 <= size <= 1024:
        raise DataError(f"seed={seed}, size={size}: expected 0 or more, and 16 to 1024 pixels")
    wrong = [split for split, number in num_images.items() if split not in SPLITS or number < 0]
    if wrong or not any(num_images.values()):
        raise DataError(f"num_images={dict(num_images)}, expected images of {', '.join(SPLITS)}")
    refuse_filled(out_dir, overwrite=overwrite)
    (out_dir / "images").mkdir(parents=True, exist_ok=True)
    rows = [
        _draw(out_dir, style, seed, split, name, number, size)
        for split, num in num_images.items()
        for name in POSES
        for number in range(num)
    ]
    write_rows(out_dir / FILE, rows)
    return out_dir / FILE


def _draw(
    out_dir: Path, style: str, seed: int, split: str, name: str, number: int, size: int
) -> LabelledImage:
    entropy = (seed, STYLES.index(style), SPLITS.index(split), zlib.crc32(name.encode()), number)
    pixels = draw_pose(name, style, size, np.random.default_rng(entropy))
    image = f"images/{split}-{name}-{number:04d}.png"
    Image.fromarray(pixels).save(out_dir / image)
    return LabelledImage(
        id=f"{style}-{seed}-{split}-{name}-{number:04d}",
        dataset=f"sticks-{style}",
        split=split,
        image=image,
        width=size,
        height=size,
        label=name,
        description=POSES[name].words,
    )

"""Still images for tests: shapes in colours that no compression is needed for."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw_image(path: Path, seed: int, size: tuple[int, int] = (96, 128)) -> Path:
    """Write blocks of random colours as an image of (height, width); the name says its format."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize(size[::-1], Image.Resampling.NEAREST)
    image.save(path)
    return path

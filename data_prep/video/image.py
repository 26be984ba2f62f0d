"""Still images, read by the same plans, processes and cache as videos: a plan of one frame."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.video.files import VideoError, file_problem
from data_prep.video.plan import FileState, FramePlan, fit_size

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What is read, by what the file holds and not by its name."""

_ORIENTATION = 0x0112  # the tag of EXIF
_TURNED = frozenset((5, 6, 7, 8))  # its values that exchange the sides


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) at which an image is shown, pixels, from its header alone.

    Raises:
        VideoError: naming the file and why it cannot be read.
    """
    with _opened(path) as image:
        width, height = image.size
        is_turned = image.getexif().get(_ORIENTATION) in _TURNED
    return (width, height) if is_turned else (height, width)


def plan_image(
    path: str | Path,
    size: tuple[int, int],
    state: FileState | None = None,
    /,
    *,
    min_pixels: int,
    max_pixels: int,
    factor: int,
) -> FramePlan:
    """The plan of one frame by which an image is shown.

    Args:
        path: The image; it must exist, or its state be given.
        size: (height, width) at which it is shown, as `image_size` tells.
        state: What the file was when the run began; see `plan_frames`.
        min_pixels: Fewest pixels.
        max_pixels: Most pixels.
        factor: Height and width are multiples of this (patch size times merge size).

    Raises:
        VideoError: if the file is missing or empty.
    """
    if state is None:
        if problem := file_problem(path):
            raise VideoError(f"{path}: {problem.message}")
        state = FileState.of(path)
    height, width = fit_size(*size, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)
    return FramePlan(
        video=str(Path(path).absolute()),
        num_bytes=state.num_bytes,
        times_s=(0.0,),
        fps=1.0,
        height=height,
        width=width,
        changed_ns=state.changed_ns,
        is_image=True,
    )


def read_image(path: str | Path) -> np.ndarray:
    """Pixels of an image, upright by its EXIF tag, at its own size: uint8 RGB [H, W, 3].

    Transparency is left out; of several images in a file, the first is read.

    Raises:
        VideoError: if it is cut, damaged, no image of `FORMATS`, or of more pixels than Pillow
            takes for an honest file (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    with _opened(path) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    if problem := file_problem(path):
        raise VideoError(f"{path}: {problem.message.replace('video', 'image')}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except UnidentifiedImageError as error:
        expected = ", ".join(FORMATS)
        raise VideoError(f"{path}: cannot be read as an image, expected {expected}") from error
    except (
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
        OSError,
        SyntaxError,  # what Pillow raises for damaged chunks of a PNG
        ValueError,
    ) as error:
        raise VideoError(f"{path}: cannot be decoded ({error})") from error

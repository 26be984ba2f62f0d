"""Still images of a report, each above what was answered about it."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from actrep_ray.evaluation.figure_style import GREEN, INK, RED, SMALL
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.tasks.base import Task
from data_prep.images import LabelledImage
from data_prep.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

_MOST_SHOWN = 8
_COLUMNS = 4
_WIDTH, _MOST_TEXT = 34, 170  # letters of a line, and of an answer that is shown
_SIDE = 256  # pixels


def choose_images(rows: Sequence[Row]) -> list[LabelledImage]:
    """The first held-out image of each of the first classes, whatever was answered."""
    first: dict[str, LabelledImage] = {}
    for row in rows:
        if isinstance(row, LabelledImage):
            first.setdefault(row.label, row)
    return [first[label] for label in sorted(first)][:_MOST_SHOWN]


def height_of(images: Sequence[LabelledImage]) -> float:
    """Inches that they take."""
    return 3.1 * -(-len(images) // _COLUMNS)


def draw_images(
    figure: "FigureBase",
    images: Sequence[LabelledImage],
    answers: Mapping[str, Prediction],
    task: Task,
) -> None:
    """Each image with its class, and below it the whole answer, green where it is right.

    Args:
        figure: What is drawn into.
        images: At most `_MOST_SHOWN`.
        answers: By the image's id.
        task: Says which are right.
    """
    num_rows = -(-len(images) // _COLUMNS)
    axes = figure.subplots(num_rows, _COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, row in zip(axes, images, strict=False):
        answer, reference = answers[row.id], task.reference(row)
        is_right = bool(task.is_right([answer.reading], reference)[0])
        axis.imshow(pixels_of(row))
        axis.set_title(task.describe_truth(reference), fontsize=SMALL, color=INK, parse_math=False)
        text = textwrap.shorten(answer.text or str(answer.reading), _MOST_TEXT, placeholder=" ...")
        axis.text(
            0.5, -0.04, textwrap.fill(text, _WIDTH), transform=axis.transAxes, ha="center",
            va="top", fontsize=SMALL - 1, color=GREEN if is_right else RED, parse_math=False,
        )  # fmt: skip


def pixels_of(row: LabelledImage) -> np.ndarray:
    """As it is shown, at most `_SIDE` pixels wide and high. uint8 [H, W, 3]"""
    with Image.open(row.image) as image:
        shown = ImageOps.exif_transpose(image).convert("RGB")
        shown.thumbnail((_SIDE, _SIDE))
        return np.asarray(shown)

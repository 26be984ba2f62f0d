"""What clips look like, in a few numbers of their pixels: is one like those of a training?

A model that saw drawn figures alone answers about a filmed gym as confidently, and wrongly.
Contrast, edges, colours and how flat surfaces are tell such worlds apart without any model: the
distance of Mahalanobis (1936) to the training's clips, compared with theirs.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.files import DataError, read_object, write_lines
from data_prep.video import FramePlan, VideoError
from data_prep.video.guard import read_guarded

FILE = "looks.json"
"""In the folder of a checkpoint."""

MOST_CLIPS = 48  # of a training
FEWEST_CLIPS = 16  # fewer say too little of how clips differ
SLACK = 1.1  # times the largest distance of one of the training's clips from the others

_FRAMES = 4  # of a clip
_SIDE = 96  # of a frame, pixels
_BINS = 32  # of grey values
_HUES = 16
_COLOURED = 20.0  # grey values between the strongest and the weakest channel
_EDGE = 8.0  # grey values between neighbours
_RIDGE, _LEAST_VARIANCE = 0.1, 1e-3

Array = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class Looks:
    """The looks of a training's clips.

    Attributes:
        mean: Of each number. [K]
        inverse: Of their covariance. [K, K]
        limit: Largest distance of one of the clips from the others.
        num_clips: How many were looked at.
    """

    mean: tuple[float, ...]
    inverse: tuple[tuple[float, ...], ...]
    limit: float
    num_clips: int

    @classmethod
    def of(cls, looks: Sequence[Array]) -> Self:
        """The looks of some clips, each [K]."""
        rows: Array = np.stack(looks)
        mean, inverse = _fit(rows)
        # Each from the others alone: what is fitted to a clip is near it.
        limit = max(
            _distance(row, *_fit(np.delete(rows, index, axis=0))) for index, row in enumerate(rows)
        )
        return cls(tuple(mean.tolist()), tuple(map(tuple, inverse.tolist())), limit, len(rows))

    def distance(self, look: Array) -> float:
        """Of a clip from these, where 1 is how far the most unusual of them is from the others."""
        own = _distance(look, np.array(self.mean), np.array(self.inverse))
        return own / max(self.limit, 1e-9)

    def write(self, folder: Path) -> None:
        """Write `FILE` into a folder."""
        write_lines(folder / FILE, [json.dumps(asdict(self))])

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What `write` wrote; None where it wrote nothing.

        Raises:
            DataError: if the file is not what it wrote.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        found = read_object(path, "the looks of a training's clips")
        try:
            mean = tuple(float(value) for value in found["mean"])
            inverse = tuple(tuple(float(value) for value in row) for row in found["inverse"])
            limit, num_clips = float(found["limit"]), int(found["num_clips"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not the looks of a training ({error!r})") from error
        if np.shape(inverse) != (len(mean), len(mean)) or len(mean) != NUM_NUMBERS:
            raise DataError(f"{path}: {len(mean)} numbers, expected {NUM_NUMBERS}")
        return cls(mean, inverse, limit, num_clips)


def _fit(rows: Array) -> tuple[Array, Array]:
    """Mean [K] and inverse of the covariance [K, K] of rows [N, K]."""
    ridge = np.maximum(_RIDGE * rows.var(axis=0), _LEAST_VARIANCE)
    return rows.mean(axis=0), np.linalg.inv(np.cov(rows.T) + np.diag(ridge))


def _distance(look: Array, mean: Array, inverse: Array) -> float:
    away = look - mean
    return float(np.sqrt(max(float(away @ inverse @ away), 0.0) / len(away)))


def some_of(rows: Sequence[T]) -> list[T]:
    """Up to `MOST_CLIPS` of a training's rows, spread evenly over them."""
    chosen = np.linspace(0, len(rows) - 1, min(MOST_CLIPS, len(rows))).round().astype(int)
    return [rows[index] for index in chosen]


def looks_of(plans: Iterable[FramePlan]) -> Looks | None:
    """The looks of a training's clips.

    Videos that cannot be read are left out; None if fewer than `FEWEST_CLIPS` can.
    """
    found = []
    for plan in plans:
        with suppress(VideoError):
            found.append(look_of(plan))
    return Looks.of(found) if len(found) >= FEWEST_CLIPS else None


def look_of(plan: FramePlan) -> Array:
    """Numbers that say what a clip looks like: the median over a few of its frames. [NUM_NUMBERS]

    Raises:
        VideoError: if the video cannot be read.
    """
    indices = np.unique(np.linspace(0, plan.num_frames - 1, _FRAMES).round().astype(int))
    shrink = min(1.0, _SIDE / float(np.sqrt(plan.height * plan.width)))
    few = replace(
        plan,
        times_s=tuple(plan.times_s[i] for i in indices),
        height=max(2, round(plan.height * shrink)),
        width=max(2, round(plan.width * shrink)),
    )
    frames = read_guarded(few).astype(np.float32)
    return np.asarray(np.median([_numbers(frame) for frame in frames], axis=0))


def _numbers(frame: NDArray[np.float32]) -> list[float]:
    """Of one picture [H, W, 3], RGB 0 .. 255; each of about the same spread."""
    grey = frame @ np.array([0.299, 0.587, 0.114], np.float32)
    across = np.abs(np.diff(grey, axis=1))[:-1]
    down = np.abs(np.diff(grey, axis=0))[:, :-1]
    steps = np.maximum(across, down)
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.0)
    bends = np.abs(cv2.Laplacian(smooth, cv2.CV_32F))
    red, green, blue = np.moveaxis(frame, -1, 0)
    strongest, weakest = frame.max(axis=-1), frame.min(axis=-1)
    hue = np.arctan2(np.sqrt(3.0) * (green - blue), 2.0 * red - green - blue)
    coloured = hue[strongest - weakest > _COLOURED]
    return [
        _entropy(np.histogram(grey, bins=_BINS, range=(0.0, 256.0))[0]),
        float(np.log1p(np.median(steps))),
        float(np.log1p(np.percentile(steps, 75.0))),
        float(np.log1p(np.percentile(steps, 95.0))),
        float((steps > _EDGE).mean()),
        float(grey.mean() / 64.0),
        float(grey.std() / 32.0),
        float(4.0 * ((strongest - weakest) / np.maximum(strongest, 1.0)).mean()),
        float(np.log1p(np.median(bends))),
        _entropy(np.histogram(coloured, bins=_HUES, range=(-np.pi, np.pi))[0]),
    ]


NUM_NUMBERS = 10


def _entropy(counts: NDArray[np.int64]) -> float:
    """Bits of a histogram; 0 of an empty one."""
    shares = counts[counts > 0] / max(int(counts.sum()), 1)
    return float(-(shares * np.log2(shares)).sum())

"""How sure several answers to one question are, and how often what is so sure is right.

    answers      10, 11, 10, -, 10        "-" cannot be read
    count        median of those that can (`actrep_ray.evaluation.voting`): 10
    confidence   (3 + 1) / (5 + 2)        Laplace's rule of succession: the chance that one more
                                          answer says it too; halved where the answer that is shown
                                          contradicts itself, 0 where none can be read

That is of the model with itself. Held against truth, clips are put into ten bins of confidence of
equal width. The expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3) is the mean
over the clips of |share that is right - mean confidence| of their bin.

A calibration is a rising function from confidence to the share that is right, by least squares
(isotonic regression; pool adjacent violators, Ayer et al. 1955). One that was fitted on some clips
says nothing of these: `crossed` fits on each half of the clips what the other half is told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from actrep_ray.evaluation.intervals import Interval, wilson_interval
from actrep_ray.evaluation.predictions import Prediction, claims_of
from actrep_ray.evaluation.voting import median_of, speaker
from actrep_ray.records import Claims, Reading
from actrep_ray.tasks.base import Task
from actrep_ray.tasks.counting import contradicts_itself
from data_prep.files import DataError, read_object, write_json

NUM_BINS = 10

_OF_CONTRADICTION = 0.5  # of the confidence that is left


@dataclass(frozen=True)
class Agreed:
    """What several answers to one question come to.

    Attributes:
        reading: Their median, of readings that are no numbers the most frequent; None where none
            can be read.
        num_same: How many say it.
        shown: The one that stands for them (`voting.speaker`).
        claims: Of `shown`.
        confidence: 0 to 1; see above.
    """

    reading: Reading | None
    num_same: int
    shown: Prediction
    claims: Claims
    confidence: float


def agreed(predictions: Sequence[Prediction], task: Task) -> Agreed:
    """What the answers to one question, at least one, come to."""
    readings = [one.reading for one in predictions]
    reading = median_of(readings)
    shown = speaker(predictions, reading, task)
    claims = claims_of(shown, task)
    num_same = 0 if reading is None else readings.count(reading)
    confidence = (num_same + 1) / (len(readings) + 2) if num_same else 0.0
    if contradicts_itself(claims):
        confidence *= _OF_CONTRADICTION
    return Agreed(reading, num_same, shown, claims, confidence)


def beside(own: float, other: float, *, is_same: bool) -> float:
    """The confidence of a count beside the detector, which counts too.

    The two are taken for independent and the odds of each multiplied: the same number makes a count
    surer, another one less sure.

    Args:
        own: Confidence of the count, 0 to 1.
        other: That of the detector, between 0 and 1.
        is_same: Whether both count the same number.
    """
    right = own * (other if is_same else 1.0 - other)
    wrong = (1.0 - own) * (1.0 - other if is_same else other)
    return right / (right + wrong)


@dataclass(frozen=True)
class Bin:
    """Clips of about one confidence.

    Attributes:
        low: Least confidence of the bin.
        high: Its end, which belongs to the next one but for 1.
        num_clips: How many are in it, at least one.
        confidence: Their mean.
        right: Share of them that is right, with its interval.
    """

    low: float
    high: float
    num_clips: int
    confidence: float
    right: Interval


@dataclass(frozen=True)
class Calibration:
    """A rising function from confidence to the share that is right.

    Attributes:
        points: Pairs of them, both rising; between two it is a straight line, before the first and
            behind the last it is level.
        num_clips: On which it was fitted.
    """

    points: tuple[tuple[float, float], ...]
    num_clips: int

    def __call__(self, confidence: float) -> float:
        """The share that is right among those of a confidence, 0 to 1."""
        x, y = zip(*self.points, strict=True)
        return float(np.interp(confidence, x, y))


@dataclass(frozen=True)
class Reliability:
    """How far confidence can be believed.

    Attributes:
        num_answers: To each clip.
        bins: Those with clips, rising.
        error: Expected calibration error, 0 to 1.
        crossed: That of a calibration which was fitted on the other half of the clips; None of a
            single clip.
        calibration: Fitted on all clips.
    """

    num_answers: int
    bins: tuple[Bin, ...]
    error: float
    crossed: float | None
    calibration: Calibration

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        return asdict(self)


def reliability(
    confidence: Sequence[float], is_right: Sequence[bool], num_answers: int
) -> Reliability:
    """Hold confidence against truth.

    Args:
        confidence: Of each of N clips, at least one; 0 to 1.
        is_right: Whether what was so sure is right. [N]
        num_answers: To each clip.
    """
    sure, right = np.array(confidence, np.float64), np.array(is_right, np.float64)
    bins = bins_of(sure, right)
    crossed = None
    if len(sure) > 1:
        told = np.empty_like(sure)
        for half in (0, 1):
            fitted = fit(sure[1 - half :: 2], right[1 - half :: 2])
            told[half::2] = [fitted(one) for one in sure[half::2]]
        crossed = calibration_error(bins_of(told, right))
    return Reliability(num_answers, bins, calibration_error(bins), crossed, fit(sure, right))


def bins_of(confidence: np.ndarray, is_right: np.ndarray) -> tuple[Bin, ...]:
    """Clips by their confidence, in bins of equal width; float64 [N] both."""
    # What is a hair below an edge by rounding alone belongs to the bin that begins there.
    number = np.minimum(np.floor(confidence * NUM_BINS + 1e-9), NUM_BINS - 1)
    found = []
    for i in range(NUM_BINS):
        chosen = number == i
        if num := int(chosen.sum()):
            share = wilson_interval(int(is_right[chosen].sum()), num)
            mean = float(confidence[chosen].mean())
            found.append(Bin(i / NUM_BINS, (i + 1) / NUM_BINS, num, mean, share))
    return tuple(found)


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean over the clips of |share that is right - mean confidence| of their bin."""
    num_clips = sum(one.num_clips for one in bins)
    return sum(one.num_clips * abs(one.right.value - one.confidence) for one in bins) / num_clips


def fit(confidence: np.ndarray, is_right: np.ndarray) -> Calibration:
    """The rising function that is nearest to what was right, by least squares.

    No share is nearer to 0 or 1 than N clips can tell: 1 / (N + 2).

    Args:
        confidence: float64 [N], N at least 1.
        is_right: 0 or 1. float64 [N]
    """
    values = np.unique(confidence)
    blocks = [  # clips, share that is right, values
        [float((chosen := confidence == value).sum()), float(is_right[chosen].mean()), 1]
        for value in values
    ]
    pooled: list[list[float]] = []
    for block in blocks:
        pooled.append(block)
        while len(pooled) > 1 and pooled[-2][1] >= pooled[-1][1]:
            (n, a, i), (m, b, j) = pooled[-2:]
            pooled[-2:] = [[n + m, (n * a + m * b) / (n + m), i + j]]
    least = 1.0 / (len(confidence) + 2)
    shares = [
        min(max(share, least), 1.0 - least) for _, share, num in pooled for _ in range(int(num))
    ]
    points = tuple(zip(values.tolist(), shares, strict=True))
    return Calibration(points, len(confidence))


def write_calibration(
    path: Path, found: Reliability, checkpoint: str, sampling: Mapping[str, float]
) -> None:
    """Write what `actrep count --calibration` reads.

    Args:
        path: The JSON file.
        found: With the calibration.
        checkpoint: Fingerprint of the model that answered.
        sampling: How its answers were drawn, as of `predictors.sampling_json`.
    """
    content = {
        "checkpoint": checkpoint,
        "sampling": dict(sampling),
        "num_clips": found.calibration.num_clips,
        "points": [list(point) for point in found.calibration.points],
    }
    write_json(path, content)


def read_calibration(path: Path, checkpoint: str, sampling: Mapping[str, float]) -> Calibration:
    """What `write_calibration` wrote.

    Args:
        path: The file.
        checkpoint: Fingerprint of the model that is asked now.
        sampling: How its answers are drawn.

    Raises:
        DataError: if it is none, or of another checkpoint or of answers that are drawn otherwise.
    """
    content = read_object(path, "a calibration of `actrep evaluate --samples`")
    points = content.get("points")
    if not isinstance(points, list) or not points or not _are_rising(points):
        raise DataError(f"{path}: points={points!r}, expected pairs [confidence, share] that rise")
    if content.get("checkpoint") != checkpoint:
        raise DataError(
            f"{path}: is of another checkpoint; expected one that `actrep evaluate --samples "
            f"{sampling['num']}` wrote about this one"
        )
    if (drawn := content.get("sampling")) != dict(sampling):
        raise DataError(
            f"{path}: is of answers drawn with {drawn}, these are with {dict(sampling)}; give the "
            "same --samples, and --set rollout.temperature and rollout.top_p"
        )
    num_clips = content.get("num_clips")
    if not isinstance(num_clips, int) or num_clips < 1:
        raise DataError(f"{path}: num_clips={num_clips!r}, expected a number of clips")
    return Calibration(tuple((float(x), float(y)) for x, y in points), num_clips)


def _are_rising(points: list[Any]) -> bool:
    """Whether they are pairs of shares, the first ones rising, the second not falling."""
    for pair in points:
        if not isinstance(pair, list) or len(pair) != 2:
            return False
        if not all(type(one) in (int, float) and 0 <= one <= 1 for one in pair):
            return False
    return all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(points))

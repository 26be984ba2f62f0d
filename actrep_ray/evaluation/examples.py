"""Answers that a report shows whole, the worst first: picture, cycles over time, reasoning."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from actrep_ray.evaluation.figures import match_cycles, read_strip
from actrep_ray.evaluation.image_figures import pixels_of
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.tasks.base import Task
from data_prep.images import LabelledImage
from data_prep.rows import Row
from data_prep.schema import Clip
from data_prep.video import VideoError
from rewards.grammar.layout import Cycle
from rewards.reference import Reference

MOST_SHOWN = 12
_WORST = 6  # of them; the others are spread over the rest
_UNREAD = float("inf")  # error of an answer that cannot be read
_NUM_FRAMES, _MAX_PIXELS = 6, 112 * 112
_QUALITY = 80  # of JPEG


@dataclass(frozen=True)
class Mark:
    """A cycle on the timeline of an example.

    Attributes:
        left: Where it begins, percent of the clip.
        width: How long it is, percent of the clip.
        kind: "true", "hit" (matches a true one of its own) or "miss".
        text: Number, start and end, for people.
    """

    left: float
    width: float
    kind: str
    text: str


@dataclass(frozen=True)
class Example:
    """One answer.

    Attributes:
        title: Clip, truth and answer.
        is_right: Whether it is right.
        picture: Frames of the clip as a data URI; empty where its file cannot be read.
        lanes: Rows of the timeline by name; none of a still image.
        duration_s: Length of the clip, which the timeline spans.
        text: The whole answer.
    """

    title: str
    is_right: bool
    picture: str
    lanes: Mapping[str, Sequence[Mark]]
    duration_s: float
    text: str


def examples_of(
    rows: Sequence[Row],
    predictions: Sequence[Prediction],
    labels: Mapping[str, Reference],
    task: Task,
) -> list[Example]:
    """Up to `MOST_SHOWN` answers of one predictor, sorted by error, the largest first.

    Half of them are the worst. The rest are spread evenly over all others, so that right answers
    are seen beside wrong ones.

    Args:
        rows: What was asked about.
        predictions: One for each.
        labels: By id.
        task: Says what is right.
    """
    by_id = {row.id: row for row in rows}
    errors = {p.clip_id: error_of(p, labels[p.clip_id], task) for p in predictions}
    ranked = sorted(predictions, key=lambda p: -errors[p.clip_id])
    return [
        _example(by_id[p.clip_id], p, errors[p.clip_id], labels[p.clip_id], task)
        for p in _spread(ranked)
    ]


def error_of(prediction: Prediction, reference: Reference, task: Task) -> float:
    """How far an answer is off: repetitions of a count, else 0 or 1; infinite if it is unread."""
    reading = prediction.reading
    if reading is None:
        return _UNREAD
    if task.is_counting:
        return abs(float(reading) - float(task.truth(reference)))
    return float(not task.is_right([reading], reference)[0])


def _spread(ranked: Sequence[Prediction]) -> list[Prediction]:
    if len(ranked) <= MOST_SHOWN:
        return list(ranked)
    rest = np.linspace(_WORST, len(ranked) - 1, MOST_SHOWN - _WORST).round().astype(int)
    return [*ranked[:_WORST], *(ranked[i] for i in rest)]


def _example(
    row: Row, prediction: Prediction, error: float, reference: Reference, task: Task
) -> Example:
    told = "not readable" if prediction.reading is None else str(prediction.reading)
    off = f", off by {error:g}" if task.is_counting and 0 < error < _UNREAD else ""
    title = f"{row.id}: {task.describe_truth(reference)}, answered {told}{off}"
    lanes, duration_s = {}, 0.0
    if isinstance(row, Clip):
        duration_s, truth = row.duration_s, row.cycles or ()
        listed = tuple(c for c in prediction.cycles if 0 <= c[0] < c[1])
        hits = match_cycles(listed, truth)
        if truth:
            lanes["true"] = _marks(truth, ["true"] * len(truth), duration_s)
        if listed:
            kinds = ["hit" if hit else "miss" for hit in hits]
            lanes["answer"] = _marks(listed, kinds, duration_s)
    return Example(title, error == 0, _picture(row), lanes, duration_s, prediction.text)


def _marks(cycles: Sequence[Cycle], kinds: Sequence[str], duration_s: float) -> list[Mark]:
    """Those that begin inside of the clip, cut off at its end."""
    marks = []
    for number, ((start, end), kind) in enumerate(zip(cycles, kinds, strict=True), 1):
        if start >= duration_s:
            continue
        left, right = 100 * start / duration_s, 100 * min(end, duration_s) / duration_s
        marks.append(Mark(left, right - left, kind, f"{number}: {start:.1f} to {end:.1f} s"))
    return marks


def _picture(row: Row) -> str:
    """As a JPEG in a data URI; empty where the file is gone or broken."""
    try:
        if isinstance(row, LabelledImage):
            pixels = pixels_of(row)
        else:
            strip = read_strip(row, {}, num_frames=_NUM_FRAMES, max_pixels=_MAX_PIXELS)
            pixels = np.concatenate(list(strip.frames), axis=1)
    except (VideoError, OSError):
        return ""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"

"""Which words of an answer's reasoning name what is seen, for images whose description is known.

A description is a list of features with commas between them, as those of drawn activities:
"Both arms up, one leg up." names two. A feature that the reasoning names is seen if the image's own
description has it, and added if not.
"""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from actrep_ray.evaluation.image_figures import pixels_of
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.tasks.base import Task
from data_prep.images import LabelledImage

_REASONING = re.compile(r"<think(?:ing)?>(.*?)</think(?:ing)?>", re.DOTALL)
_BETWEEN = re.compile(r"([,.;\n]+)")

Features = frozenset[str]


@dataclass(frozen=True)
class Piece:
    """Some characters of an answer.

    Attributes:
        text: As they were written.
        kind: "seen" or "added" of a feature; empty for everything else.
    """

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Explanation:
    """One image beside the whole answer about it.

    Attributes:
        title: The right class, in words.
        source: The image, a data URI.
        pieces: The answer; together they are its text.
        is_right: Whether it names the right class.
    """

    title: str
    source: str
    pieces: tuple[Piece, ...]
    is_right: bool


def features_of(text: str) -> Features:
    """What a description names: "Both arms up, one leg up." -> both arms up, one leg up."""
    return frozenset(filter(None, map(_feature, _BETWEEN.split(text)[::2])))


def reasons_of(text: str) -> Features:
    """What the reasoning of an answer names; nothing where it has none."""
    found = _REASONING.search(text)
    return features_of(found[1]) if found else frozenset()


def pieces_of(text: str, description: str) -> tuple[Piece, ...]:
    """An answer cut into features of its reasoning and what is between them, in order."""
    found = _REASONING.search(text)
    if found is None:
        return (Piece(text),)
    true = features_of(description)
    return (
        Piece(text[: found.start(1)]),
        *_pieces_of_reasoning(found[1], true),
        Piece(text[found.end(1) :]),
    )


def explanations_of(
    images: Sequence[LabelledImage], answers: Mapping[str, Prediction], task: Task
) -> list[Explanation]:
    """Each image with its answer; none where one has no description or no answer reasons.

    Args:
        images: To be shown.
        answers: By the image's id.
        task: Says which are right.
    """
    if any(image.description is None for image in images):
        return []
    if not any(reasons_of(answers[image.id].text) for image in images):
        return []
    found = []
    for image in images:
        answer, reference = answers[image.id], task.reference(image)
        pieces = pieces_of(answer.text, image.description or "")
        is_right = bool(task.is_right([answer.reading], reference)[0])
        title = task.describe_truth(reference)
        found.append(Explanation(title, _data_uri(image), pieces, is_right))
    return found


def _pieces_of_reasoning(text: str, true: Features) -> Iterator[Piece]:
    for i, part in enumerate(_BETWEEN.split(text)):
        name = part.strip()
        if i % 2 or not name:
            yield Piece(part)
            continue
        start = part.index(name)
        yield Piece(part[:start])
        yield Piece(name, "seen" if _feature(name) in true else "added")
        yield Piece(part[start + len(name) :])


def _feature(text: str) -> str:
    return " ".join(text.lower().split())


def _data_uri(image: LabelledImage) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels_of(image)).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"

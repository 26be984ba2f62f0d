"""Recognising an activity in a still image or a video: the class, as the one name in its tag.

What is asked, of which the recipe's `data` section decides both halves::

    candidates   closed     all classes, by name
                 truncated  `num_candidates` of them, the right one inside, in an order that the
                            row's id decides: the same whenever it is asked
                 open       none
    reasoning    before     <think>...</think><answer>...</answer>
                 none       <answer>...</answer>
                 after      <answer>...</answer><think>...</think>

A name is right if it is the class or one of its aliases whatever its case, spaces, hyphens and the
punctuation around it (`rewards.recognition`); never for a part of it. Accuracy is over ALL rows:
what cannot be read is wrong.

The protocol is in the style of FAVOR (arXiv 2508.10371), which publishes neither code nor tables.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from actrep_ray.config import DataConfig
from actrep_ray.records import Claims, Reading
from actrep_ray.tasks.base import PARSE_RATE, Breakdown, FigureSpec
from data_prep.files import DataError
from data_prep.images import LabelledImage
from data_prep.references import reference_of
from data_prep.rows import Row, read_rows
from data_prep.video.plan import FileState
from rewards.format import think_answer
from rewards.grammar.read import ParsedResponse, parse
from rewards.recognition import names_of, normalize_label, recognition
from rewards.reference import Reference

_ACCURACY = FigureSpec("accuracy", "accuracy", "share")
_FORMS = {
    "before": "Reason in <{tag}></{tag}>, then name it in <answer></answer>.",
    "none": "Name it in <answer></answer>.",
    "after": "Name it in <answer></answer>, then reason in <{tag}></{tag}>.",
}


def _class_of(reference: Reference) -> str:
    assert reference.label is not None, "a row to recognise has a class"
    return normalize_label(reference.label)


def _shown(name: str) -> str:
    return name.replace("_", " ")


@dataclass(frozen=True)
class Recognition:
    """Which activity is shown?"""

    name: str = "recognition"
    title: str = "Recognition"
    reading_name: str = "class"
    reading_form: str = "the name of a class"
    is_counting: bool = False
    kinds: tuple[str, ...] = ("video", "image")
    figures: tuple[FigureSpec, ...] = (_ACCURACY, PARSE_RATE)
    breakdowns: tuple[Breakdown, ...] = (Breakdown("classes", "by class", "class", _class_of),)

    def question(self, clip: Row, cfg: DataConfig) -> str:
        """`data.question` with the classes to choose from and the form of the answer.

        Raises:
            DataError: if the right class is not among those that can be offered.
        """
        offered = candidates(clip, cfg)
        choice = f"Choose from: {', '.join(map(_shown, offered))}." if offered else ""
        form = _FORMS[cfg.reasoning].replace("{tag}", cfg.dialect)
        words = cfg.question.replace("{candidates}", choice).replace("{form}", form)
        return " ".join(words.split())

    def target(self, clip: Row, cfg: DataConfig, seed: int) -> str:
        """The class, and the row's description as the reasoning.

        Raises:
            DataError: if it is to reason and the row has no description.
        """
        answer = f"<answer>{_shown(_label_of(clip))}</answer>"
        if cfg.reasoning == "none":
            return answer
        description = clip.description if isinstance(clip, LabelledImage) else None
        if description is None:
            raise DataError(
                f"row {clip.id!r} has no description to reason with: give data.answers, or set "
                "data.reasoning=none"
            )
        thought = f"<{cfg.dialect}>\n{description}\n</{cfg.dialect}>"
        return f"{thought}\n{answer}" if cfg.reasoning == "before" else f"{answer}\n{thought}"

    def rejection(self, text: str, clip: Row, cfg: DataConfig) -> str | None:
        """Why a text has another form than is asked for, or names another class."""
        response, reference = parse(text, dialect=cfg.dialect), self.reference(clip)
        if not recognition(response, reference):
            return f"expected the class {_class_of(reference)!r} in its tag"
        if not think_answer(response, reference, reasoning=cfg.reasoning):
            return f"expected data.reasoning={cfg.reasoning}: {_FORMS[cfg.reasoning]}"
        return None

    def reference(self, clip: Row) -> Reference:
        """The class and its aliases."""
        return reference_of(clip)

    def claims(self, response: ParsedResponse) -> dict[str, Reading | None]:
        """What it writes in its one place."""
        return {"answer": self.read(response)}

    def read(self, response: ParsedResponse) -> str | None:
        """The name in the answer tag, normalised; None if there is none."""
        return normalize_label(response.answer_text or "") or None

    def is_reading(self, value: object) -> bool:
        """Whether it is a normalised name."""
        return isinstance(value, str) and bool(value) and normalize_label(value) == value

    def truth(self, reference: Reference) -> str:
        """The class."""
        return _class_of(reference)

    def constant(self, truths: Sequence[Reading]) -> str:
        """The most frequent class, the alphabet's first of several."""
        if not truths:
            raise ValueError("no classes of the train split: none is the most frequent")
        counts = Counter(map(str, truths))
        return min(counts, key=lambda name: (-counts[name], name))

    def describe_truth(self, reference: Reference) -> str:
        """For example "class arms up"."""
        return f"class {_class_of(reference)}"

    def is_right(self, readings: Sequence[Reading | None], reference: Reference) -> np.ndarray:
        """Which names are the class or an alias. bool [G]"""
        names = names_of(reference)
        return np.array([reading in names for reading in readings])

    def contributions(
        self, claims: Sequence[Claims], references: Sequence[Reference]
    ) -> dict[str, np.ndarray]:
        """1 for each right name, and for each that can be read. float64 [N] each"""
        names = [made.get("answer") for made in claims]
        pairs = zip(names, references, strict=True)
        return {
            _ACCURACY.name: np.array([float(name in names_of(known)) for name, known in pairs]),
            PARSE_RATE.name: np.array([float(name is not None) for name in names]),
        }

    def remarks(self, figures: Mapping[str, float]) -> tuple[str, ...]:
        """Nothing that the figures do not say."""
        return ()

    def histograms(self, references: Sequence[Reference]) -> dict[str, list[int]]:
        """None: a class is no number."""
        return {}

    def cell_means(self, reading: Reading | None, reference: Reference) -> dict[str, float]:
        """None beside the figures."""
        return {}


def candidates(clip: Row, cfg: DataConfig) -> tuple[str, ...]:
    """The classes that are offered for a row, in the order to show; empty for an open question.

    Raises:
        DataError: if the right one is not among all that could be, or if there are fewer than
            `data.num_candidates`.
    """
    if cfg.candidates == "open":
        return ()
    known = cfg.classes or classes_of_file(cfg)
    label = normalize_label(_label_of(clip))
    right = next((name for name in known if normalize_label(name) == label), None)
    if right is None:
        raise DataError(
            f"row {clip.id!r}: its class {label!r} is not among the {len(known)} of data.classes "
            f"({', '.join(known[:5])}, ...)"
        )
    if cfg.candidates == "closed":
        return tuple(known)
    if len(known) < cfg.num_candidates:
        raise DataError(
            f"data.num_candidates={cfg.num_candidates}: {cfg.path} has {len(known)} classes"
        )
    rng = np.random.default_rng(list(hashlib.sha256(clip.id.encode()).digest()))
    others = [name for name in known if name != right]
    chosen = [right, *rng.permutation(others)[: cfg.num_candidates - 1].tolist()]
    return tuple(str(name) for name in rng.permutation(chosen))


def classes_of_file(cfg: DataConfig) -> tuple[str, ...]:
    """The classes of all rows of the file of data, by name; read once for as long as it stays."""
    return _read_classes(cfg.path, FileState.of(cfg.path), cfg.allow_outside)


@lru_cache(maxsize=8)
def _read_classes(path: str, state: FileState, allow_outside: tuple[str, ...]) -> tuple[str, ...]:
    del state  # only names what is remembered
    found: dict[str, str] = {}
    for row in read_rows(path, allow_outside=allow_outside):
        label = _label_of(row)
        found.setdefault(normalize_label(label), label)
    return tuple(found[name] for name in sorted(found))


def _label_of(row: Row) -> str:
    return row.label if isinstance(row, LabelledImage) else row.action

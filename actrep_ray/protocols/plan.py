"""Which trainings a protocol asks for, and what a model is asked about after each of them.

    few-shot        k shots of each class; then the held-out images
    base-to-new     shots of the base classes; then the base and the new classes, apart
    cross-dataset   shots of each data set; then the held-out images of every one
    open-set        shots of the base classes; then known and unknown classes, which none of the
                    names that were taught is right for
    ablation        few-shot, with one setting changed at a time

Each is done by the checkpoint as it is (zero-shot), by SFT and by GRPO on the same shots, for each
k and seed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

PROTOCOLS = ("few-shot", "base-to-new", "cross-dataset", "open-set", "ablation")
METHODS = ("zero-shot", "sft", "grpo")

Classes = Literal["all", "base", "new"]

_OF_BASE = ("base-to-new", "open-set")
_NO_LETTER = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Trial:
    """One way to get a model from the checkpoint.

    Attributes:
        method: Of `METHODS`.
        source: Data set that the shots are of; empty without a training.
        shots: k, of each class; 0 without a training.
        seed: Of the shots and of the training; 0 without one.
        change: A `key=value` of an ablation; empty for the recipes as they are.
    """

    method: str
    source: str
    shots: int
    seed: int
    change: str = ""

    @property
    def name(self) -> str:
        """Of its files."""
        words = [self.method]
        if self.shots:
            words += [self.source, f"{self.shots}-shots", f"seed-{self.seed}"]
        if self.change:
            words.append(_NO_LETTER.sub("-", self.change.lower()).strip("-"))
        return ".".join(words)


@dataclass(frozen=True)
class Exam:
    """Held-out images that models are asked about.

    Attributes:
        source: Their data set.
        classes: Which of its classes.
    """

    source: str
    classes: Classes

    @property
    def name(self) -> str:
        """Of its files, and in tables."""
        return self.source if self.classes == "all" else f"{self.source}.{self.classes}"


def trained_classes(protocol: str) -> Classes:
    """The classes that shots are of."""
    return "base" if protocol in _OF_BASE else "all"


def trials_of(
    protocol: str,
    sources: Sequence[str],
    shots: Sequence[int],
    seeds: Sequence[int],
    changes: Sequence[str],
) -> list[Trial]:
    """All of a protocol, those without a training first.

    Args:
        protocol: Of `PROTOCOLS`.
        sources: Data sets; all but the first are of use to `cross-dataset` alone.
        shots: Each k.
        seeds: Each seed.
        changes: Of an ablation.
    """
    trained = sources if protocol == "cross-dataset" else sources[:1]
    told = ("", *changes)
    found = [Trial("zero-shot", "", 0, 0, change) for change in told]
    return found + [
        Trial(method, source, num, seed, change)
        for change in told
        for source in trained
        for num in shots
        for seed in seeds
        for method in METHODS[1:]
    ]


def exams_of(protocol: str, sources: Sequence[str]) -> list[Exam]:
    """What every model of a protocol is asked about."""
    if protocol in _OF_BASE:
        return [Exam(sources[0], "base"), Exam(sources[0], "new")]
    asked = sources if protocol == "cross-dataset" else sources[:1]
    return [Exam(source, "all") for source in asked]

"""Which of two actions comes first? A clip's action is then written `FIRST_then_SECOND`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actrep_ray.config import DataConfig
from actrep_ray.records import Claims, Reading
from actrep_ray.tasks.base import PARSE_RATE, Breakdown, FigureSpec
from data_prep.schema import Clip
from rewards.grammar.read import ParsedResponse
from rewards.recognition import normalize_label
from rewards.reference import Reference


def _first(reference: Reference) -> str:
    return normalize_label(reference.label or "")


@dataclass(frozen=True)
class Order:
    """Which of two actions comes first?"""

    name: str = "order"
    title: str = "Order"
    reading_name: str = "action"
    reading_form: str = "the name of an action"
    is_counting: bool = False
    kinds: tuple[str, ...] = ("video",)
    figures: tuple[FigureSpec, ...] = (FigureSpec("accuracy", "right", "share"), PARSE_RATE)
    breakdowns: tuple[Breakdown, ...] = (
        Breakdown("actions", "by the first action", "action", _first),
    )

    def question(self, clip: Clip, cfg: DataConfig) -> str:
        """Names both in the alphabet's order, so that the order tells nothing."""
        names = " or ".join(sorted(clip.action.split("_then_")))
        return f"{names}: which comes first? End with <answer>its name</answer>."

    def target(self, clip: Clip, cfg: DataConfig, seed: int) -> str:
        """The first action in its tag."""
        return f"<answer>{_first(self.reference(clip))}</answer>"

    def rejection(self, text: str, clip: Clip, cfg: DataConfig) -> str | None:
        """Why a text does not end with the first action."""
        expected = self.target(clip, cfg, 0)
        return None if text.endswith(expected) else f"expected it to end with {expected}"

    def reference(self, clip: Clip) -> Reference:
        """The first action is the label, which the reward `recognition` judges by."""
        return Reference(label=clip.action.split("_then_")[0], duration_s=clip.duration_s)

    def claims(self, response: ParsedResponse) -> dict[str, Reading | None]:
        """What it writes in its one place."""
        return {"answer": self.read(response)}

    def read(self, response: ParsedResponse) -> str | None:
        """The name in the answer tag."""
        return normalize_label(response.answer_text or "") or None

    def is_reading(self, value: object) -> bool:
        """Whether it is a name."""
        return isinstance(value, str) and bool(value)

    def truth(self, reference: Reference) -> str:
        """The first action."""
        return _first(reference)

    def constant(self, truths: Sequence[Reading]) -> str:
        """The most frequent first action."""
        return max(sorted(map(str, truths)), key=list(truths).count)

    def describe_truth(self, reference: Reference) -> str:
        """For example "first squat"."""
        return f"first {_first(reference)}"

    def is_right(self, readings: Sequence[Reading | None], reference: Reference) -> np.ndarray:
        """Which names are right. bool [G]"""
        return np.array([reading == _first(reference) for reading in readings])

    def contributions(
        self, claims: Sequence[Claims], references: Sequence[Reference]
    ) -> dict[str, np.ndarray]:
        """1 for each right name, and for each that can be read. float64 [N] each"""
        names = [made.get("answer") for made in claims]
        pairs = zip(names, references, strict=True)
        return {
            "accuracy": np.array([float(name == _first(label)) for name, label in pairs]),
            PARSE_RATE.name: np.array([float(name is not None) for name in names]),
        }

    def remarks(self, figures: Mapping[str, float]) -> tuple[str, ...]:
        """Nothing that the figures do not say."""
        return ()

    def histograms(self, references: Sequence[Reference]) -> dict[str, list[int]]:
        """None: a name has no distribution worth a curve."""
        return {}

    def cell_means(self, reading: Reading | None, reference: Reference) -> dict[str, float]:
        """None beside the figures."""
        return {}

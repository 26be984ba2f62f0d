"""Counting as lmms-eval asks for it and judges it, so that its figures are compared with like.

Its tasks repcount, countix and ovr_kinetics (as of commit 05ed5a74) ask for "a single integer" in
16 tokens and take the first number of the text, whatever it stands for::

    "About 12."               12        "1,200 times"    1200, without commas
    "between -3 and 4"        -3        "2.5"            2, rounded half to even
    "rep1: 0.5-1.2s rep2:"    1         "Twelve"         12 in repcount, none in the others

With p the number read and g the true count of a clip:

    repcount, countix   mae_norm   |p - g| / (g + 0.1), and g, undivided, where nothing is read
    ovr                 mae_raw    |p - g|, and g where nothing is read (its "mae")
    each                obo        share with |p - g| <= 1

Question, length and figures are lmms-eval's; frames are ours. It has no task for UCFRep or QUVA.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actrep_ray.config import DataConfig
from actrep_ray.records import Claims, Reading
from actrep_ray.tasks.base import PARSE_RATE, FigureSpec
from actrep_ray.tasks.counting import ANSWER, Counting
from data_prep.rows import Row, clips_among
from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference

MAX_TOKENS = 16
"""Of an answer."""

_ASKED = "\nAnswer with a single integer."
_OFFSET = 0.1  # of the divisor
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)
_VALUES = {word: value for value, word in enumerate(_WORDS)} | {"none": 0}
_OBO = FigureSpec("obo", "OBO", "share")


def first_number(text: str, *, knows_words: bool) -> int | None:
    """The count that lmms-eval reads in a text; None where there is no number.

    Args:
        text: A whole answer.
        knows_words: Whether a text that is nothing but "twelve" is 12.
    """
    plain = text.strip().lower().replace(",", "")
    if knows_words and plain in _VALUES:
        return _VALUES[plain]
    found = _NUMBER.search(plain)
    if found is None or not np.isfinite(value := float(found[0])):
        return None
    return round(value)


@dataclass(frozen=True)
class LmmsEval(Counting):
    """One of its tasks.

    Attributes:
        asks: The question, `{action}` for what the clip's row says.
        knows_words: See `first_number`.
        is_relative: Whether an error is divided by the count.
    """

    title: str = "Counting as lmms-eval judges it"
    reading_form: str = "an integer"
    is_counting: bool = False  # nothing of ours that is about counts applies: lists, totals, exact
    figures: tuple[FigureSpec, ...] = ()
    asks: str = ""
    knows_words: bool = False
    is_relative: bool = True

    def question(self, clip: Row, cfg: DataConfig) -> str:
        """Its own; `data.question` is not asked."""
        [video] = clips_among([clip])
        return self.asks.replace("{action}", video.action) + _ASKED

    def claims(self, response: ParsedResponse) -> dict[str, Reading | None]:
        """The first number alone."""
        return {ANSWER: self.read(response)}

    def read(self, response: ParsedResponse) -> int | None:
        """The first number of the text."""
        return first_number(response.text, knows_words=self.knows_words)

    def is_reading(self, value: object) -> bool:
        """Whether it is an integer, which may be below 0."""
        return isinstance(value, int) and not isinstance(value, bool)

    def contributions(
        self, claims: Sequence[Claims], references: Sequence[Reference]
    ) -> dict[str, np.ndarray]:
        """What each answer adds to each figure. float64 [N] each"""
        numbers = [made.get(ANSWER) for made in claims]
        truth = np.array([self.truth(reference) for reference in references], np.float64)
        is_read = np.array([number is not None for number in numbers])
        error = np.abs(np.array([float(number or 0) for number in numbers]) - truth)
        divided = error / (truth + _OFFSET) if self.is_relative else error
        return {
            self.figures[0].name: np.where(is_read, divided, truth),
            _OBO.name: np.where(is_read, error <= 1, False).astype(np.float64),
            PARSE_RATE.name: is_read.astype(np.float64),
        }

    def remarks(self, figures: Mapping[str, float]) -> tuple[str, ...]:
        """Nothing: there is one claim."""
        return ()


def _figures(name: str, label: str) -> tuple[FigureSpec, ...]:
    return (FigureSpec(name, label, "mean", is_lower_better=True), _OBO, PARSE_RATE)


LMMS_EVAL = (
    LmmsEval(
        name="lmms_eval_repcount",
        figures=_figures("mae_norm", "MAE"),
        asks="How many times is the action repeated in this video?",
        knows_words=True,
    ),
    LmmsEval(
        name="lmms_eval_countix",
        figures=_figures("mae_norm", "MAE"),
        asks="Count the number of repetitions in this clip.",
    ),
    LmmsEval(
        name="lmms_eval_ovr",
        figures=_figures("mae_raw", "mean |p - g|"),
        asks="How many times does '{action}' happen in this video?",
        is_relative=False,
    ),
)
"""Its tasks, by the name of the data set behind "lmms_eval_"."""

"""Counting as lmms-eval asks for it and judges it, so that its figures are compared with like.

Its tasks repcount, countix and ovr_kinetics (as of commit 05ed5a74) ask for "a single integer" in
16 tokens and take the first number of the text, whatever it stands for::

    "About 12."               12        "1,200 times"    1200, without commas
    "between -3 and 4"        -3        "2.5"            2, rounded half to even
    "rep1: 0.5-1.2s rep2:"    1         "Twelve"         12 in repcount, none in the others

after a reasoning in <think> or <analysis> tags that is closed was taken out (`without_reasoning`).

With p the number read and g the true count of a clip:

    repcount, countix   mae_norm   |p - g| / (g + 0.1), and g, undivided, where nothing is read
    ovr                 mae_raw    |p - g|, and g where nothing is read (its "mae")
    each                obo        share with |p - g| <= 1

Its task pushupbench (of release 0.7.3) lets a model reason in 4,096 tokens and reads what comes
behind it: a number in \\boxed{}, else the LAST number, whose sign and thousands it does not know::

    "<think>3 or 4</think> It is 5."   5        "1,200"   200        "twenty"   20

    pushupbench   mae_raw   |p - g|, and g where nothing is read (its "mae")
                  exact     share with p = g (its "exact_match", in percent)
                  obo       share with |p - g| <= 1 (in percent)

Its R squared is no mean over clips and is left out; of several counts that it takes for right our
rows have the first. Question, length and figures are lmms-eval's; frames are ours. It has no task
for UCFRep or QUVA.
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
"""Of an answer, but in pushupbench."""

PUSHUPBENCH_TOKENS = 4096
"""Of an answer there."""

_ASKED = "\nAnswer with a single integer."
_OFFSET = 0.1  # of the divisor
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)
_VALUES = {word: value for value, word in enumerate(_WORDS)} | {"none": 0}
_TENS = {"thirty": 30, "forty": 40, "fifty": 50}
_BOXED = re.compile(r"\\boxed\{(\d+(?:\.\d+)?)\}")
_WHOLE_NUMBER = re.compile(r"\b\d+(?:\.\d+)?\b")
_THOUGHT = "</think>"
_REASONING = (("<think>", _THOUGHT), ("<analysis>", "</analysis>"))
_OBO = FigureSpec("obo", "OBO", "share")
_EXACT = FigureSpec("exact", "exact", "share")


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


def without_reasoning(text: str) -> str:
    """What lmms-eval hands to any of its scorers: a text without the reasoning that it closes.

    One that is never closed stays; of one that the chat template opened all up to its end is gone.
    """
    for opening, closing in _REASONING:
        while (begin := text.find(opening)) >= 0 and (end := text.find(closing, begin)) >= 0:
            text = text[:begin] + text[end + len(closing) :]
        if opening not in text:
            text = text.rpartition(closing)[2]
    return text.strip()


def last_number(text: str) -> int | None:
    """The count that its pushupbench reads in a text; None where there is no number."""
    said = text.strip().rpartition(_THOUGHT)[2].strip()
    plain = said.lower().replace(",", "")
    if (word := (_VALUES | _TENS).get(plain)) is not None:
        return word
    found = _BOXED.findall(said)[:1] or _WHOLE_NUMBER.findall(said)[-1:]
    if not found or not np.isfinite(value := float(found[0])):
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
        return first_number(without_reasoning(response.text), knows_words=self.knows_words)

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


@dataclass(frozen=True)
class PushupBench(LmmsEval):
    """Its task that takes the last number."""

    is_relative: bool = False

    def question(self, clip: Row, cfg: DataConfig) -> str:
        """Its own, with the action in words."""
        [video] = clips_among([clip])
        return self.asks.replace("{action}", video.action.replace("_", " ").strip())

    def read(self, response: ParsedResponse) -> int | None:
        """The last number of the text."""
        return last_number(without_reasoning(response.text))

    def contributions(
        self, claims: Sequence[Claims], references: Sequence[Reference]
    ) -> dict[str, np.ndarray]:
        """What each answer adds to each figure. float64 [N] each"""
        is_right = [
            made.get(ANSWER) == self.truth(reference)
            for made, reference in zip(claims, references, strict=True)
        ]
        found = super().contributions(claims, references)
        return found | {_EXACT.name: np.array(is_right, np.float64)}


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
    PushupBench(
        name="lmms_eval_pushupbench",
        figures=(*_figures("mae_raw", "mean |p - g|"), _EXACT),
        asks="Watch this video carefully and count the number of repetitions of "
        '"{action}". Provide the count as a single integer.',
    ),
)
"""Its tasks, by the name of the data set behind "lmms_eval_"."""

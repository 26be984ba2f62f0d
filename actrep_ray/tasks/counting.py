"""Counting repeated actions: the one owner of what a count is asked, read and judged by.

With p the predicted and g the true count of a clip (RepNet and QUVA report OBO *error*; here higher
is better, as in TransRAC)::

    MAE   mean of |p - g| / (g + 0.1)       OBO   share with |p - g| <= 1
    RMSE  square root of mean (p - g)^2     OBZ   share with p = g ("exact")

An answer claims its count in up to three places: in its answer tag, as its total, and by the number
of repetitions that it lists. Each figure is of one of them as it was written, whatever the others
say; `consistent` is the share of answers that write one number in all three. Where the three
differ, `rewards.claims.model_count` says which one is the model's count.

A claim that is missing or cannot be read is wrong in OBO and OBZ and is p = 0 in MAE and RMSE.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actrep_ray.config import DataConfig
from actrep_ray.records import Claims, Reading
from actrep_ray.tasks.base import PARSE_RATE, Breakdown, FigureSpec
from data_prep.cot import rejection, render_answer
from data_prep.references import reference_of
from data_prep.rows import Row
from data_prep.schema import Clip
from data_prep.strata import BINS, stratum_of
from rewards.claims import model_count, num_listed
from rewards.format import think_answer
from rewards.grammar.read import ParsedResponse, parse
from rewards.reference import Reference

ANSWER, TOTAL, LIST = CLAIMS = ("answer", "total", "list")

_MAE_OFFSET = 0.1  # keeps g = 0 defined; the value of the published metrics
_MOST_GAP = 0.05  # of exact by answer and by list: above it, one says nothing about the other
_MAE, _OBO, _OBZ, _RMSE = (
    FigureSpec("mae", "MAE", "mean", is_lower_better=True),
    FigureSpec("obo", "OBO", "share"),
    FigureSpec("obz", "exact", "share"),
    FigureSpec("rmse", "RMSE", "root_mean", is_lower_better=True, is_of_step=False),
)
_CONSISTENT = FigureSpec("consistent", "consistent", "share", by=(LIST, TOTAL))
_ROUNDING = 1e-9
_CANNOT_READ_ITS_LIST = (
    "the model does not read off its own list, and what it gains by answer may be copying alone. "
    "Remedy: more SFT (sft.num_steps) on answers whose total and answer repeat their list, for "
    "every length of list; then reward.weights.consistency=0.2, count rewards with evidence=worked."
)
_ANSWERS_BESIDE_ITS_LIST = (
    "the model answers beside its own list, which is no evidence for the count. "
    "Remedy: reward the list too (reward.weights.cycles where cycles are marked, "
    "reward.weights.consistency=0.2 where only counts are known), with evidence=worked."
)


def _beside(figure: FigureSpec, claim: str) -> FigureSpec:
    """A figure of the answer, of another claim."""
    return replace(
        figure,
        name=f"{figure.name}_{claim}",
        label=f"{figure.label} by {claim}",
        by=(claim,),
        twin=figure.name,
        is_needed=claim == LIST,
    )


def is_consistent(claims: Claims) -> bool:
    """Whether list, total and answer are there and the same number."""
    answer = claims.get(ANSWER)
    return answer is not None and answer == claims.get(TOTAL) == claims.get(LIST)


def is_bare(claims: Claims) -> bool:
    """Whether nothing beside the answer tells a number: neither a list nor a total."""
    return claims.get(TOTAL) is None and not claims.get(LIST)


def contradicts_itself(claims: Claims) -> bool:
    """Whether an answer holds two numbers that differ, or a list and a total without an answer."""
    return not is_bare(claims) and not is_consistent(claims)


def describe_claims(claims: Claims) -> str:
    """Whether list, total and answer are one number, in words."""
    if is_consistent(claims):
        return "consistent: list, total and answer are the same number"
    if is_bare(claims):
        return "no list and no total beside the answer"
    told = ", ".join(f"{name} {'none' if n is None else n}" for name, n in claims.items())
    return f"NOT consistent: {told}; the count is the answer's"


def _judged(numbers: Sequence[Reading | None], truth: np.ndarray) -> dict[str, np.ndarray]:
    """What N numbers add to each figure, given the true ones. [N] each"""
    is_made = np.array([number is not None for number in numbers])
    error = np.abs(np.array([float(number or 0) for number in numbers]) - truth)
    return {
        _MAE.name: error / (truth + _MAE_OFFSET),
        _OBO.name: is_made & (error <= 1),
        _OBZ.name: is_made & (error == 0),
        _RMSE.name: error**2,
    }


_FORMS = {
    "before": "List each repetition.",
    "none": "Write the number alone in <answer></answer>.",
    "after": "Write the number in <answer></answer>, then list each repetition in <{tag}></{tag}>.",
}
_ANSWER_ENDS = "</answer>"


def _answer_first(text: str) -> str:
    """An answer of the grammar with its reasoning behind."""
    reasoning, begin, answer = text.rpartition("\n<answer>")
    return f"{begin.strip()}{answer}\n{reasoning}"


def _answer_last(text: str) -> str:
    """And back."""
    answer, end, reasoning = text.partition(_ANSWER_ENDS)
    return f"{reasoning.strip()}\n{answer}{end}"


def _video(row: Row) -> Clip:
    assert isinstance(row, Clip), "nothing repeats in a still image, and counting is given none"
    return row


def _count_of(reference: Reference) -> int:
    assert reference.count is not None, "a clip to count in has a count"
    return reference.count


def _bin_of(reference: Reference) -> str:
    return stratum_of(_count_of(reference), BINS).name


def _action_of(reference: Reference) -> str:
    return reference.label or ""


@dataclass(frozen=True)
class Counting:
    """How often is the action repeated?"""

    name: str = "counting"
    title: str = "Counting"
    reading_name: str = "count"
    reading_form: str = "an integer of at least 0"
    is_counting: bool = True
    kinds: tuple[str, ...] = ("video",)
    figures: tuple[FigureSpec, ...] = (
        *(_MAE, _OBO, _OBZ, _RMSE, PARSE_RATE, _CONSISTENT),
        *(_beside(figure, claim) for claim in (LIST, TOTAL) for figure in (_MAE, _OBO, _OBZ)),
    )
    breakdowns: tuple[Breakdown, ...] = (
        Breakdown("bins", "by true count", "bin", _bin_of, tuple(bin_.name for bin_ in BINS)),
        Breakdown("actions", "by action", "action", _action_of),
    )

    def question(self, clip: Row, cfg: DataConfig) -> str:
        """`data.question` about the clip's action, with the form of the answer for `{form}`."""
        form = _FORMS[cfg.reasoning].replace("{tag}", cfg.dialect)
        words = cfg.question.replace("{form}", form)
        return words.replace("{action}", _video(clip).action.replace("_", " "))

    def target(self, clip: Row, cfg: DataConfig, seed: int) -> str:
        """The answer that the clip's marks are rendered to; of a bare answer its count alone."""
        if cfg.reasoning == "none":
            return f"<answer>{_video(clip).count}</answer>"
        whole = render_answer(
            _video(clip), dialect=cfg.dialect, variety=cfg.wording_variety, seed=seed
        )
        return whole if cfg.reasoning == "before" else _answer_first(whole)

    def rejection(self, text: str, clip: Row, cfg: DataConfig) -> str | None:
        """Why a text has another form, does not agree with the clip's marks, or earns too little.

        A text that reasons behind its answer is judged as the same one with the answer last.
        """
        if cfg.reasoning == "before":
            return rejection(text, _video(clip), dialect=cfg.dialect)
        response = parse(text, dialect=cfg.dialect)
        if response.count != _video(clip).count:
            return "wrong_count"
        if not think_answer(response, self.reference(clip), reasoning=cfg.reasoning):
            return "malformed"
        if cfg.reasoning == "none":
            return None
        return rejection(_answer_last(text), _video(clip), dialect=cfg.dialect)

    def reference(self, clip: Row) -> Reference:
        """Count, marks that agree with it, length and action."""
        return reference_of(clip)

    def claims(self, response: ParsedResponse) -> dict[str, Reading | None]:
        """The answer, the total, and the number of repetitions that are listed."""
        return {ANSWER: response.count, TOTAL: response.total, LIST: num_listed(response)}

    def read(self, response: ParsedResponse) -> int | None:
        """The model's count, as rewards take it."""
        return model_count(response)

    def is_reading(self, value: object) -> bool:
        """Whether it is an integer of at least 0, and no boolean."""
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    def truth(self, reference: Reference) -> int:
        """The true count."""
        return _count_of(reference)

    def constant(self, truths: Sequence[Reading]) -> int:
        """The (lower) median count."""
        if not truths:
            raise ValueError("no counts of the train split: no median to predict")
        return sorted(map(int, truths))[(len(truths) - 1) // 2]

    def describe_truth(self, reference: Reference) -> str:
        """For example "true count 4"."""
        return f"true count {reference.count}"

    def is_right(self, readings: Sequence[Reading | None], reference: Reference) -> np.ndarray:
        """Which counts are exactly right. bool [G]"""
        return np.array([reading == reference.count for reading in readings])

    def contributions(
        self, claims: Sequence[Claims], references: Sequence[Reference]
    ) -> dict[str, np.ndarray]:
        """What each answer adds to each figure; of `rmse` the SQUARED error. float64 [N] each"""
        truth = np.array([_count_of(reference) for reference in references], np.float64)
        columns = {PARSE_RATE.name: np.array([made.get(ANSWER) is not None for made in claims])}
        columns[_CONSISTENT.name] = np.array([is_consistent(made) for made in claims])
        for claim in CLAIMS:
            suffix = "" if claim == ANSWER else f"_{claim}"
            numbers = [made.get(claim) for made in claims]
            for name, column in _judged(numbers, truth).items():
                columns[name + suffix] = column
        return {figure.name: np.asarray(columns[figure.name], float) for figure in self.figures}

    def remarks(self, figures: Mapping[str, float]) -> tuple[str, ...]:
        """Where exact by answer and by list part by more than 0.05: which of the two to mend."""
        by_list = figures.get(_beside(_OBZ, LIST).name)
        if by_list is None or abs(by_list - figures[_OBZ.name]) <= _MOST_GAP + _ROUNDING:
            return ()
        told = f"exact is {figures[_OBZ.name]:.3f} by answer and {by_list:.3f} by list"
        if _CONSISTENT.name in figures:
            told += f", and {figures[_CONSISTENT.name]:.0%} of the answers are consistent"
        is_misread = by_list > figures[_OBZ.name]
        return (f"{told}: {_CANNOT_READ_ITS_LIST if is_misread else _ANSWERS_BESIDE_ITS_LIST}",)

    def histograms(self, references: Sequence[Reference]) -> dict[str, list[int]]:
        """The true counts."""
        return {"counts": [_count_of(reference) for reference in references]}

    def cell_means(self, reading: Reading | None, reference: Reference) -> dict[str, float]:
        """The true count, and the predicted one where it can be read."""
        predicted = math.nan if reading is None else float(reading)
        return {"true_count": float(_count_of(reference)), "predicted_count": predicted}

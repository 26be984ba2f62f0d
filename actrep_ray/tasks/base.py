"""What a task is: all that a run has to ask about what it trains.

                                                   ┌─ read ───► reading ─► is_right
    clip ─┬─ question ──► model ─► text ─► grammar ┴─ claims ──────────────► contributions
          ├─ target ────► SFT                                                     ▲
          └─ reference ─────────────────────────────────────────────► breakdowns ─┘

Driver, pools, learner and engines know this Protocol and no task by name. How often an answer is
right is computed once, from `contributions`: a training step takes the means of some figures
(`step_accuracy`), an evaluation those of all, with intervals. Figures are of what answers write
(`claims`), never of what a task makes of it where an answer contradicts itself (`read`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from actrep_ray.config import DataConfig
from actrep_ray.records import Claims, Reading
from data_prep.rows import Row
from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference


@dataclass(frozen=True)
class FigureSpec:
    """One figure that answers are judged by.

    Attributes:
        name: Its key in metrics and files, for example "mae".
        label: Its name in tables.
        kind: "share" of answers (contributions of 0 and 1), "mean" of the contributions, or the
            square root of their mean.
        is_lower_better: Whether it is an error.
        is_of_step: Whether each training step logs it too, as `train/<name>`.
        by: The claims that it judges instead of the answer, or beside it; empty for a figure of the
            answer. It is told where each of them is made at least once.
        twin: The figure that judges the answer in the same way.
        is_needed: Whether a change in `twin` is better only if it is so by this figure too.
    """

    name: str
    label: str
    kind: Literal["share", "mean", "root_mean"]
    is_lower_better: bool = False
    is_of_step: bool = True
    by: tuple[str, ...] = ()
    twin: str = ""
    is_needed: bool = False

    @property
    def header(self) -> str:
        """Its name with an arrow to where it is better."""
        return f"{self.label} {'↓' if self.is_lower_better else '↑'}"

    @property
    def is_share(self) -> bool:
        """Whether it is a share of answers, of which an interval is known exactly."""
        return self.kind == "share"


PARSE_RATE = FigureSpec("parse_rate", "parsed", "share")
"""The share of answers that can be read; every task has it among its figures."""


@dataclass(frozen=True)
class Breakdown:
    """What results are shown by.

    Attributes:
        name: Its key in files, for example "bins".
        title: Of its table, for example "by true count".
        column: Of tables with several breakdowns, for example "bin".
        cell_of: The cell that a clip is counted in.
        order: All cells in the order to show them; None for the alphabet's.
    """

    name: str
    title: str
    column: str
    cell_of: Callable[[Reference], str]
    order: tuple[str, ...] | None = None

    def sort(self, cells: Iterable[str]) -> list[str]:
        """Some cells in the order to show them."""
        return sorted(cells) if self.order is None else sorted(cells, key=self.order.index)


class Task(Protocol):
    """What is asked about clips, and how answers are read and judged.

    A `clip` here is a row of a kind that the task asks about: a still image too, where it does.
    """

    @property
    def name(self) -> str:
        """What it is called; one of ours is named so in a recipe's `task`."""
        ...

    @property
    def title(self) -> str:
        """What is done, as the first word of a heading."""
        ...

    @property
    def reading_name(self) -> str:
        """What a reading is, in tables and files ("count"); its plural ends with an s."""
        ...

    @property
    def reading_form(self) -> str:
        """What a reading looks like in a file, for messages ("an integer of at least 0")."""
        ...

    @property
    def is_counting(self) -> bool:
        """Whether a reading is a number of repetitions, as the periodicity detector gives it."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of rows that it asks about, of `data_prep.rows.KINDS`; it is given no others."""
        ...

    @property
    def figures(self) -> tuple[FigureSpec, ...]:
        """What answers are judged by, the most important first."""
        ...

    @property
    def breakdowns(self) -> tuple[Breakdown, ...]:
        """What results are shown by; tables with several have the first one innermost."""
        ...

    # --- what is asked and taught

    def question(self, clip: Row, cfg: DataConfig) -> str:
        """The text asked about a clip."""
        ...

    def target(self, clip: Row, cfg: DataConfig, seed: int) -> str:
        """The answer that SFT teaches where no file of answers is given.

        Raises:
            DataError: naming the clip whose labels do not suffice for one.
        """
        ...

    def rejection(self, text: str, clip: Row, cfg: DataConfig) -> str | None:
        """Why a text may not be taught as the answer about a clip; None if it may."""
        ...

    # --- what is right

    def reference(self, clip: Row) -> Reference:
        """What rewards and scoring know about a clip; never given to a predictor."""
        ...

    def claims(self, response: ParsedResponse) -> Claims:
        """All that an answer writes of its reading, by name; "answer" is one of the names."""
        ...

    def read(self, response: ParsedResponse) -> Reading | None:
        """What an answer says, by one rule wherever it is asked; None where it cannot be read."""
        ...

    def is_reading(self, value: object) -> bool:
        """Whether a value of a file is a reading of this task."""
        ...

    def truth(self, reference: Reference) -> Reading:
        """The right reading."""
        ...

    def constant(self, truths: Sequence[Reading]) -> Reading:
        """The one answer to give to all clips, knowing those of the train split.

        Args:
            truths: Right readings of the train split, at least one.
        """
        ...

    def describe_truth(self, reference: Reference) -> str:
        """The right answer, for a person who reads a wrong one."""
        ...

    def is_right(self, readings: Sequence[Reading | None], reference: Reference) -> np.ndarray:
        """Which of several answers about one clip are right. bool [G]"""
        ...

    # --- what is measured

    def contributions(
        self, claims: Sequence[Claims], references: Sequence[Reference]
    ) -> Mapping[str, np.ndarray]:
        """What each answer adds to each figure, by the figure's name. float64 [N] each

        Args:
            claims: What each of N answers writes; what is missing or None is wrong.
            references: Of their clips, in the same order.
        """
        ...

    def remarks(self, figures: Mapping[str, float]) -> tuple[str, ...]:
        """What somebody who reads only the first figures would miss, each with its remedy.

        Args:
            figures: Values of figures that could be told, by name.
        """
        ...

    def histograms(self, references: Sequence[Reference]) -> dict[str, list[int]]:
        """Numbers whose distribution over clips is worth a curve, by name; may be empty."""
        ...

    def cell_means(self, reading: Reading | None, reference: Reference) -> dict[str, float]:
        """Columns of the broken-down table beside the figures; NaN is left out of their means."""
        ...


def labels_of(clips: Iterable[Row], task: Task) -> dict[str, Reference]:
    """What a task's rewards and scoring know about each clip, by its id."""
    return {clip.id: task.reference(clip) for clip in clips}


def told_figures(claims: Iterable[Claims], task: Task) -> tuple[FigureSpec, ...]:
    """A task's figures that can be told of some answers.

    Where none of them makes a claim (lists anything, writes a total), nothing is judged by it: bare
    counts are not wrong by a list that nobody asked for.
    """
    made = {name for written in claims for name, value in written.items() if value}
    return tuple(figure for figure in task.figures if made.issuperset(figure.by))


def step_accuracy(
    claims: Sequence[Claims], references: Sequence[Reference], task: Task
) -> dict[str, float]:
    """How right the answers of a training step were, by figure; empty without answers."""
    if not claims:
        return {}
    values = task.contributions(claims, references)
    return {
        figure.name: float(reduce_figures(values[figure.name][:, None], (figure,))[0])
        for figure in told_figures(claims, task)
        if figure.is_of_step
    }


def reduce_figures(values: np.ndarray, figures: Sequence[FigureSpec]) -> np.ndarray:
    """Figures of answers: contributions [..., N, F] -> [..., F]."""
    means: np.ndarray = values.mean(axis=-2)
    roots = [i for i, figure in enumerate(figures) if figure.kind == "root_mean"]
    means[..., roots] = np.sqrt(means[..., roots])
    return means

"""Data frames of an evaluation as tables of texts, for the console and for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from actrep_ray.evaluation.answer_figures import shown_ks
from actrep_ray.evaluation.frames import cells_frame, matrix_figures, method_of
from actrep_ray.evaluation.gain import TERMS, Gain
from actrep_ray.evaluation.intervals import Interval
from actrep_ray.evaluation.scores import Figures, Metrics
from actrep_ray.run.console import as_text
from actrep_ray.run.faults import ROLES, FaultSums
from actrep_ray.tasks.base import PARSE_RATE, FigureSpec, Task

_MOST_READINGS = 12  # rows of the table of predictions
_MOSTLY_READ = 0.5  # share of answers; a predictor below it is marked
_COLLAPSE_SHARE = 0.5  # of one reading among the predictions: worth a word
_PASS_AT_K = FigureSpec("pass_at_k", "pass@k", "mean")
_DONE_AGAIN = {"rollout": "prompts", "reward": "groups", "learner": "steps"}


@dataclass(frozen=True)
class TableData:
    """A table, for the console and for the page.

    Attributes:
        title: What it shows.
        columns: Headers; the first column is text, the others are numbers.
        rows: Cells.
        note: A sentence below it.
        is_main: Whether it belongs to the few that a run is judged by.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    is_main: bool = False

    def to_rich(self) -> Table:
        """The table for a console; what it says is text, never markup."""
        table = Table(
            title=as_text(self.title),
            caption=as_text(self.note) if self.note else None,
            box=box.SIMPLE_HEAD,
            title_justify="left",
            caption_justify="left",
            title_style="bold",
        )
        for i, column in enumerate(self.columns):
            table.add_column(as_text(column), justify="right" if i else "left", no_wrap=i > 0)
        for row in self.rows:
            table.add_row(*map(as_text, row))
        return table


def comparison_table(predictors: pd.DataFrame, task: Task) -> TableData:
    """One row for each predictor, with intervals, of `predictors_frame`."""
    figures, found = _of_answers(task), _rows(predictors)
    note = (
        f"Below each figure: its 95% interval ({intervals_told(figures)}). An answer that cannot "
        "be parsed is wrong."
    )
    is_unread = [row[PARSE_RATE.name] < _MOSTLY_READ for row in found]
    if any(is_unread):
        note += " * Most answers give no count, and stand for none: a mean error says little."
    rows = tuple(
        (row["predictor"] + (" *" if unread else ""), *_cells(row, figures))
        for row, unread in zip(found, is_unread, strict=True)
    )
    title = f"{task.title} on {predictors['clips'].iloc[0]} held-out clips"
    return TableData(title, ("", *_headers(figures)), rows, note, is_main=True)


def claims_table(predictors: pd.DataFrame, task: Task) -> TableData | None:
    """Figures by the answer and by each other claim that was made, of `predictors_frame`.

    None where no predictor makes another claim than its answer.
    """
    twins = _twins(task)
    judged = next(iter(twins.values()), [])
    of_answer = [figure for figure in task.figures if figure.name in {f.twin for f in judged}]
    overall = [f for f in task.figures if len(f.by) > 1 and f.name in predictors]
    rows: list[tuple[str, ...]] = []
    for row in _rows(predictors):
        made = {claim: t for claim, t in twins.items() if _is_told(row, t)}
        if not made:
            continue
        rest = _cells(row, overall)
        rows.append((f"{row['predictor']} by answer", *_cells(row, of_answer), *rest))
        for claim, figures in made.items():
            rows.append(
                (f"{row['predictor']} by {claim}", *_cells(row, figures), *("",) * len(rest))
            )
    if not rows:
        return None
    note = (
        "Consistent: list, total and answer are the same number. Each row is of what was written "
        "there, whatever stands elsewhere."
    )
    headers = _headers([*of_answer, *overall])
    title = f"By {_listed(['answer', *twins])}"
    return TableData(title, ("", *headers), tuple(rows), note, is_main=True)


def difference_table(differences: pd.DataFrame, task: Task) -> TableData:
    """One row for each pair of predictors and figure: what changed, of `differences_frame`."""
    headers = {figure.name: figure.header for figure in task.figures}
    has_claims = any(figure.is_needed for figure in task.figures)
    rows = tuple(
        (
            f"{row['predictors']}: {headers[row['figure']]}",
            _change(Interval(row["change"], row["change_low"], row["change_high"])),
            row["verdict"],
        )
        for row in _rows(differences)
    )
    note = (
        "95% intervals by paired bootstrap: both predictors on the same resampled clips; sure if "
        "the interval leaves 0 out."
    )
    if has_claims:
        note += " Better is what is better by answer and by list."
    columns = ("", "change", "verdict")
    return TableData("Paired differences", columns, rows, note, is_main=True)


def pass_table(pass_at: pd.DataFrame) -> TableData:
    """One row for each predictor that was sampled, of `pass_frame`; k = 1, 2, 4, ... and the most.

    A predictor that has fewer samples than another has no figure where they do not reach.
    """
    ks = shown_ks(int(pass_at["k"].max()))
    rows = []
    for name in pass_at["predictor"].unique():
        found = {row["k"]: row for row in _rows(pass_at[pass_at["predictor"] == name])}
        cells = [_cells(found[k], (_PASS_AT_K,))[0] if k in found else "–" for k in ks]
        rows.append((name, *cells))
    note = (
        "Chance that at least one of k samples is right, unbiased from all of them (Chen et al. "
        "2021). Below: 95% interval over clips (Wilson where each counts 0 or 1, else bootstrap)."
    )
    columns = ("", *(f"pass@{k}" for k in ks))
    return TableData("Right answers among samples", columns, tuple(rows), note, is_main=True)


def matrix_tables(matrix: pd.DataFrame, task: Task) -> list[TableData]:
    """A table for each figure of `matrix_frame`: predictors by data sets."""
    tables = []
    for figure in matrix_figures(task):
        datasets = datasets_of(matrix, figure)
        of_sets = [replace(figure, name=f"{dataset} {figure.name}") for dataset in datasets]
        rows = tuple((row["predictor"], *_cells(row, of_sets)) for row in _rows(matrix))
        clips = [int(matrix[f"{dataset} clips"].iloc[0]) for dataset in datasets]
        heads = (f"{name}, {number}" for name, number in zip(datasets, clips, strict=True))
        note = f"After each data set: its clips. 95% intervals ({intervals_told([figure])})."
        title = f"{figure.header} by data set"
        tables.append(TableData(title, ("", *heads), rows, note, is_main=True))
    return tables


def datasets_of(matrix: pd.DataFrame, figure: FigureSpec) -> list[str]:
    """The data sets of `matrix_frame`, in order."""
    return [
        name.removesuffix(f" {figure.name}")
        for name in matrix.columns
        if name.endswith(f" {figure.name}")
    ]


def gain_table(pair: str, gain: Gain) -> TableData:
    """What a change in exact is the sum of; each column adds up to its last row."""
    rows: list[tuple[str, ...]] = [
        (text, f"{gain.before[name]:+.3f}", f"{gain.after[name]:+.3f}", _change(gain.change[name]))
        for name, text in TERMS.items()
    ]
    ends = (f"{sum(side.values()):+.3f}" for side in (gain.before, gain.after))
    rows.append(("exact by answer", *ends, _change(gain.total)))
    note = (
        "The terms add up to exact by answer. The first two are exact by list: counting. The next "
        "two are what is lost between list and answer: reading off. In the right place: each "
        "listed repetition matches the marked one; without marks a list counts as elsewhere."
    )
    columns = ("", "before", "after", "change")
    return TableData(f"Where exact changed: {pair}", columns, tuple(rows), note, is_main=True)


def faults_table(stage: str, sums: FaultSums) -> TableData:
    """What a training lost and made good, by kind of worker."""
    rows = []
    for role in ROLES:
        kinds = sorted((kind, num) for (of, kind), num in sums.kinds.items() if of == role)
        listed = ", ".join(f"{kind} {num}" for kind, num in kinds) or "none"
        again = f"{sums.given_again[role]} {_DONE_AGAIN[role]}"
        rows.append(
            (role, str(sums.lost[role]), listed, again, f"{sums.lost_s.get(role, 0.0):.0f}")
        )
    note = "Seconds with a worker less; without a rank the whole run stands still."
    columns = ("workers", "lost", "how", "done again", "seconds")
    return TableData(f"Faults in {stage}", columns, tuple(rows), note)


def counts_table(name: str, counts: pd.DataFrame) -> TableData:
    """Which counts a predictor answers and which never, of its rows of `counts_frame`."""
    shown = ("clips", "answered", "right", "listed_right")
    rows = tuple((str(row["count"]), *(str(row[key]) for key in shown)) for row in _rows(counts))
    true = counts[counts["clips"] > 0]
    notes = [
        f"{told}: {_listed([str(count) for count in found['count']])} "
        f"({found['clips'].sum()} of {true['clips'].sum()} clips)."
        for told, found in (
            ("Never answered", true[true["answered"] == 0]),
            ("Answered, and never right", true[(true["answered"] > 0) & (true["right"] == 0)]),
        )
        if len(found)
    ]
    note = " ".join(notes) or "Every true count is answered right at least once."
    columns = ("count", "clips", "answered", "right", "right by list")
    title = f"{name}: counts that are true or were answered"
    return TableData(title, columns, rows, note, is_main=True)


def metrics_tables(metrics: Metrics, name: str, task: Task) -> list[TableData]:
    """Tables of one predictor: all and parsed answers, and one for each breakdown."""
    overall: dict[str, Figures] = {"all": metrics}
    if metrics.parsed_only is not None and metrics.parsed_only.num_clips < metrics.num_clips:
        overall["parsed only"] = metrics.parsed_only
    figures = _of_answers(task)
    tables = [_cells_table(f"{name}: all answers", overall, figures)]
    for breakdown in task.breakdowns:
        cells = metrics.breakdowns[breakdown.name]
        shown = {cell.replace("_", " "): figures for cell, figures in cells.items()}
        tables.append(_cells_table(f"{name}: {breakdown.title}", shown, figures))
        for claim, twins in _twins(task).items():
            if twins[0].is_needed and twins[0].name in metrics.values:
                beside = [f for f in task.figures if len(f.by) > 1 and f.name in metrics.values]
                title = f"{name}: {breakdown.title}, by {claim}"
                labels = {figure.name: figure.label for figure in task.figures}
                plain = [replace(figure, label=labels[figure.twin]) for figure in twins]
                tables.append(_cells_table(title, shown, [*plain, *beside]))
    return tables


def histogram_table(readings: pd.DataFrame, task: Task) -> TableData:
    """The readings that were given most often, of `readings_frame`, beside how often they are true.

    A model that answers the same whatever it sees shows here first.
    """
    rows = tuple(
        (row["reading"], str(row["answered"]), f"{row['share']:.0%}", str(row["true"]))
        for row in _rows(readings.head(_MOST_READINGS))
    )
    rest = len(readings) - len(rows)
    name = task.reading_name
    note = f"{rest} other {name}s were predicted as well." if rest else ""
    if readings["share"].iloc[0] > _COLLAPSE_SHARE:
        note = f"More than half of the answers are {readings['reading'].iloc[0]}. {note}".strip()
    return TableData("Most frequent answers", (name, "answered", "share", "true"), rows, note)


def intervals_told(figures: Sequence[FigureSpec]) -> str:
    """Which figures have which intervals, in words."""
    by_method: dict[str, list[str]] = {"Wilson": [], "bootstrap": []}
    for figure in figures:
        by_method[method_of(figure)].append(figure.label)
    told = {"Wilson": "Wilson", "bootstrap": "bootstrap over clips"}
    return "; ".join(
        f"{_listed(labels)}: {told[method]}" for method, labels in by_method.items() if labels
    )


def _listed(labels: Sequence[str]) -> str:
    *first, last = labels
    return f"{', '.join(first)} and {last}" if first else last


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _headers(figures: Sequence[FigureSpec]) -> list[str]:
    return [figure.header for figure in figures]


def _of_answers(task: Task) -> list[FigureSpec]:
    """The figures that every answer is judged by, whatever else it claims."""
    return [figure for figure in task.figures if not figure.by]


def _twins(task: Task) -> dict[str, list[FigureSpec]]:
    """By each other claim: the figures that judge it as the answer is judged."""
    found: dict[str, list[FigureSpec]] = {}
    for figure in task.figures:
        if figure.twin:
            found.setdefault(figure.by[0], []).append(figure)
    return found


def _is_told(row: Mapping[str, Any], figures: Sequence[FigureSpec]) -> bool:
    return all(figure.name in row and not np.isnan(row[figure.name]) for figure in figures)


def _change(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _cells(row: Mapping[str, Any], figures: Sequence[FigureSpec]) -> list[str]:
    """The figures of a row, each above its interval."""
    names = [figure.name for figure in figures]
    return [_with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in names]


def _cells_table(
    title: str, cells: Mapping[str, Figures], figures: Sequence[FigureSpec]
) -> TableData:
    rows = tuple(
        (row["cell"], str(row["clips"]), *_cells(row, figures)) for row in _rows(cells_frame(cells))
    )
    note = f"95% intervals ({intervals_told(figures)})."
    return TableData(title, ("", "clips", *_headers(figures)), rows, note)


def _with_interval(value: float, low: float, high: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.3f}" + ("" if np.isnan(low) else f"\n{_short(low)}–{_short(high)}")


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"

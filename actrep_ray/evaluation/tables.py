"""Data frames of an evaluation as tables of texts, for the console and for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from actrep_ray.evaluation.frames import cells_frame, method_of
from actrep_ray.evaluation.scores import Figures, Metrics
from actrep_ray.run.console import as_text
from actrep_ray.tasks.base import Task

_MOST_READINGS = 12  # rows of the table of predictions
_COLLAPSE_SHARE = 0.5  # of one reading among the predictions: worth a word


@dataclass(frozen=True)
class TableData:
    """A table, for the console and for the page.

    Attributes:
        title: What it shows.
        columns: Headers; the first column is text, the others are numbers.
        rows: Cells.
        note: A sentence below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

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
    return TableData(
        f"{task.title} on {predictors['clips'].iloc[0]} held-out clips",
        ("", *_headers(task)),
        tuple((row["predictor"], *_cells(row, task)) for row in _rows(predictors)),
        f"Below each figure: its 95% interval ({intervals_told(task)}). An answer that cannot be "
        "parsed is wrong.",
    )


def difference_table(differences: pd.DataFrame, task: Task) -> TableData:
    """One row for each pair of predictors and figure: what changed, of `differences_frame`."""
    headers = {figure.name: figure.header for figure in task.figures}
    rows = tuple(
        (
            f"{row['predictors']}: {headers[row['figure']]}",
            f"{row['change']:+.3f} [{row['change_low']:+.3f}, {row['change_high']:+.3f}]",
            row["verdict"],
        )
        for row in _rows(differences)
    )
    note = (
        "95% intervals by paired bootstrap: both predictors on the same resampled clips; sure if "
        "the interval leaves 0 out."
    )
    return TableData("Paired differences", ("", "change", "verdict"), rows, note)


def metrics_tables(metrics: Metrics, name: str, task: Task) -> list[TableData]:
    """Tables of one predictor: all and parsed answers, and one for each breakdown."""
    overall: dict[str, Figures] = {"all": metrics}
    if metrics.parsed_only is not None and metrics.parsed_only.num_clips < metrics.num_clips:
        overall["parsed only"] = metrics.parsed_only
    tables = [_cells_table(f"{name}: all answers", overall, task)]
    for breakdown in task.breakdowns:
        cells = metrics.breakdowns[breakdown.name]
        shown = {cell.replace("_", " "): figures for cell, figures in cells.items()}
        tables.append(_cells_table(f"{name}: {breakdown.title}", shown, task))
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


def intervals_told(task: Task) -> str:
    """Which figures have which intervals, in words."""
    by_method: dict[str, list[str]] = {"Wilson": [], "bootstrap": []}
    for figure in task.figures:
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


def _headers(task: Task) -> list[str]:
    return [figure.header for figure in task.figures]


def _cells(row: Mapping[str, Any], task: Task) -> list[str]:
    """The figures of a row, each above its interval."""
    names = [figure.name for figure in task.figures]
    return [_with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in names]


def _cells_table(title: str, cells: Mapping[str, Figures], task: Task) -> TableData:
    rows = tuple(
        (row["cell"], str(row["clips"]), *_cells(row, task)) for row in _rows(cells_frame(cells))
    )
    note = f"95% intervals ({intervals_told(task)})."
    return TableData(title, ("", "clips", *_headers(task)), rows, note)


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f}" + ("" if np.isnan(low) else f"\n{_short(low)}–{_short(high)}")


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"

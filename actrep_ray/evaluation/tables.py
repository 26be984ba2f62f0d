"""The tables of a report, for the console and for the page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from actrep_ray.evaluation.intervals import Interval
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.evaluation.scores import Figures, Metrics, reading_histogram
from actrep_ray.tasks.base import FigureSpec, Task
from rewards.reference import Reference

VERDICTS = ("better", "worse", "not sure")

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


def as_text(text: str) -> Text:
    """A text for a console: its brackets are no markup, its control characters do nothing."""
    return Text("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text))


def comparison_table(metrics: Mapping[str, Metrics], task: Task) -> TableData:
    """One row for each predictor, with intervals."""
    return TableData(
        f"{task.title} on {next(iter(metrics.values())).num_clips} held-out clips",
        ("", *_headers(task)),
        tuple((name, *_cells(m, task)) for name, m in metrics.items()),
        f"Below each figure: its 95% interval ({intervals_told(task)}). An answer that cannot be "
        "parsed is wrong.",
    )


def difference_table(differences: Mapping[str, Mapping[str, Interval]], task: Task) -> TableData:
    """One row for each pair of stages and figure: what changed, with paired intervals."""
    rows = []
    for pair, intervals in differences.items():
        for figure in task.figures:
            interval = intervals[figure.name]
            change = f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
            rows.append((f"{pair}: {figure.header}", change, _verdict(figure, interval)))
    note = (
        "95% intervals by paired bootstrap: both stages on the same resampled clips; sure if the "
        "interval leaves 0 out."
    )
    return TableData("Paired differences", ("", "change", "verdict"), tuple(rows), note)


def metrics_tables(metrics: Metrics, name: str, task: Task) -> list[TableData]:
    """Tables of one predictor: all and parsed answers, and one for each breakdown."""
    overall: dict[str, Figures] = {"all": metrics}
    if metrics.parsed_only is not None and metrics.parsed_only.num_clips < metrics.num_clips:
        overall["parsed only"] = metrics.parsed_only
    tables = [_figures_table(f"{name}: all answers", overall, task)]
    for breakdown in task.breakdowns:
        cells = metrics.breakdowns[breakdown.name]
        shown = {cell.replace("_", " "): figures for cell, figures in cells.items()}
        tables.append(_figures_table(f"{name}: {breakdown.title}", shown, task))
    return tables


def histogram_table(
    predictions: Sequence[Prediction], labels: Mapping[str, Reference], task: Task
) -> TableData:
    """The readings that were given most often, beside how often they are true.

    A model that answers the same whatever it sees shows here first.
    """
    predicted = reading_histogram(predictions)
    true = Counter(str(task.truth(labels[p.clip_id])) for p in predictions)
    ranked = sorted(predicted, key=lambda reading: -predicted[reading])
    shown = ranked[:_MOST_READINGS]
    total = len(predictions)
    rows = tuple(
        (reading, str(predicted[reading]), f"{predicted[reading] / total:.0%}", str(true[reading]))
        for reading in shown
    )
    rest = len(ranked) - len(shown)
    name = task.reading_name
    note = f"{rest} other {name}s were predicted as well." if rest else ""
    if predicted[ranked[0]] > _COLLAPSE_SHARE * total:
        note = f"More than half of the answers are {ranked[0]}. {note}".strip()
    return TableData("Most frequent answers", (name, "answered", "share", "true"), rows, note)


def intervals_told(task: Task) -> str:
    """Which figures have which intervals, in words."""
    shares = [figure.label for figure in task.figures if figure.is_share]
    others = [figure.label for figure in task.figures if not figure.is_share]
    told = [f"{_listed(shares)}: Wilson"]
    return "; ".join([*told, *([f"{_listed(others)}: bootstrap over clips"] if others else [])])


def _listed(labels: Sequence[str]) -> str:
    *first, last = labels
    return f"{', '.join(first)} and {last}" if first else last


def _headers(task: Task) -> list[str]:
    return [figure.header for figure in task.figures]


def _cells(figures: Figures, task: Task) -> list[str]:
    return [_with_interval(figures[figure.name]) for figure in task.figures]


def _figures_table(title: str, figures: Mapping[str, Figures], task: Task) -> TableData:
    rows = tuple((name, str(f.num_clips), *_cells(f, task)) for name, f in figures.items())
    note = f"95% intervals ({intervals_told(task)})."
    return TableData(title, ("", "clips", *_headers(task)), rows, note)


def _with_interval(interval: Interval) -> str:
    return f"{interval.value:.3f}\n{_short(interval.low)}–{_short(interval.high)}"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _verdict(figure: FigureSpec, interval: Interval) -> str:
    if interval.is_above_zero or interval.is_below_zero:
        is_better = interval.is_below_zero == figure.is_lower_better
        return VERDICTS[0] if is_better else VERDICTS[1]
    return VERDICTS[2]

"""The tables of a report, for the console and for the page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from actrep_ray.evaluation.intervals import Interval
from actrep_ray.evaluation.predictions import Prediction
from actrep_ray.evaluation.scores import (
    HEADERS,
    INTERVALS_TOLD,
    LOWER_IS_BETTER,
    CountMetrics,
    Figures,
    count_histogram,
)
from actrep_ray.records import Labels

VERDICTS = ("better", "worse", "not sure")

_MOST_COUNTS = 12  # rows of the table of predictions
_COLLAPSE_SHARE = 0.5  # of one count among the predictions: worth a word


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


def comparison_table(metrics: Mapping[str, CountMetrics]) -> TableData:
    """One row for each predictor, with intervals."""
    return TableData(
        f"Counting on {next(iter(metrics.values())).num_clips} held-out clips",
        ("", *HEADERS.values()),
        tuple(
            (name, *(_with_interval(getattr(m, key)) for key in HEADERS))
            for name, m in metrics.items()
        ),
        f"Below each figure: its 95% interval ({INTERVALS_TOLD}). An answer that cannot be parsed "
        "is wrong.",
    )


def difference_table(differences: Mapping[str, Mapping[str, Interval]]) -> TableData:
    """One row for each pair of stages and figure: what changed, with paired intervals."""
    rows = []
    for pair, intervals in differences.items():
        for key, interval in intervals.items():
            change = f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
            rows.append((f"{pair}: {HEADERS[key]}", change, _verdict(key, interval)))
    note = (
        "95% intervals by paired bootstrap: both stages on the same resampled clips; sure if the "
        "interval leaves 0 out."
    )
    return TableData("Paired differences", ("", "change", "verdict"), tuple(rows), note)


def metrics_tables(metrics: CountMetrics, name: str) -> list[TableData]:
    """Tables of one predictor: all and parsed answers, by count, by action."""
    overall: dict[str, Figures] = {"all": metrics}
    if metrics.parsed_only is not None and metrics.parsed_only.num_clips < metrics.num_clips:
        overall["parsed only"] = metrics.parsed_only
    parts = {
        f"{name}: all answers": overall,
        f"{name}: by true count": metrics.bins,
        f"{name}: by action": {k.replace("_", " "): v for k, v in metrics.actions.items()},
    }
    return [_figures_table(title, figures) for title, figures in parts.items()]


def histogram_table(predictions: Sequence[Prediction], labels: Mapping[str, Labels]) -> TableData:
    """The counts that were predicted most often, beside how often they are true.

    A model that answers one count whatever it sees shows here first.
    """
    predicted = count_histogram(predictions)
    true = Counter(str(labels[p.clip_id].count) for p in predictions)
    ranked = sorted(predicted, key=lambda count: -predicted[count])
    shown = ranked[:_MOST_COUNTS]
    total = len(predictions)
    rows = tuple(
        (count, str(predicted[count]), f"{predicted[count] / total:.0%}", str(true[count]))
        for count in shown
    )
    rest = len(ranked) - len(shown)
    note = f"{rest} other counts were predicted as well." if rest else ""
    if predicted[ranked[0]] > _COLLAPSE_SHARE * total:
        note = f"More than half of the answers are {ranked[0]}. {note}".strip()
    return TableData("Most frequent answers", ("count", "answered", "share", "true"), rows, note)


def _figures_table(title: str, figures: Mapping[str, Figures]) -> TableData:
    rows = tuple(
        (name, str(f.num_clips), *(_with_interval(getattr(f, key)) for key in HEADERS))
        for name, f in figures.items()
    )
    note = f"95% intervals ({INTERVALS_TOLD})."
    return TableData(title, ("", "clips", *HEADERS.values()), rows, note)


def _with_interval(interval: Interval) -> str:
    return f"{interval.value:.3f}\n{_short(interval.low)}–{_short(interval.high)}"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _verdict(key: str, interval: Interval) -> str:
    if interval.is_above_zero or interval.is_below_zero:
        is_better = interval.is_below_zero == (key in LOWER_IS_BETTER)
        return VERDICTS[0] if is_better else VERDICTS[1]
    return VERDICTS[2]

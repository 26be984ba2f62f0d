"""What a run came to: tables on the console, pictures, and one self-contained page.

RUN_DIR/report/curves.png    what was logged in training
RUN_DIR/report/counts.png    predicted against true counts
RUN_DIR/report/clip.png      one held-out clip above its true and predicted cycles
RUN_DIR/report/summary.png   the three on one sheet
RUN_DIR/report/report.html   tables and pictures; needs no other file and no network
"""

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from actrep_ray.config import Recipe
from actrep_ray.evaluation.intervals import Interval
from actrep_ray.evaluation.periodicity import NAME as DETECTOR
from actrep_ray.evaluation.predictions import (
    Prediction,
    constant_predictions,
    read_predictions,
    train_median,
)
from actrep_ray.evaluation.scores import (
    HEADERS,
    INTERVALS_TOLD,
    LOWER_IS_BETTER,
    CountMetrics,
    Figures,
    count_histogram,
    paired_difference,
    score_predictions,
)
from actrep_ray.records import Labels
from actrep_ray.run.metrics import read_metrics
from actrep_ray.tasks.clips import labels_of
from data_prep.schema import Clip, read_clips

_MIN_SHOWN_CYCLES = 3  # of the clip that is shown
_MOST_COUNTS = 12  # rows of the table of predictions
_COLLAPSE_SHARE = 0.5  # of one count among the predictions: worth a word
_PREDICTIONS = "predictions"


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
        """The table for a console."""
        table = Table(
            title=self.title,
            caption=self.note or None,
            box=box.SIMPLE_HEAD,
            title_justify="left",
            caption_justify="left",
            title_style="bold",
        )
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="right" if i else "left", no_wrap=i > 0)
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_html(self) -> str:
        """The table as HTML."""
        head = "".join(f"<th>{escape(column)}</th>" for column in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{_html_cell(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        note = f"<p class=note>{escape(self.note)}</p>" if self.note else ""
        return (
            f"<h2>{escape(self.title)}</h2><div class=scroll><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>{note}"
        )


@dataclass(frozen=True)
class ReportInput:
    """What a report is made of.

    Attributes:
        title: Name of the run.
        clips: The held-out clips that were answered.
        sets: Predictions on them by the name of the predictor, in the order to show. Each is
            compared with the one before it, but for the periodicity detector, which is a baseline
            and no stage of training; the last is shown by bin and action.
        stages: Rows of `metrics.jsonl` by the name of the stage.
        train_counts: Counts of the train split, for the constant predictor; may be empty.
        facts: What else a reader should know (settings, versions), by name.
        num_bootstrap: Resamples of the intervals.
        seed: Of the resamples.
    """

    title: str
    clips: Sequence[Clip]
    sets: Mapping[str, Sequence[Prediction]]
    stages: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    train_counts: Sequence[int] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    num_bootstrap: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """A report that was made.

    Attributes:
        tables: To be shown, the most important first.
        metrics: Figures of every predictor, the constant one included.
        differences: Each stage against the one before it, by "before → after".
        pictures: Paths of the PNG files, by name.
        page: Path of the HTML page.
    """

    tables: tuple[TableData, ...]
    metrics: dict[str, CountMetrics]
    differences: dict[str, dict[str, Interval]]
    pictures: dict[str, Path]
    page: Path


def report_run(run_dir: str | Path, *, console: Console | None = None) -> Report:
    """Make the report of a run folder (or of a folder of runs) and print its tables.

    Raises:
        ValueError: if the folder holds no settings of a run, or neither metrics nor predictions;
            naming what was looked for.
    """
    console = console or Console()
    report = write_report(read_run(Path(run_dir)), Path(run_dir) / "report")
    print_report(report, console)
    return report


def print_report(report: Report, console: Console) -> None:
    """Print the tables and where the pictures lie."""
    for table in report.tables:
        console.print(table.to_rich())
    for path in (*report.pictures.values(), report.page):
        console.print(str(path), highlight=False, soft_wrap=True)


def write_report(given: ReportInput, folder: Path) -> Report:
    """Score the predictions and write pictures and page into a folder."""
    labels = labels_of(given.clips)
    options = {"num_bootstrap": given.num_bootstrap, "seed": given.seed}
    sets: dict[str, Sequence[Prediction]] = dict(given.sets)
    if sets and given.train_counts:
        median = train_median(given.train_counts)
        sets = {f"constant {median}": constant_predictions(labels, median), **sets}
    metrics = {name: score_predictions(p, labels, **options) for name, p in sets.items()}
    names = list(given.sets)
    differences = {
        f"{a} → {b}": paired_difference(given.sets[a], given.sets[b], labels, **options)
        for a, b in pairwise(name for name in names if name != DETECTOR)
    }
    tables: list[TableData] = []
    if metrics:
        tables.append(comparison_table(metrics))
    if differences:
        tables.append(difference_table(differences))
    if names:
        last = names[-1]
        tables += [*metrics_tables(metrics[last], last), histogram_table(given.sets[last], labels)]
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _write_pictures(given, labels, folder)
    page = folder / "report.html"
    page.write_text(_page(given, tables, pictures), encoding="utf-8")
    return Report(tuple(tables), metrics, differences, pictures, page)


# --- tables


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


def _html_cell(cell: str) -> str:
    value, _, interval = cell.partition("\n")
    return escape(value) + (f"<br><small>{escape(interval)}</small>" if interval else "")


def _verdict(key: str, interval: Interval) -> str:
    if interval.is_above_zero or interval.is_below_zero:
        is_better = interval.is_below_zero == (key in LOWER_IS_BETTER)
        return "better" if is_better else "worse"
    return "not sure"


# --- reading a run


def read_run(run_dir: Path) -> ReportInput:
    """What a run folder, or each run folder right inside of it, holds.

    Raises:
        ValueError: naming what was looked for.
    """
    settings = sorted(
        [*run_dir.glob("config.resolved.json"), *run_dir.glob("*/config.resolved.json")]
    )
    if not settings:
        raise ValueError(f"{run_dir}: no config.resolved.json in it, expected the folder of a run")
    runs = [(path.parent, _read_settings(path)) for path in settings]
    runs.sort(key=lambda run: ("sft", "grpo").index(run[1][0].stage))
    stages: dict[str, list[dict[str, Any]]] = {}
    sets: dict[str, list[Prediction]] = {}
    for folder, (recipe, _) in runs:
        if (path := folder / "metrics.jsonl").is_file() and (rows := read_metrics(path)):
            stages[recipe.stage.upper()] = rows
        sets |= _read_sets(folder)
    sets = _read_sets(run_dir) or _same_clips(sets)
    if not stages and not sets:
        raise ValueError(f"{run_dir}: neither metrics.jsonl nor {_PREDICTIONS}*.jsonl in it")
    recipe, content = runs[-1][1]
    clips, train_counts = _read_answered(Path(recipe.data.path), sets)
    return ReportInput(
        title=run_dir.resolve().name,
        clips=clips,
        sets=sets,
        stages=stages,
        train_counts=train_counts,
        facts=_facts(recipe, content),
        num_bootstrap=recipe.eval.num_bootstrap,
        seed=recipe.seed,
    )


def _read_settings(path: Path) -> tuple[Recipe, dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Recipe.model_validate(content["recipe"]), content
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the settings of a run ({error})") from error


def _read_sets(folder: Path) -> dict[str, list[Prediction]]:
    """Predictions of a folder by name; of those that are numbered by step, the first and last."""
    paths = sorted(folder.glob(f"{_PREDICTIONS}*.jsonl"))
    names = {path: path.stem.removeprefix(_PREDICTIONS).strip("-_") for path in paths}
    steps = [path for path in paths if names[path].isdigit()]
    chosen = [path for path in paths if path not in steps[1:-1]]
    chosen.sort(key=lambda path: _place(names[path]))
    return {
        f"step {int(name)}" if (name := names[path]).isdigit() else name or folder.resolve().name: (
            read_predictions(path)
        )
        for path in chosen
    }


def _place(name: str) -> int:
    """The baseline, stages in the order in which they are trained, other names as they come."""
    order = (DETECTOR, "untrained", "sft", "grpo")
    return next((i for i, stage in enumerate(order) if stage in name), len(order))


def _same_clips(sets: dict[str, list[Prediction]]) -> dict[str, list[Prediction]]:
    """The predictions about the clips that the last ones are about: only those can be compared."""
    ids = [{p.clip_id for p in predictions} for predictions in sets.values()]
    return {
        name: p
        for (name, p), answered in zip(sets.items(), ids, strict=True)
        if answered == ids[-1]
    }


def _read_answered(
    data: Path, sets: Mapping[str, Sequence[Prediction]]
) -> tuple[list[Clip], list[int]]:
    """The clips that the predictions are about, and the counts of the train split."""
    if not sets:
        return [], []
    ids = {p.clip_id for predictions in sets.values() for p in predictions}
    clips, train_counts = [], []
    for clip in read_clips(data):
        if clip.id in ids:
            clips.append(clip)
        elif clip.split == "train":
            train_counts.append(clip.count)
    return clips, train_counts


def _facts(recipe: Recipe, content: Mapping[str, Any]) -> dict[str, str]:
    versions = content.get("versions") or {}
    return {
        "model": content.get("checkpoint", recipe.model.path),
        "data": recipe.data.path,
        "rewards": ", ".join(
            f"{name} {part['weight'] if isinstance(part, dict) else part:g}"
            for name, part in recipe.reward.weights.items()
        ),
        "algorithm": f"{recipe.algorithm.advantage}, {recipe.algorithm.loss}, "
        f"{recipe.train.prompts_per_step} prompts x {recipe.train.group_size} answers a step",
        "seed": str(recipe.seed),
        "commit": str(content.get("commit")),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


# --- pictures and page


def choose_clip(clips: Sequence[Clip]) -> Clip | None:
    """The clip to show: the first with at least three annotated cycles, whatever was answered."""
    for clip in clips:
        if clip.cycles and len(clip.cycles) >= _MIN_SHOWN_CYCLES:
            return clip
    return None


def _write_pictures(
    given: ReportInput, labels: Mapping[str, Labels], folder: Path
) -> dict[str, Path]:
    # matplotlib takes a second to import, and the tables do without it.
    from actrep_ray.evaluation import figures as plots
    from actrep_ray.evaluation.figure_style import make_figure, save

    parts: list[tuple[str, float, Any]] = []
    if num_panels := plots.count_panels(given.stages):
        parts.append(("curves", 3.1, lambda figure: plots.draw_curves(figure, given.stages)))
    if given.sets:
        shown = dict(list(given.sets.items())[-3:])
        parts.append(("counts", 3.9, lambda figure: plots.draw_counts(figure, shown, labels)))
        if (clip := choose_clip(given.clips)) is not None:
            answers = {
                name: next(p for p in predictions if p.clip_id == clip.id)
                for name, predictions in shown.items()
            }
            strip = plots.read_strip(clip, answers)
            height = 1.5 + 0.33 * (1 + len(answers))
            parts.append(("clip", height, lambda figure: plots.draw_clip(figure, strip)))
    if not parts:
        return {}
    width = max(11.0, 2.9 * num_panels)
    paths = {name: folder / f"{name}.png" for name, _, _ in parts}
    for name, height, draw in parts:
        figure = make_figure(width, height)
        draw(figure)
        save(figure, paths[name])
    sheet = make_figure(width, sum(height for _, height, _ in parts))
    rows = sheet.subfigures(len(parts), 1, squeeze=False, height_ratios=[h for _, h, _ in parts])
    for row, (_, _, draw) in zip(rows[:, 0], parts, strict=True):
        draw(row)
    paths["summary"] = folder / "summary.png"
    save(sheet, paths["summary"])
    return paths


_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2433; background: #f5f6f8; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
section { background: #fff; border: 1px solid #e3e6ec; border-radius: 8px; padding: 8px 24px 16px;
  margin: 16px 0; }
h1 { font-size: 26px; margin: 0 0 8px; }
h2 { font-size: 16px; margin: 16px 0 8px; }
img { width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { text-align: right; padding: 4px 14px; border-bottom: 1px solid #e9ebf0; }
th { color: #6b7385; font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; }
dt, small, .note { color: #6b7385; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; background: #f5f6f8; padding: 12px; border-radius: 6px; }
"""

_CAPTIONS = {
    "curves": "Training. Thin: each step; thick: running mean; dots: held out, with 95% "
    "intervals (shares: Wilson; MAE: bootstrap).",
    "counts": "Predicted against true counts. Blue exact, orange one off, red further off; the "
    "area is the number of clips.",
    "clip": "One held-out clip. Green cycles match a true one, red ones match none.",
}


def _page(given: ReportInput, tables: Sequence[TableData], pictures: Mapping[str, Path]) -> str:
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in given.facts.items()
    )
    sections = [f"<dl>{facts}</dl>"] if facts else []
    sections += [table.to_html() for table in tables[:2]]
    sections += [
        f"<p class=note>{escape(caption)}</p>{_image(pictures[name], caption)}"
        for name, caption in _CAPTIONS.items()
        if name in pictures
    ]
    sections += [table.to_html() for table in tables[2:]]
    if (answer := _shown_answer(given)) is not None:
        sections.append(answer)
    body = "".join(f"<section>{section}</section>" for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(given.title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{escape(given.title)}</h1>{body}</main></body></html>\n"
    )


def _shown_answer(given: ReportInput) -> str | None:
    """The whole answer to the clip that is shown, of the last predictor."""
    clip = choose_clip(given.clips)
    if clip is None or not given.sets:
        return None
    name, predictions = list(given.sets.items())[-1]
    prediction = next(p for p in predictions if p.clip_id == clip.id)
    title = f"What {name} answered to {clip.id} (true count {clip.count})"
    text = prediction.text.encode("utf-8", errors="replace").decode()
    return f"<h2>{escape(title)}</h2><pre>{escape(text)}</pre>"


def _image(path: Path, alt: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'

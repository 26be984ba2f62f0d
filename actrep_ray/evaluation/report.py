"""What a run came to: tables on the console and in files, pictures, and one self-contained page.

RUN_DIR/report/curves.png    what was logged in training
RUN_DIR/report/counts.png    predicted against true counts
RUN_DIR/report/clip.png      one held-out clip above its true and predicted cycles
RUN_DIR/report/summary.png   the three on one sheet
RUN_DIR/report/report.html   tables and pictures; needs no other file and no network
RUN_DIR/tables/*.csv|md|tex  predictors, differences, and the breakdown by data set, action and bin
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd
from rich.console import Console

from actrep_ray.evaluation.frame_files import write_frame
from actrep_ray.evaluation.frames import (
    breakdown_frame,
    differences_frame,
    predictors_frame,
    readings_frame,
)
from actrep_ray.evaluation.intervals import Interval
from actrep_ray.evaluation.page import write_page
from actrep_ray.evaluation.pictures import write_pictures
from actrep_ray.evaluation.predictions import Prediction, constant_predictions
from actrep_ray.evaluation.run_results import DETECTOR, ReportInput, read_run
from actrep_ray.evaluation.scores import Metrics, paired_difference, score_predictions
from actrep_ray.evaluation.tables import (
    TableData,
    comparison_table,
    difference_table,
    histogram_table,
    metrics_tables,
)
from actrep_ray.run.console import as_text
from actrep_ray.run.console import console as own_console
from actrep_ray.tasks.base import labels_of


@dataclass(frozen=True)
class Report:
    """A report that was made.

    Attributes:
        tables: To be shown, the most important first.
        metrics: Figures of every predictor, the constant one included.
        differences: Each predictor against the one before it, by "before → after".
        pictures: Paths of the PNG files, by name.
        page: Path of the HTML page.
        table_files: Paths of the tables in Markdown, CSV and LaTeX.
    """

    tables: tuple[TableData, ...]
    metrics: dict[str, Metrics]
    differences: dict[str, dict[str, Interval]]
    pictures: dict[str, Path]
    page: Path
    table_files: tuple[Path, ...]


def report_run(run_dir: str | Path, *, console: Console | None = None) -> Report:
    """Make the report of a run folder (or of a folder of runs) and print its tables.

    Raises:
        DataError: if the folder holds no settings of a run, or neither metrics nor predictions,
            naming what was looked for; or if one of these files cannot be read.
        ConfigError: if the settings are not of this version.
    """
    console = console or own_console()
    report = write_report(read_run(Path(run_dir)), Path(run_dir))
    print_report(report, console)
    return report


def print_report(report: Report, console: Console) -> None:
    """Print the tables and where the files lie."""
    for table in report.tables:
        console.print(table.to_rich())
    paths = [*report.pictures.values(), report.page]
    if report.table_files:
        paths.append(report.table_files[0].parent)
    for path in paths:
        console.print(as_text(str(path)), soft_wrap=True)


def write_report(given: ReportInput, run_dir: Path) -> Report:
    """Score the predictions and write pictures, page and tables into `report/` and `tables/`."""
    task = given.task
    labels = labels_of(given.clips, task)
    options = {"num_bootstrap": given.num_bootstrap, "seed": given.seed}
    sets: dict[str, Sequence[Prediction]] = dict(given.sets)
    if sets and given.train_truths:
        reading = task.constant(given.train_truths)
        sets = {f"constant {reading}": constant_predictions(labels, reading), **sets}
    metrics = {name: score_predictions(p, labels, task, **options) for name, p in sets.items()}
    differences = {
        f"{a} → {b}": paired_difference(given.sets[a], given.sets[b], labels, task, **options)
        for a, b in pairwise(name for name in given.sets if name != DETECTOR)
    }
    frames: dict[str, pd.DataFrame] = {}
    tables: list[TableData] = []
    if metrics:
        frames["predictors"] = predictors_frame(metrics)
        tables.append(comparison_table(frames["predictors"], task))
        frames["breakdown"] = breakdown_frame(sets, given.clips, task, **options)
    if differences:
        frames["differences"] = differences_frame(differences, task)
        tables.append(difference_table(frames["differences"], task))
    if given.sets:
        last = list(given.sets)[-1]
        tables += metrics_tables(metrics[last], last, task)
        tables.append(histogram_table(readings_frame(given.sets[last], labels, task), task))
    folder = run_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = write_pictures(given, metrics, folder)
    page = folder / "report.html"
    write_page(page, given, tables, pictures)
    files = [
        path
        for name, frame in frames.items()
        for path in write_frame(frame, run_dir / "tables" / name, task)
    ]
    return Report(tuple(tables), metrics, differences, pictures, page, tuple(files))

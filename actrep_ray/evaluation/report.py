"""What a run came to: tables on the console and in files, pictures, and one self-contained page.

RUN_DIR/report/curves.png    what was logged in training
RUN_DIR/report/counts.png    predicted against true counts
RUN_DIR/report/clip.png      one held-out clip above its true and predicted cycles
RUN_DIR/report/errors.png    error against count and length of a repetition
RUN_DIR/report/confidence.png  how often answers of a confidence are right, if there are samples
RUN_DIR/report/images.png    held-out images, the first of each class, above the answers
RUN_DIR/report/matrix.png    several checkpoints on several data sets
RUN_DIR/report/summary.png   all of them on one sheet
RUN_DIR/report/report.html   tables and pictures; needs no other file and no network
RUN_DIR/tables/*.csv|md|tex  predictors, differences, what gains are the sum of, counts, pass@k of
                             samples, the matrix of several checkpoints and data sets, and the
                             breakdown by data set, action and bin; of counting, by one
                             condition at a time, and the errors that papers print
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from actrep_ray.config import Recipe, flat_settings
from actrep_ray.evaluation.answer_figures import pass_at_each_k, sampled_answers
from actrep_ray.evaluation.confidence import Reliability, agreed, beside, reliability
from actrep_ray.evaluation.confidence_tables import confidence_frame, confidence_table
from actrep_ray.evaluation.frame_files import write_frame
from actrep_ray.evaluation.frames import (
    breakdown_frame,
    clean,
    conditions_frame,
    counts_frame,
    differences_frame,
    errors_frame,
    gains_frame,
    matrix_frame,
    pass_frame,
    predictors_frame,
    readings_frame,
)
from actrep_ray.evaluation.gain import Gain, split_gain
from actrep_ray.evaluation.intervals import Interval
from actrep_ray.evaluation.page import write_page
from actrep_ray.evaluation.pictures import write_pictures
from actrep_ray.evaluation.predictions import Prediction, constant_predictions
from actrep_ray.evaluation.run_results import DETECTOR, ReportInput, read_run, read_runs
from actrep_ray.evaluation.run_tables import prompts_table, rewards_table, settings_table
from actrep_ray.evaluation.scores import (
    Metrics,
    paired_difference,
    remarks_on,
    score_predictions,
)
from actrep_ray.evaluation.tables import (
    TableData,
    claims_table,
    comparison_table,
    counts_table,
    difference_table,
    faults_table,
    gain_table,
    histogram_table,
    matrix_tables,
    metrics_tables,
    pass_table,
)
from actrep_ray.evaluation.voting import rules_of, voted
from actrep_ray.run.console import as_text
from actrep_ray.run.console import console as own_console
from actrep_ray.tasks.base import Task, labels_of
from data_prep.rows import clips_among
from rewards.reference import Reference


@dataclass(frozen=True)
class Report:
    """A report that was made.

    Attributes:
        tables: To be shown, the most important first.
        metrics: Figures of every predictor, the constant one included.
        differences: Each predictor against the one before it, by "before → after".
        gains: What each of these changes in exact counts is the sum of, likewise; of a task that
            counts, where repetitions are listed.
        pass_at: pass@k by k, of each predictor that was sampled.
        confidence: How far the confidence of its samples can be believed, likewise.
        checked: The same beside the detector, where that says how sure it is.
        remarks: What a reader of the figures would miss, with the remedy.
        pictures: Paths of the PNG files, by name.
        page: Path of the HTML page.
        table_files: Paths of the tables in Markdown, CSV and LaTeX.
    """

    tables: tuple[TableData, ...]
    metrics: dict[str, Metrics]
    differences: dict[str, dict[str, Interval]]
    gains: dict[str, Gain]
    pass_at: dict[str, dict[int, Interval]]
    confidence: dict[str, Reliability]
    checked: dict[str, Reliability]
    remarks: tuple[str, ...]
    pictures: dict[str, Path]
    page: Path
    table_files: tuple[Path, ...]

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The figures of each predictor, by its name, as JSON-able values."""
        pass_at = {
            name: {"pass_at": {str(k): asdict(interval) for k, interval in by_k.items()}}
            for name, by_k in self.pass_at.items()
        }
        sure = {name: {"confidence": found.to_json()} for name, found in self.confidence.items()}
        for name, found in self.checked.items():
            sure[name]["confidence_beside_detector"] = found.to_json()
        return {
            name: {**m.to_json(), **pass_at.get(name, {}), **sure.get(name, {})}
            for name, m in self.metrics.items()
        }


def report_runs(
    run_dirs: Sequence[Path], out_dir: Path, *, console: Console | None = None
) -> Report:
    """Make the report of several runs side by side and print its tables; errors as `read_runs`."""
    report = write_report(read_runs(run_dirs), out_dir)
    print_report(report, console or own_console())
    return report


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
    """Print the tables, what is remarkable, and where the files lie."""
    for table in report.tables:
        console.print(table.to_rich())
    print_remarks(report.remarks, console)
    paths = [*report.pictures.values(), report.page]
    if report.table_files:
        paths.append(report.table_files[0].parent)
    for path in paths:
        console.print(as_text(str(path)), soft_wrap=True)


def print_main(report: Report, console: Console) -> None:
    """Print what a run is judged by: the main tables and what is remarkable."""
    for table in report.tables:
        if table.is_main:
            console.print(table.to_rich())
    print_remarks(report.remarks, console)


def print_remarks(remarks: Sequence[str], console: Console) -> None:
    """Print what a reader of the figures would miss."""
    for remark in remarks:
        console.print(as_text(f"Warning: {remark}", "bold yellow"))


def write_report(given: ReportInput, run_dir: Path) -> Report:
    """Score the predictions and write pictures, page and tables into `report/` and `tables/`."""
    judged = _judge(given)
    frames, tables = _main_tables(given, judged)
    if given.sets:
        name, last = list(given.sets.items())[-1]
        tables += metrics_tables(judged.metrics[name], name, given.task)
        readings = readings_frame(last, judged.labels, given.task)
        tables.append(histogram_table(readings, given.task))
    tables += _run_tables(given)
    folder = run_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = write_pictures(given, judged.metrics, folder, frames, judged.confidence)
    page = folder / "report.html"
    settings = settings_table(given.settings, flat_settings(Recipe())) if given.settings else None
    on_page = [*tables, settings] if settings else tables  # too wide for a console
    write_page(page, given, on_page, pictures, judged.remarks, judged.labels)
    files = [
        path
        for name, frame in frames.items()
        for path in write_frame(frame, run_dir / "tables" / name, given.task)
    ]
    return Report(
        tables=tuple(tables),
        metrics=judged.metrics,
        differences=judged.differences,
        gains=judged.gains,
        pass_at=judged.pass_at,
        confidence=judged.confidence,
        checked=judged.checked,
        remarks=judged.remarks,
        pictures=pictures,
        page=page,
        table_files=tuple(files),
    )


@dataclass(frozen=True)
class _Judged:
    """All numbers of a report; see `Report`.

    Attributes:
        labels: By clip id.
        sets: Predictions by name, the constant predictor's and what samples vote for included.
        pass_at: See `Report`.
        confidence: See `Report`.
        checked: See `Report`.
    """

    labels: dict[str, Reference]
    sets: dict[str, Sequence[Prediction]]
    metrics: dict[str, Metrics]
    differences: dict[str, dict[str, Interval]]
    gains: dict[str, Gain]
    pass_at: dict[str, dict[int, Interval]]
    confidence: dict[str, Reliability]
    checked: dict[str, Reliability]
    remarks: tuple[str, ...]


def _judge(given: ReportInput) -> _Judged:
    task, labels = given.task, labels_of(given.clips, given.task)
    options = {"num_bootstrap": given.num_bootstrap, "seed": given.seed}
    votes = {name: _votes(name, p, task) for name, p in given.sets.items()}
    sets: dict[str, Sequence[Prediction]] = {}
    for name, predictions in given.sets.items():
        sets |= {name: predictions, **votes[name]}
    if sets and given.train_truths:
        reading = task.constant(given.train_truths)
        sets = {f"constant {reading}": constant_predictions(labels, reading), **sets}
    metrics = {name: score_predictions(p, labels, task, **options) for name, p in sets.items()}
    models = [name for name in given.sets if name != DETECTOR]
    pairs = [*pairwise(models), *((name, vote) for name in models for vote in votes[name])]
    differences, gains = {}, {}
    for name, next_name in pairs:
        pair, before, after = f"{name} → {next_name}", sets[name], sets[next_name]
        differences[pair] = paired_difference(before, after, labels, task, **options)
        if task.is_counting and (gain := split_gain(before, after, labels, task, **options)):
            gains[pair] = gain
    pass_at = {
        name: pass_at_each_k(sampled_answers(p, labels, task), **options)
        for name, p in given.sets.items()
        if votes[name]
    }
    remarks = (
        *given.remarks,
        *(f"{name}: {remark}" for name in models for remark in remarks_on(metrics[name], task)),
    )
    sampled = {name: p for name, p in given.sets.items() if votes[name]}
    confidence = {name: _reliability(p, labels, task) for name, p in sampled.items()}
    seen = {p.clip_id: p for p in given.sets.get(DETECTOR, ()) if p.confidence is not None}
    checked = {name: _reliability(p, labels, task, seen) for name, p in sampled.items() if seen}
    return _Judged(labels, sets, metrics, differences, gains, pass_at, confidence, checked, remarks)


def _reliability(
    predictions: Sequence[Prediction],
    labels: Mapping[str, Reference],
    task: Task,
    seen: Mapping[str, Prediction] | None = None,
) -> Reliability:
    """Of what the samples to each clip come to, as `actrep count` tells it.

    Args:
        predictions: With samples.
        labels: By clip id.
        task: Which was asked.
        seen: What the detector says, by clip id, if it is asked beside; it has a confidence where
            it counts.
    """
    found = [agreed(one.samples, task) for one in predictions]
    is_right = [
        bool(task.is_right([one.reading], labels[p.clip_id])[0])
        for one, p in zip(found, predictions, strict=True)
    ]
    num_answers = min(len(one.samples) for one in predictions)
    sure = []
    for one, p in zip(found, predictions, strict=True):
        other = (seen or {}).get(p.clip_id)
        confidence = one.confidence
        if one.reading is not None and other is not None and other.confidence is not None:
            is_same = one.reading == other.reading
            confidence = beside(confidence, other.confidence, is_same=is_same)
        sure.append(confidence)
    return reliability(sure, is_right, num_answers)


def _votes(
    name: str, predictions: Sequence[Prediction], task: Task
) -> dict[str, Sequence[Prediction]]:
    """What the samples of a predictor vote for by each rule, where every clip has some."""
    num_samples = min(len(one.samples) for one in predictions)
    if not num_samples:
        return {}
    return {
        f"{name}, {rule} of {num_samples}": voted(predictions, choose, task)
        for rule, choose in rules_of(task).items()
    }


def _run_tables(given: ReportInput) -> list[TableData]:
    """How the run went: rewards, prompts and faults of each stage."""
    tables: list[TableData | None] = []
    for stage, rows in given.stages.items():
        tables += [rewards_table(stage, rows), prompts_table(stage, rows)]
    tables += [faults_table(stage, sums) for stage, sums in given.faults.items()]
    return [table for table in tables if table is not None]


def _num_models(given: ReportInput) -> int:
    return sum(name != DETECTOR for name in given.sets)


def _main_tables(
    given: ReportInput, judged: _Judged
) -> tuple[dict[str, pd.DataFrame], list[TableData]]:
    """The frames that are written to files, and the tables that a run is judged by."""
    task = given.task
    frames: dict[str, pd.DataFrame] = {}
    tables: list[TableData | None] = []
    if judged.metrics:
        frames["predictors"] = predictors_frame(judged.metrics)
        tables.append(comparison_table(frames["predictors"], task))
        tables.append(claims_table(frames["predictors"], task))
        options = {"num_bootstrap": given.num_bootstrap, "seed": given.seed}
        frames["breakdown"] = breakdown_frame(judged.sets, given.clips, task, **options)
        if task.is_counting:
            clips = clips_among(given.clips)
            frames["conditions"] = conditions_frame(judged.sets, clips, task, **options)
            frames["errors"] = errors_frame(judged.sets, judged.labels, **options)
    if judged.pass_at:
        frames["pass_at"] = pass_frame(judged.pass_at)
        tables.append(pass_table(frames["pass_at"]))
        frames["confidence"] = confidence_frame(judged.confidence, judged.checked)
        for name, found in judged.confidence.items():
            tables.append(confidence_table(name, found, judged.checked.get(name)))
    if _num_models(given) > 1 and len({clip.dataset for clip in given.clips}) > 1:
        options = {"num_bootstrap": given.num_bootstrap, "seed": given.seed}
        frames["matrix"] = matrix_frame(given.sets, given.clips, task, **options)
        tables += matrix_tables(frames["matrix"], task)
    if judged.differences:
        frames["differences"] = differences_frame(judged.differences, task)
        tables.append(difference_table(frames["differences"], task))
    if judged.gains:
        frames["gains"] = gains_frame(judged.gains)
        tables += [gain_table(pair, gain) for pair, gain in judged.gains.items()]
    if given.sets and task.is_counting:
        frames["counts"] = counts_frame(judged.sets, judged.labels, task)
        last = list(given.sets)[-1]
        of_last = frames["counts"][frames["counts"]["predictor"] == clean(last)]
        tables.append(counts_table(last, of_last))
    return frames, [table for table in tables if table is not None]

"""A protocol's tables in files and on the console, its plot, and a page with answers.

OUT/tables/*.csv|md|tex    see `tables`
OUT/accuracy.png           the figure against the number of shots
OUT/report/report.html     the models of the first seed and the most shots, beside each other
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from actrep_ray.evaluation.frame_files import to_markdown, write_frame
from actrep_ray.evaluation.predictions import read_predictions
from actrep_ray.evaluation.report import write_report
from actrep_ray.evaluation.run_results import ReportInput
from actrep_ray.protocols.plot import draw_shots
from actrep_ray.protocols.setup import Protocol
from actrep_ray.protocols.tables import (
    Result,
    base_new_frame,
    matrix_frame,
    means_frame,
    open_set_frame,
    read_results,
    reasons_frame,
    trials_frame,
)
from actrep_ray.run.console import as_text, console
from actrep_ray.tasks.base import Task
from actrep_ray.tasks.loading import load_task


def report_protocol(protocol: Protocol) -> Path:
    """Write everything; returns the page."""
    task = load_task(protocol.recipe_of(protocol.trials[0]).task)
    results = read_results(protocol, task)
    frames = frames_of(protocol.name, results, task)
    same = "means" if len(protocol.seeds) == 1 else "trials"  # of one seed, both say the same
    for name, frame in frames.items():
        write_frame(frame, protocol.out / "tables" / name, task)
        if name != same:
            console().print(as_text(f"{name}\n{to_markdown(frame, task)}"), soft_wrap=True)
    plot = draw_shots(frames["means"], task, protocol.out / "accuracy.png")
    page = write_page_of(protocol, task)
    console().print(as_text(f"Tables: {protocol.out / 'tables'}; plot: {plot}; page: {page}"))
    return page


def frames_of(name: str, results: Sequence[Result], task: Task) -> dict[str, pd.DataFrame]:
    """The frames of a protocol, by the names of their files."""
    frames = {"trials": trials_frame(results, task), "means": means_frame(results, task)}
    if name == "base-to-new":
        frames["base_new"] = base_new_frame(results)
    elif name == "cross-dataset":
        frames["matrix"] = matrix_frame(results)
    elif name == "open-set":
        frames["open_set"] = open_set_frame(results)
    if not (reasons := reasons_frame(results)).empty:
        frames["reasons"] = reasons
    return frames


def write_page_of(protocol: Protocol, task: Task) -> Path:
    """The page of the first exam: what each way to train came to, with one answer whole."""
    exam = protocol.exams[0]
    shown = [
        trial
        for trial in protocol.trials
        if (not trial.shots or trial.seed == protocol.seeds[0])
        and not trial.change
        and trial.shots in (0, protocol.shots[-1])
        and trial.source in ("", exam.source)
    ]
    given = ReportInput(
        title=f"{protocol.name} on {exam.name}",
        task=task,
        clips=protocol.images_of(exam),
        sets={t.method: read_predictions(protocol.predictions(t, exam), task) for t in shown},
        facts={
            "checkpoint": str(protocol.checkpoint),
            "shots": str(protocol.shots[-1]),
            "seed": str(protocol.seeds[0]),
        },
    )
    return write_report(given, protocol.out).page

"""The periodicity detector as a predictor: a baseline that has seen no data and no label."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from actrep_ray.config import ConfigError, Recipe
from actrep_ray.evaluation.predictions import NOT_SURE, Prediction, write_predictions
from actrep_ray.evaluation.run_results import DETECTOR, write_settings
from actrep_ray.evaluation.scores import Metrics, score_predictions
from actrep_ray.tasks.base import Task, labels_of
from actrep_ray.tasks.loading import load_clips, load_task
from data_prep.processes import die_with, one_thread_each, shared_map
from data_prep.rows import clips_among
from data_prep.schema import Clip

FILE = f"predictions-{DETECTOR}.jsonl"

_NICENESS = 10  # of a detector beside other work


def predict_periodicity(
    clips: Sequence[Clip],
    *,
    num_processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Count in each clip by `data_prep.periodicity`, in order.

    Args:
        clips: What to count in; they are stripped of their labels before the detector gets them.
        num_processes: Processes that share the clips; None: one for each CPU, at most 16.
        progress: Called with the number of clips done.

    Raises:
        VideoError: if a video cannot be read.
    """
    unlabelled = [replace(clip, count=0, cycles=None, action="unknown") for clip in clips]
    with shared_map(_predict, unlabelled, num_processes, chunk=4) as answers:
        return _collect(answers, progress)


def _collect(
    answers: Iterator[Prediction], progress: Callable[[int], None] | None
) -> list[Prediction]:
    predictions = []
    for prediction in answers:
        predictions.append(prediction)
        if progress:
            progress(len(predictions))
    return predictions


def _predict(clip: Clip) -> Prediction:
    import cv2

    from data_prep.periodicity.detector import detect_cycles
    from data_prep.periodicity.verdict import COUNT

    cv2.setNumThreads(1)
    found = detect_cycles(clip)
    problem = NOT_SURE if found.reading is None else None
    return Prediction(
        clip.id,
        found.reading,
        cycles=found.cycles,
        problem=problem,
        confidence=found.confidence if found.verdict == COUNT else None,
    )


def write_baseline(
    clips: Sequence[Clip],
    out_dir: Path,
    task: Task,
    *,
    num_processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Predict and write `predictions-periodicity.jsonl`, which a report finds by its name."""
    predictions = predict_periodicity(clips, num_processes=num_processes, progress=progress)
    write_predictions(out_dir / FILE, predictions, task)
    return predictions


def begin_baselines(clips: Mapping[Path, Sequence[Clip]], task: Task) -> BaseProcess:
    """Start a process that writes the baseline of each folder while others train.

    It takes one processor that nobody else wants, and ends with this process.

    Args:
        clips: What to count in, by the folder to write to.
        task: The counting task.

    Returns:
        The process, whose exit code is 0 if all was written.
    """
    process = get_context("spawn").Process(
        target=_write_baselines, args=(os.getpid(), dict(clips), task), name=DETECTOR, daemon=True
    )
    with one_thread_each():
        process.start()
    return process


def _write_baselines(parent: int, clips: Mapping[Path, Sequence[Clip]], task: Task) -> None:
    die_with(parent)
    os.nice(_NICENESS)
    for folder, some in clips.items():
        write_baseline(some, folder, task, num_processes=1)


def drop_baseline(out_dir: Path) -> None:
    """Remove the predictions that an earlier evaluation left."""
    (out_dir / FILE).unlink(missing_ok=True)


@dataclass(frozen=True)
class PeriodicityJob:
    """An evaluation of the detector whose settings and data were checked."""

    recipe: Recipe
    clips: list[Clip]
    out_dir: Path

    def run(self, progress: Callable[[int], None] | None = None) -> Metrics:
        """Predict and score; writes predictions and settings, a report makes the rest of them."""
        task = load_task(self.recipe.task)
        predictions = write_baseline(self.clips, self.out_dir, task, progress=progress)
        metrics = score_predictions(
            predictions,
            labels_of(self.clips, task),
            task,
            num_bootstrap=self.recipe.eval.num_bootstrap,
            seed=self.recipe.seed,
        )
        write_settings(self.out_dir, self.recipe, f"{DETECTOR} (no model)")
        return metrics


def prepare_periodicity(recipe: Recipe, *, split: str, out_dir: Path) -> PeriodicityJob:
    """Check everything that can be checked before the work starts.

    Raises:
        ConfigError: for a task that does not count.
        ValueError: for data that cannot be used.
    """
    if not load_task(recipe.task).is_counting:
        raise ConfigError(f"task={recipe.task}: the periodicity detector can count, nothing else")
    clips = clips_among(load_clips(recipe, split, limit=recipe.eval.num_clips))
    out_dir.mkdir(parents=True, exist_ok=True)
    return PeriodicityJob(recipe, clips, out_dir)

"""What evaluations and trainings leave in a run folder, and what a report reads there.

RUN_DIR/config.resolved.json          settings, commit, versions
RUN_DIR/metrics.jsonl                 what a training logged
RUN_DIR/faults.jsonl                  workers that a training lost
RUN_DIR/predictions[-NAME].jsonl      answers on held-out clips, by step or by milestone
RUN_DIR/metrics.json                  figures of an evaluation that ran alone, by predictor
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from actrep_ray.config import Recipe, flat_settings, read_resolved, write_resolved
from actrep_ray.evaluation.predictions import Prediction, read_predictions
from actrep_ray.records import Reading
from actrep_ray.run.best import BestStep, best_of_run
from actrep_ray.run.faults import FaultSums, read_faults
from actrep_ray.run.metrics import read_metrics
from actrep_ray.run.provenance import provenance
from actrep_ray.tasks.base import Task
from actrep_ray.tasks.loading import chosen_clips, load_task
from data_prep.files import DataError, write_json
from data_prep.rows import Row

DETECTOR = "periodicity"
"""The predictor that is a baseline, which nothing trains."""

OTHERS = "other-"
"""Begins the names of predictors that are files of other tools."""

_PREDICTIONS = "predictions"
_Set = TypeVar("_Set", bound=Sequence[Prediction])
_LAST_STEPS = 10  # of a training without evaluations, whose answers a remark is on


def write_settings(folder: Path, recipe: Recipe, checkpoint: str) -> None:
    """Write the settings of an evaluation that ran alone."""
    source = {"checkpoint": checkpoint, **provenance(recipe)}
    write_resolved(recipe, folder / "config.resolved.json", source)


def write_metrics(folder: Path, predictors: Mapping[str, Mapping[str, Any]], last: str) -> None:
    """Write the figures of an evaluation that ran alone.

    Args:
        folder: Of the evaluation.
        predictors: Figures of each predictor, by its name, as JSON-able values.
        last: The one whose figures stand at the top as well, where those of one alone are looked
            for.
    """
    write_json(folder / "metrics.json", {**predictors[last], "predictors": dict(predictors)})


def remarks_on_training(folder: Path, task: Task) -> tuple[str, ...]:
    """What a task has to say about a training: about its last evaluation on held-out clips.

    Without any, about the answers that its last ten steps sampled.
    """
    rows = read_metrics(folder / "metrics.jsonl")
    phase, told = "eval", "held out"
    judged = [row for row in rows if any(key.startswith("eval/") for key in row)][-1:]
    if not judged:
        phase, told, judged = "train", "sampled", rows[-_LAST_STEPS:]
    figures = {}
    for figure in task.figures:
        values = [row.get(f"{phase}/{figure.name}") for row in judged]
        if known := [value for value in values if value is not None]:
            figures[figure.name] = sum(known) / len(known)
    where = f"{told}, step {judged[-1]['step']}" if judged else told
    return tuple(f"{where}: {remark}" for remark in task.remarks(figures))


@dataclass(frozen=True)
class ReportInput:
    """What a report is made of.

    Attributes:
        title: Name of the run.
        task: What was asked; says how answers are judged.
        clips: The held-out clips that were answered.
        sets: Predictions on them by the name of the predictor, in the order to show. Each is
            compared with the one before it, but for the periodicity detector, which is a baseline;
            the last is shown by bin and action.
        stages: Rows of `metrics.jsonl` by the name of the stage.
        train_truths: Right answers of the train split, for the constant predictor; may be empty.
        faults: What the stages lost and made good, by name; those that lost nothing are left out.
        facts: What else a reader should know (settings, versions), by name.
        settings: All settings of each run by their dotted names, by the name of the run.
        remarks: What a reader would miss of what was left out.
        num_bootstrap: Resamples of the intervals.
        seed: Of the resamples.
    """

    title: str
    task: Task
    clips: Sequence[Row]
    sets: Mapping[str, Sequence[Prediction]]
    stages: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    train_truths: Sequence[Reading] = ()
    faults: Mapping[str, FaultSums] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    num_bootstrap: int = 2000
    seed: int = 0


def read_run(run_dir: Path) -> ReportInput:
    """What a run folder, or each run folder right inside of it, holds.

    Raises:
        DataError: naming what was looked for.
    """
    settings = sorted(
        [*run_dir.glob("config.resolved.json"), *run_dir.glob("*/config.resolved.json")]
    )
    if not settings:
        raise DataError(f"{run_dir}: no config.resolved.json in it, expected the folder of a run")
    runs = [(path.parent, read_resolved(path)) for path in settings]
    runs.sort(key=lambda run: ("sft", "grpo").index(run[1][0].stage))
    recipe, content = runs[-1][1]
    task = load_task(recipe.task)
    stages: dict[str, list[dict[str, Any]]] = {}
    sets: dict[str, list[Prediction]] = {}
    faults: dict[str, FaultSums] = {}
    best: dict[Path, BestStep] = {}
    for folder, (of_run, _) in runs:
        if (path := folder / "metrics.jsonl").is_file() and (rows := read_metrics(path)):
            stages[of_run.stage.upper()] = rows
        if (sums := read_faults(folder)).lost:
            faults[of_run.stage.upper()] = sums
        best[folder] = best_of_run(of_run, folder)
        sets |= _read_sets(folder, task, best[folder].step)
    sets = _read_sets(
        run_dir, task, best[run_dir].step if run_dir in best else None
    ) or _same_clips(sets)
    if not stages and not sets:
        raise DataError(f"{run_dir}: neither metrics.jsonl nor {_PREDICTIONS}*.jsonl in it")
    clips, train_truths = _read_answered(recipe, sets, task)
    return ReportInput(
        title=run_dir.resolve().name,
        task=task,
        clips=clips,
        sets=sets,
        stages=stages,
        train_truths=train_truths,
        faults=faults,
        facts=_facts(recipe, content)
        | {
            f"best step of {folder.name}": told
            for folder, one in best.items()
            if (told := one.describe())
        },
        settings={folder.resolve().name: flat_settings(of_run) for folder, (of_run, _) in runs},
        num_bootstrap=recipe.eval.num_bootstrap,
        seed=recipe.seed,
    )


def read_runs(run_dirs: Sequence[Path]) -> ReportInput:
    """Several runs side by side: what each has come to, by its last predictor.

    Args:
        run_dirs: At least two, each as of `read_run`.

    Raises:
        DataError: as `read_run`; if one was given twice, was asked for something else than the
            last, or knows another right answer to a clip that the last knows too.
    """
    given = dict(zip(_names_of(run_dirs), map(read_run, run_dirs), strict=True))
    *_, last = given.values()
    for name, one in given.items():
        _check_comparable(name, one, last)
    sets = {name: list(one.sets.values())[-1] for name, one in given.items() if one.sets}
    kept = _same_clips(sets)
    *_, judge = sets or [""]
    remarks = tuple(
        f"{name}: its held-out clips are not those of {judge}, so its answers are left out"
        for name in sets
        if name not in kept
    )
    facts = {
        f"{fact} of {name}": text for name, one in given.items() for fact, text in one.facts.items()
    }
    return replace(
        given[judge] if judge else last,
        title=" and ".join(given),
        sets=kept,
        stages={f"{n} {s}": rows for n, one in given.items() for s, rows in one.stages.items()},
        faults={f"{n} {s}": sums for n, one in given.items() for s, sums in one.faults.items()},
        facts=facts,
        settings={name: list(one.settings.values())[-1] for name, one in given.items()},
        remarks=remarks,
    )


def _names_of(run_dirs: Sequence[Path]) -> list[str]:
    """The ends of their paths, as long as it takes to tell them apart."""
    paths = [run_dir.resolve() for run_dir in run_dirs]
    if doubled := [path for i, path in enumerate(paths) if path in paths[:i]]:
        raise DataError(f"{doubled[0]}: given twice, expected each run once")
    length, names = 0, list[str]()
    while len(set(names)) < len(paths):
        length += 1
        names = [str(Path(*path.parts[-length:])) for path in paths]
    return names


def _check_comparable(name: str, one: ReportInput, last: ReportInput) -> None:
    if one.task.name != last.task.name:
        raise DataError(
            f"{name}: was asked for {one.task.name}, {last.title} for {last.task.name}; expected "
            "runs of one task"
        )
    truths = {row.id: last.task.truth(last.task.reference(row)) for row in last.clips}
    for row in one.clips:
        truth = one.task.truth(one.task.reference(row))
        if row.id in truths and truths[row.id] != truth:
            raise DataError(
                f"{name}: the right answer to {row.id!r} is {truth}, and {truths[row.id]} in "
                f"{last.title}; expected the same data"
            )


def _read_sets(folder: Path, task: Task, best: int | None = None) -> dict[str, list[Prediction]]:
    """Predictions of a folder by name; of those that are numbered by step, first, last and best.

    Args:
        folder: Holds them.
        task: How they are read.
        best: The best step, if one was looked for.
    """
    paths = sorted(folder.glob(f"{_PREDICTIONS}*.jsonl"))
    names = {path: _named(path.stem.removeprefix(_PREDICTIONS)) for path in paths}
    steps = [path for path in paths if names[path].isdigit()]
    chosen = [p for p in paths if p not in steps[1:-1] or int(names[p]) == best]
    chosen.sort(key=lambda path: _order_of(names[path]))
    return {
        shown_name(folder, _step_name(names[path], best)): read_predictions(path, task)
        for path in chosen
    }


def shown_name(folder: Path, name: str) -> str:
    """As a report calls a predictor: one without a name by its folder."""
    return _named(name) or folder.resolve().name


def _named(name: str) -> str:
    return name.strip("-_")


def _step_name(name: str, best: int | None) -> str:
    if not name.isdigit():
        return name
    return f"step {int(name)}" + (", best" if int(name) == best else "")


def _order_of(name: str) -> int:
    """Baselines, models in the order in which they are trained, other names as they come."""
    order = (DETECTOR, OTHERS, "untrained", "sft", "grpo")
    return next((i for i, known in enumerate(order) if known in name), len(order))


def _same_clips(sets: dict[str, _Set]) -> dict[str, _Set]:
    """The predictions about the clips that the last ones are about: only those can be compared."""
    ids = [{p.clip_id for p in predictions} for predictions in sets.values()]
    return {
        name: p
        for (name, p), answered in zip(sets.items(), ids, strict=True)
        if answered == ids[-1]
    }


def _read_answered(
    recipe: Recipe, sets: Mapping[str, Sequence[Prediction]], task: Task
) -> tuple[list[Row], list[Reading]]:
    """The clips that the predictions are about, and the right answers of the train split."""
    if not sets:
        return [], []
    ids = {p.clip_id for predictions in sets.values() for p in predictions}
    clips, train_truths = [], []
    for clip in chosen_clips(recipe):
        if clip.id in ids:
            clips.append(clip)
        elif clip.split == "train":
            train_truths.append(task.truth(task.reference(clip)))
    return clips, train_truths


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
        "commit": str(content.get("commit") or "not known"),
        "versions": ", ".join(
            f"{name} {version}" for name, version in versions.items() if version is not None
        ),  # what is not installed has none
    }

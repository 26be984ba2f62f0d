"""`actrep evaluate`: count in every clip of a split, by models or by the periodicity detector."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.api_model import (
    add_api_model_arguments,
    api_evaluation,
    refuse_with_api,
    refuse_without_api,
    show_estimate,
    show_report,
)
from actrep_ray.cli.checkpoint import (
    MOST_ANSWERS,
    add_checkpoint_arguments,
    read_model,
    recipe_for,
)
from actrep_ray.cli.commands import UsageError, add_command, add_overwrite, read_recipe
from actrep_ray.cli.inputs import check_inputs
from actrep_ray.cli.protocol import (
    add_protocol_arguments,
    evaluate_by_protocol,
    refuse_without_protocol,
)
from data_prep.schema import SPLITS

if TYPE_CHECKING:
    from actrep_ray.config import Recipe
    from actrep_ray.evaluation.jobs import EvaluationJob
    from actrep_ray.evaluation.report import Report
    from actrep_ray.tasks.base import Task
    from data_prep.rows import Row

_JOINED = "data.jsonl"  # of a folder: the rows of several files
_OF_PREDICTORS = ("predictions*.jsonl", "answered*.jsonl", "calibration*.json", "requests-*.json")


def add_evaluate(commands: Any) -> None:
    """Add `actrep evaluate`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands,
        "evaluate",
        _evaluate,
        "count in every clip of a split and score the answers",
        "actrep evaluate --checkpoint runs/tiny_grpo --data data/synthetic-easy/clips.jsonl\n"
        "  actrep evaluate --method api --base-url http://localhost:8000/v1 --model NAME \\\n"
        "      --data data/repcount/clips.jsonl --set video.fps=2 --set video.max_frames=32",
    )
    add_evaluation_arguments(parser, "runs/evaluation, runs/periodicity or runs/PROTOCOL")
    add_checkpoint_arguments(parser, most=None, has_api=True)
    add_api_model_arguments(parser)
    add_protocol_arguments(parser)


def add_evaluation_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Add what is asked about and of whom, and where it is written.

    Args:
        parser: Gets them.
        out: Where it is written by default, in words.
    """
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="JSONL of clips; several are joined",
    )
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"default: {out}",
    )
    parser.add_argument(
        "--no-baseline",
        action="store_true",
        help="leave out the row of the periodicity detector",
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="answers of another tool as a row: JSONL with clip_id and count (or text); may be "
        "given again",
    )
    parser.add_argument(
        "--all-checkpoints",
        action="store_true",
        help="of a run folder all checkpoints, not the newest alone",
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="K",
        help="answers that are drawn for each clip beside the greedy one: rows of their majority "
        "and median, and pass@1 to pass@K",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="of --samples (default: rollout.temperature of the checkpoint's settings), or of "
        "--method api (default: 0)",
    )
    writing = parser.add_mutually_exclusive_group()
    add_overwrite(writing, "the evaluation that is in DIR")
    writing.add_argument(
        "--resume", action="store_true", help="go on with the evaluation in DIR that was cut short"
    )


def _evaluate(args: argparse.Namespace) -> None:
    if args.protocol:
        refuse_without_api(args)
        evaluate_by_protocol(args)
        return
    refuse_without_protocol(args)
    evaluate(args)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate models, or the periodicity detector, as the arguments of all kinds say."""
    if args.method == "api":
        _evaluate_api(args)
        return
    refuse_without_api(args)
    if args.method == "periodicity":
        _evaluate_periodicity(args)
    else:
        _evaluate_model(args)


def _evaluate_model(args: argparse.Namespace) -> None:
    _check_samples(args)
    models = _models_of(args)
    recipes = [settings_of(args, model) for model in models.values()]
    _check_one_task(recipes)
    for recipe in _about_each(args.data, recipes[-1]):
        check_inputs(recipe, (args.split,))
    from actrep_ray.evaluation.jobs import prepare_evaluation
    from actrep_ray.evaluation.report import report_run
    from actrep_ray.tasks.loading import load_task

    out_dir = args.out or Path("runs/evaluation")
    task = load_task(recipes[-1].task)
    with _own(out_dir, overwrite=args.overwrite, resume=args.resume):
        recipes = _with_all(args.data, recipes, out_dir)
        jobs = [
            prepare_evaluation(
                recipe,
                model,
                split=args.split,
                out_dir=out_dir,
                name=name,
                num_samples=args.samples or 0,
            )
            for (name, model), recipe in zip(models.items(), recipes, strict=True)
        ]
        clips = jobs[-1].clips
        if any([clip.id for clip in job.clips] != [clip.id for clip in clips] for job in jobs):
            raise UsageError(
                "--checkpoint: their settings choose other clips of --data: one at a time"
            )
        _take_over(args.predictions, clips, out_dir, task)
        for job in jobs:
            job.run()
        _add_baseline(clips, out_dir, task, wanted=task.is_counting and not args.no_baseline)
        _write_metrics(out_dir, report_run(out_dir), jobs)


def _check_samples(args: argparse.Namespace) -> None:
    """Refuse samples of which nothing can be told."""
    if args.samples is not None and not 2 <= args.samples <= MOST_ANSWERS:
        raise UsageError(
            f"--samples {args.samples}: expected 2 (one has no majority) to {MOST_ANSWERS}"
        )
    if args.temperature is not None and not args.samples:
        raise UsageError("--temperature belongs to --samples, of which there are none")


def _write_metrics(out_dir: Path, report: "Report", jobs: Sequence["EvaluationJob"]) -> None:
    """The figures of every row; of samples, how they were drawn and what their confidence is."""
    from actrep_ray.evaluation.confidence import write_calibration
    from actrep_ray.evaluation.run_results import write_metrics
    from actrep_ray.run.record import model_fingerprint

    predictors = report.to_json()
    for job in jobs:
        if job.num_samples:
            predictors[job.shown_name]["samples"] = job.sampling
            path = out_dir / (f"calibration-{job.name}.json" if job.name else "calibration.json")
            found = report.confidence[job.shown_name]
            write_calibration(path, found, model_fingerprint(job.model), job.sampling)
    write_metrics(out_dir, predictors, jobs[-1].shown_name)


def _check_one_task(recipes: Sequence["Recipe"]) -> None:
    """Refuse checkpoints whose answers are not read alike.

    Raises:
        UsageError: naming their tasks.
    """
    if len(tasks := {recipe.task for recipe in recipes}) > 1:
        raise UsageError(f"--checkpoint: of the tasks {' and '.join(sorted(tasks))}: one at a time")


def _models_of(args: argparse.Namespace) -> dict[str, Path]:
    """Model folders by the names of their predictors; one alone needs none."""
    from actrep_ray.run.model_folder import whole_checkpoints

    folders: list[Path] = []
    for given in args.checkpoint or [None]:
        if given and args.all_checkpoints and (given / "checkpoints").is_dir():
            folders += whole_checkpoints(given)
        else:
            folders.append(read_model(given, may_download=args.download))
    if len(folders) == 1:
        return {"": folders[0]}
    return {_name_of(folder, folders): folder for folder in folders}


def _name_of(folder: Path, others: Sequence[Path]) -> str:
    """A checkpoint of a run by run and step, another model by its folder.

    Raises:
        UsageError: if another folder has the same name.
    """

    def name(of: Path) -> str:
        if of.parent.name == "checkpoints":
            return f"{of.parents[1].name}-{of.name}"
        return f"model-{of.name}" if of.name.isdigit() else of.name  # a number would be a step

    if [name(one) for one in others].count(name(folder)) > 1:
        raise UsageError(f"{folder}: two checkpoints would be called {name(folder)}")
    return name(folder)


def _take_over(files: Sequence[Path], clips: Sequence["Row"], out_dir: Path, task: "Task") -> None:
    """Put what other tools answered beside the models' answers."""
    from actrep_ray.evaluation.predictions import read_others, write_predictions
    from actrep_ray.evaluation.run_results import OTHERS

    ids, stems = [clip.id for clip in clips], [path.stem for path in files]
    for path in files:
        if stems.count(path.stem) > 1:
            raise UsageError(f"--predictions {path}: two files would be called {path.stem}")
        name = f"predictions-{OTHERS}{path.stem}.jsonl"
        write_predictions(out_dir / name, read_others(path, task, dict.fromkeys(ids)), task)


def settings_of(args: argparse.Namespace, model: Path) -> "Recipe":
    """Those of the checkpoint, for all clips of the file: its run's data sets are of another one.

    `--recipe` and `--set` may name some.
    """
    overrides = [_data_of(args)] if args.recipe else [_data_of(args), "data.datasets=[]"]
    if args.temperature is not None:
        overrides.append(f"rollout.temperature={args.temperature}")
    return recipe_for(args, model, overrides)


def _evaluate_periodicity(args: argparse.Namespace) -> None:
    from actrep_ray.config import override
    from actrep_ray.evaluation.periodicity import prepare_periodicity
    from actrep_ray.evaluation.report import report_run
    from actrep_ray.evaluation.run_results import DETECTOR, write_metrics

    if args.checkpoint is not None:
        raise UsageError("--checkpoint belongs to --method model")
    if args.resume or args.predictions or args.all_checkpoints:
        raise UsageError("--resume, --predictions and --all-checkpoints belong to --method model")
    if args.samples is not None or args.temperature is not None:
        raise UsageError("--samples and --temperature belong to --method model")
    recipe = override(read_recipe(args), [_data_of(args), *args.set])
    out_dir = args.out or Path("runs/periodicity")
    with _own(out_dir, overwrite=args.overwrite):
        [recipe] = _with_all(args.data, [recipe], out_dir)
        job = prepare_periodicity(recipe, split=args.split, out_dir=out_dir)
        with _showing_progress(len(job.clips)) as progress:
            job.run(progress)
        write_metrics(out_dir, report_run(out_dir).to_json(), DETECTOR)


def _evaluate_api(args: argparse.Namespace) -> None:
    from actrep_ray.config import override
    from actrep_ray.evaluation.report import report_run
    from actrep_ray.evaluation.run_results import write_metrics
    from actrep_ray.run.console import error_console
    from actrep_ray.run.progress import step_progress
    from actrep_ray.tasks.loading import load_task

    refuse_with_api(args)
    recipe = override(read_recipe(args), [_data_of(args), *args.set])
    out_dir, task = args.out or Path("runs/evaluation"), load_task(recipe.task)
    with _own(out_dir, overwrite=args.overwrite, resume=args.resume or args.estimate):
        [recipe] = _with_all(args.data, [recipe], out_dir)
        job = api_evaluation(args, recipe, out_dir)
        show_estimate(args, job)
        if args.estimate:
            return
        _take_over(args.predictions, job.clips, out_dir, task)
        left = len(job.left())
        with step_progress("asking", start=0, total=left, on=error_console()) as progress:
            report = job.run(lambda done: progress(done, {}))
        _add_baseline(job.clips, out_dir, task, wanted=task.is_counting and not args.no_baseline)
        write_metrics(out_dir, report_run(out_dir).to_json(), job.name)
        show_report(args, job, report)


@contextmanager
def _own(out_dir: Path, *, overwrite: bool, resume: bool = False) -> Iterator[None]:
    """Hold a folder that no run and no other evaluation is in."""
    from actrep_ray.run.lock import FolderLock
    from data_prep.overwriting import refuse_existing

    def check() -> list[Path]:
        if (out_dir / "checkpoints").exists():
            raise UsageError(f"{out_dir}: is the folder of a training, give another --out")
        if resume:
            return []
        names = ("metrics.json", "config.resolved.json", "begun.json", _JOINED)
        written = [out_dir / name for name in names]
        for pattern in (
            "predictions*.jsonl",
            "answered*.jsonl",
            "calibration*.json",
            "requests-*.json",
        ):
            written += out_dir.glob(pattern)
        refuse_existing(*written, overwrite=overwrite)
        return written

    check()
    with FolderLock.acquire(out_dir, "actrep evaluate"):
        for path in check():  # the report would take it for another row of this evaluation
            path.unlink(missing_ok=True)
        yield


def _data_of(args: argparse.Namespace) -> str:
    return f"data.path={json.dumps(str(args.data[0]))}"


def _about_each(files: Sequence[Path], recipe: "Recipe") -> list["Recipe"]:
    """The recipe about each file; about all of its data sets where there are several files."""
    if len(files) == 1:
        return [recipe]
    changes = ({"path": str(path), "datasets": ()} for path in files)
    return [_with_data(recipe, change) for change in changes]


def _with_data(recipe: "Recipe", change: dict[str, Any]) -> "Recipe":
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=change)})


def _with_all(files: Sequence[Path], recipes: Sequence["Recipe"], out_dir: Path) -> list["Recipe"]:
    """The recipes about the clips of all files: one alone, or all joined in one of `out_dir`.

    Raises:
        DataError: for a bad row, or two of one id.
    """
    if len(files) == 1:
        return list(recipes)
    from data_prep.rows import join_rows, write_rows

    allowed = dict.fromkeys(folder for recipe in recipes for folder in recipe.data.allow_outside)
    joined = out_dir / _JOINED
    write_rows(joined, join_rows(files, allow_outside=list(allowed)))
    allowed |= dict.fromkeys(str(path.absolute().parent) for path in files)
    change = {"path": str(joined), "allow_outside": tuple(allowed)}
    return [_with_data(recipe, change) for recipe in recipes]


def _add_baseline(clips: Sequence["Row"], out_dir: Path, task: "Task", *, wanted: bool) -> None:
    """Put the detector's predictions beside a model's, or take out those of an earlier call."""
    from actrep_ray.evaluation.periodicity import drop_baseline, write_baseline
    from data_prep.rows import clips_among

    if not wanted:
        drop_baseline(out_dir)
        return
    with _showing_progress(len(clips)) as progress:
        write_baseline(clips_among(clips), out_dir, task, progress=progress)


@contextmanager
def _showing_progress(num_clips: int) -> Iterator[Callable[[int], None]]:
    """A bar of the clips that the detector has done."""
    from actrep_ray.run.console import error_console, progress_bar

    with progress_bar(on=error_console()) as bar:
        task = bar.add_task("periodicity", total=num_clips)
        yield lambda done: bar.update(task, completed=done)

"""`--method periodicity`, `--plot` and `--cross-check`: what is typed and shown of the detector."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.parts import show

if TYPE_CHECKING:
    from actrep_ray.evaluation.predictions import Prediction
    from data_prep.periodicity.detector import Detection
    from data_prep.schema import Clip

METHODS = ("model", "periodicity")


def add_method(parser: argparse.ArgumentParser) -> None:
    """Add `--method`."""
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="model",
        help="periodicity: a detector without a model, by self-similarity; default: %(default)s",
    )


def add_count_options(parser: argparse.ArgumentParser) -> None:
    """Add `--plot` and `--cross-check`."""
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw self-similarity, signal and cycles of the periodicity detector",
    )
    parser.add_argument(
        "--cross-check",
        action="store_true",
        help="compare the model's cycles with those of the periodicity detector",
    )


def needs_checkpoint(args: argparse.Namespace) -> Path:
    """The checkpoint that a model is to be read from.

    Raises:
        ConfigError: if none was given.
    """
    from actrep_ray.config import ConfigError

    if args.checkpoint is None:
        raise ConfigError("--checkpoint DIR is missing; only --method periodicity needs none")
    return Path(args.checkpoint)


def evaluate_periodicity(args: argparse.Namespace) -> None:
    """`actrep evaluate --method periodicity`."""
    from actrep_ray.config import ConfigError, load_recipe, override
    from actrep_ray.evaluation.periodicity import prepare_periodicity
    from actrep_ray.evaluation.report import report_run

    if args.checkpoint is not None:
        raise ConfigError("--checkpoint belongs to --method model")
    data = f"data.path={json.dumps(str(args.data))}"
    recipe = override(load_recipe(args.recipe), [data, *args.set])
    out_dir = args.out or Path("runs/periodicity")
    job = prepare_periodicity(recipe, split=args.split, out_dir=out_dir)
    with showing_progress(len(job.clips)) as progress:
        job.run(progress)
    report_run(out_dir)


def add_baseline(clips: Sequence["Clip"], out_dir: Path, *, wanted: bool) -> None:
    """Put the detector's predictions beside a model's, or take out those of an earlier call."""
    from actrep_ray.evaluation.periodicity import drop_baseline, write_baseline

    if not wanted:
        drop_baseline(out_dir)
        return
    with showing_progress(len(clips)) as progress:
        write_baseline(clips, out_dir, progress=progress)


@contextmanager
def showing_progress(num_clips: int) -> Iterator[Callable[[int], None]]:
    """A bar of the clips that the detector has done."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("periodicity", total=num_clips)
        yield lambda done: bar.update(task, completed=done)


def count_periodicity(clip: "Clip", args: argparse.Namespace) -> None:
    """`actrep count --method periodicity`."""
    from data_prep.periodicity.detector import detect_cycles

    found = detect_cycles(clip)
    if args.plot:
        _plot(found, args)
    if args.json:
        record = {"video": str(args.video), "method": "periodicity", **_as_json(found)}
        show(json.dumps(record))
        return
    show(f"{args.video}: {_repetitions(found.count)}")
    for i, (start, end) in enumerate(found.cycles, start=1):
        show(f"  {i:3d}  {start:6.1f} s  to {end:6.1f} s")
    period = found.period.period_s
    length = "none that repeats" if period is None else f"{period:.2f} s"
    show(f"periodicity {found.score:.2f} of 1, typical period: {length}")
    if args.plot:
        show(f"picture: {args.plot}")


def cross_check(clip: "Clip", prediction: "Prediction", args: argparse.Namespace) -> dict[str, Any]:
    """Compare a model's cycles with the detector's; JSON values, and the picture if asked for."""
    from data_prep.periodicity.detector import agreement, detect_cycles

    found = detect_cycles(clip)
    if args.plot:
        _plot(found, args, model=prediction)
    return {"agreement": round(agreement(prediction.cycles, found.cycles), 3), **_as_json(found)}


def describe_cross_check(check: dict[str, Any], plot: Path | None) -> str:
    """The cross-check in words."""
    text = (
        f"cross-check: agreement {check['agreement']:.2f} of 1 with the periodicity detector, "
        f"which finds {_repetitions(check['count'])} (periodicity {check['score']:.2f})"
    )
    return f"{text}\npicture: {plot}" if plot else text


def _repetitions(count: int) -> str:
    return f"{count} repetition{'' if count == 1 else 's'}"


def _as_json(found: "Detection") -> dict[str, Any]:
    return {
        "count": found.count,
        "cycles": [[round(start, 3), round(end, 3)] for start, end in found.cycles],
        "score": round(found.score, 3),
        "period_s": None if found.period.period_s is None else round(found.period.period_s, 3),
    }


def _plot(found: "Detection", args: argparse.Namespace, model: "Prediction | None" = None) -> None:
    from actrep_ray.evaluation.periodicity_figure import plot_detection
    from data_prep.schema import DataError

    others = {} if model is None else {"model": model.cycles}
    try:
        plot_detection(found, args.plot, title=args.video.name, others=others)
    except (OSError, ValueError) as error:  # a folder that may not be written, an unknown ending
        raise DataError(f"--plot {args.plot}: {error}") from error

"""`actrep count`: the repetitions in videos, by a model or by the periodicity detector."""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.camera import add_camera, count_camera
from actrep_ray.cli.checkpoint import (
    add_calibration,
    add_checkpoint_arguments,
    add_samples,
    calibration_for,
    names_action,
    read_model,
    recipe_for,
    with_sooner_engine,
)
from actrep_ray.cli.commands import (
    UsageError,
    add_command,
    add_overwrite,
    complain,
    filled_path,
    picture_file,
    show,
)

if TYPE_CHECKING:
    from actrep_ray.config import Recipe
    from actrep_ray.counting.batch import Batch, Count
    from actrep_ray.counting.outputs import Outputs
    from actrep_ray.counting.record import VideoCount
    from actrep_ray.counting.videos import Failure
    from actrep_ray.evaluation.confidence import Calibration

EXIT_FAILED = 1
"""Some of many videos could not be counted in."""
EXIT_NOT_SURE = 3
"""Model or detector doubt what they see; 2 is a wrong input."""

_ANY = "unknown"  # action
_SHORTEST_S, _LONGEST_S = 2.0, 3600.0  # of a window


def add_count(commands: Any) -> None:
    """Add `actrep count`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands,
        "count",
        _count,
        "count the repetitions in videos",
        "actrep count squats.mp4 --checkpoint runs/tiny_grpo --samples 5\n"
        "  actrep count clips/ --method periodicity --out counts.jsonl --csv counts.csv\n"
        "  actrep count --camera 0",
    )
    parser.add_argument(
        "video",
        type=filled_path,
        nargs="*",
        metavar="VIDEO",
        help="a file, a folder (all videos in it), or a pattern as 'clips/*.mp4'",
    )
    add_samples(parser)
    add_calibration(parser)
    parser.add_argument(
        "--window",
        type=_seconds,
        metavar="SECONDS",
        help="show the model at most this much at a time; longer videos are cut in their pauses "
        "(default: video.max_frames / video.fps)",
    )
    parser.add_argument(
        "--segments",
        action="store_true",
        help="find stretches of repetitions first, ask the model about each alone, and name it by "
        "what the model sees there, or by the surest of --actions",
    )
    parser.add_argument(
        "--cross-check",
        action=argparse.BooleanOptionalAction,
        help="compare the model's cycles with those of the periodicity detector (default: in "
        "videos of up to 120 s, but with --actions)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object a video")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--action", default=_ANY, metavar="NAME", help="name for {action} in data.question"
    )
    asked.add_argument(
        "--actions",
        type=_names,
        default=[],
        metavar="NAME,NAME",
        help="count each of several actions of one video",
    )
    _add_outputs(parser)
    add_camera(parser)
    add_checkpoint_arguments(parser)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files", "of several videos, folders with a file each")
    files.add_argument("--csv", type=Path, metavar="FILE.csv", help="a table, one row a video")
    files.add_argument(
        "--srt", type=Path, metavar="FILE.srt", help="subtitles, one cue a repetition"
    )
    files.add_argument(
        "--overlay",
        type=Path,
        metavar="FILE.mp4",
        help="the video with a counter and a bar of the repetitions, its sound kept",
    )
    files.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw the cycles, and what the periodicity detector saw where it looked",
    )
    files.add_argument(
        "--out",
        type=Path,
        metavar="FILE.jsonl",
        help="write each count as it is done: --resume leaves out what is there",
    )
    goes_on = files.add_mutually_exclusive_group()
    goes_on.add_argument("--resume", action="store_true", help="go on with the file of --out")
    add_overwrite(goes_on, "files of these names")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text}: expected names with commas between, each once")
    return names


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _SHORTEST_S <= seconds <= _LONGEST_S:
        raise argparse.ArgumentTypeError(
            f"{text}: expected a number of seconds, {_SHORTEST_S:g} to {_LONGEST_S:g}"
        )
    return seconds


def _count(args: argparse.Namespace) -> int:
    from actrep_ray.counting.videos import are_many, find_videos

    if args.camera is not None:
        _refuse_beside_camera(args)
        return count_camera(args)
    if args.allow_network:
        raise UsageError("--allow-network is for --camera")
    if not args.video:
        raise UsageError("nothing to count in: give a VIDEO, or --camera")
    is_model = args.method == "model"
    if not is_model:
        _refuse_of_model(args)
    if args.resume and args.out is None:
        raise UsageError("--resume goes on with a file of results: give --out FILE.jsonl")
    many = are_many(args.video)
    outputs = _outputs_of(args, are_folders=many)
    model = read_model(args.checkpoint, may_download=args.download) if is_model else None
    recipe = recipe_for(args, model) if model else None
    if recipe is not None:
        _check_actions(args, recipe, many=many or args.out is not None)
    calibration = calibration_for(args, model, recipe) if model and recipe else None
    videos = find_videos(args.video)
    outputs.check(videos, overwrite=args.overwrite or args.resume)
    if many or args.out is not None:
        return _count_many(videos, args, outputs, model, recipe, calibration)
    return _count_one(videos[0], args, outputs, model, recipe, calibration)


def _refuse_beside_camera(args: argparse.Namespace) -> None:
    """What a stream is not asked, and is not written to."""
    beside = {
        "VIDEO": args.video,
        "--checkpoint": args.checkpoint,
        "--csv": args.csv,
        "--srt": args.srt,
        "--overlay": args.overlay,
        "--plot": args.plot,
        "--out": args.out,
        "--resume": args.resume,
    }
    for option, is_given in beside.items():
        if is_given:
            raise UsageError(f"--camera counts by the detector, alone: leave out {option}")
    _refuse_of_model(args)


def _refuse_of_model(args: argparse.Namespace) -> None:
    """What only a model can be asked."""
    asked = {
        "--samples": args.samples > 1,
        "--calibration": args.calibration is not None,
        "--window": args.window is not None,
        "--segments": args.segments,
        "--cross-check": args.cross_check is not None,
        "--action": args.action != _ANY,
        "--actions": bool(args.actions),
    }
    for option, is_given in asked.items():
        if is_given:
            raise UsageError(f"{option} is for a model: leave it out, or --method periodicity")


def _check_actions(args: argparse.Namespace, recipe: "Recipe", *, many: bool) -> None:
    """Refuse names that the question would not say, and several where one is written down."""
    is_named = bool(args.actions) or args.action != _ANY
    if is_named and not names_action(recipe):
        raise UsageError(
            f"the question of this checkpoint names no action (data.question="
            f"{recipe.data.question!r}): leave out --action and --actions, or --set data.question"
        )
    if args.segments and recipe.task != "counting":
        raise UsageError(f"--segments is for a model that counts, not for task={recipe.task}")
    if args.actions and (many or args.srt or args.overlay or args.plot):
        raise UsageError("--actions counts in one video, without --out, --srt, --overlay or --plot")


def _outputs_of(args: argparse.Namespace, *, are_folders: bool) -> "Outputs":
    from actrep_ray.counting.outputs import Outputs

    if not are_folders:
        for given, suffix in ((args.srt, ".srt"), (args.overlay, ".mp4")):
            if given is not None and given.suffix.lower() != suffix:
                raise UsageError(f"{given}: expected a name that ends in {suffix}")
        if args.plot is not None:
            try:
                picture_file(str(args.plot))
            except argparse.ArgumentTypeError as error:
                raise UsageError(f"--plot {error}") from error
    return Outputs(args.csv, args.srt, args.overlay, args.plot, are_folders)


def _count_one(
    video: Path,
    args: argparse.Namespace,
    outputs: "Outputs",
    model: Path | None,
    recipe: "Recipe | None",
    calibration: "Calibration | None",
) -> int:
    from actrep_ray.counting.panel import describe
    from actrep_ray.counting.videos import Failure, Source
    from data_prep.periodicity.verdict import NOT_SURE
    from data_prep.video import VideoError, clip_of_video

    sources = [
        Source(video, clip_of_video(video, action=action))
        for action in args.actions or [args.action]
    ]
    with _counter(args, model, recipe, calibration, num_videos=len(sources)) as count:
        found = count(sources)
    if args.segments and args.actions:
        counts = [one for one in found if not isinstance(one, Failure)]
        found = [_merged(counts)] if len(counts) == len(found) else found
    records = []
    for counted in found:
        if isinstance(counted, Failure):
            raise VideoError(counted.reason)
        with _telling_of_plot(args):
            outputs.write(counted)
        records.append(counted.to_json())
        show(json.dumps(records[-1]) if args.json else describe(counted))
    outputs.write_table(records)
    return 0 if all(record["verdict"] != NOT_SURE for record in records) else EXIT_NOT_SURE


def _merged(counts: "Sequence[VideoCount]") -> "VideoCount":
    """One count of several actions, which is doubted as each of them was."""
    from actrep_ray.counting.by_model import checked, doubted
    from actrep_ray.counting.segments import named_by_action

    merged, seen = named_by_action(counts), counts[0].detection
    return doubted(merged if seen is None else checked(merged, seen))


def _count_many(
    videos: Sequence[Path],
    args: argparse.Namespace,
    outputs: "Outputs",
    model: Path | None,
    recipe: "Recipe | None",
    calibration: "Calibration | None",
) -> int:
    from actrep_ray.counting.batch import AT_A_TIME, Journal, count_all
    from actrep_ray.run.console import error_console, progress_bar

    journal = Journal(
        args.out, _asked(args, model, recipe), goes_on=args.resume, overwrite=args.overwrite
    )
    num_waiting = sum(not journal.holds(video) for video in videos)
    with (
        journal,
        _counter(args, model, recipe, calibration, num_videos=num_waiting) as count,
        progress_bar(on=error_console()) as bar,
    ):
        task = bar.add_task("videos", total=num_waiting)

        def told(done: "VideoCount | Failure") -> None:
            bar.advance(task)
            _show_done(done, journal.records[str(done.video)], as_json=args.json)

        batch = count_all(
            videos, count, outputs, journal, action=args.action, told=told,
            at_a_time=AT_A_TIME if args.method == "model" else 1,
        )  # fmt: skip
    _complain_of(batch, len(videos))
    if batch.failures:
        return EXIT_FAILED
    return EXIT_NOT_SURE if batch.num_unsure else 0


def _show_done(done: "VideoCount | Failure", record: dict[str, Any], *, as_json: bool) -> None:
    from actrep_ray.counting.panel import headline
    from actrep_ray.counting.videos import Failure

    if as_json:
        show(json.dumps({key: value for key, value in record.items() if key != "of"}))
    elif not isinstance(done, Failure):
        show(headline(done))


def _complain_of(batch: "Batch", num_videos: int) -> None:
    """How many were counted, and the list of those that were not."""
    kept = f", {batch.num_kept} counted before" if batch.num_kept else ""
    unsure = f", {batch.num_unsure} not sure" if batch.num_unsure else ""
    share = sum(batch.consistent) / len(batch.consistent) if batch.consistent else None
    consistent = "" if share is None else f", consistent {share:.2f} of 1"
    failed = f", {len(batch.failures)} failed:" if batch.failures else ""
    complain(f"{batch.num_done} of {num_videos} videos counted{kept}{unsure}{consistent}{failed}")
    for failure in batch.failures:
        complain(f"  {failure.reason}")


def _asked(args: argparse.Namespace, model: Path | None, recipe: "Recipe | None") -> dict[str, Any]:
    """All that a count depends on, beside the video."""
    from actrep_ray.run.provenance import file_hash

    asked: dict[str, Any] = {"method": args.method, "action": args.action}
    if model is None or recipe is None:
        return asked
    settings = recipe.model_dump_json(include={"task", "seed", "data", "video", "rollout"})
    return {
        **asked,
        "checkpoint": str(model),
        "samples": args.samples,
        "calibration": None if args.calibration is None else file_hash(args.calibration),
        "window": args.window,
        "segments": args.segments,
        "cross_check": args.cross_check,
        "settings": json.loads(settings),
    }


@contextmanager
def _counter(
    args: argparse.Namespace,
    model: Path | None,
    recipe: "Recipe | None",
    calibration: "Calibration | None",
    *,
    num_videos: int,
) -> "Iterator[Count]":
    """What counts; the engine of a model is started only if there is something to count."""
    if model is None or recipe is None:
        from actrep_ray.counting.by_detector import count_by_detector

        yield count_by_detector
        return
    if not num_videos:
        yield lambda sources: []
        return
    from actrep_ray.counting.by_model import ModelCounter

    with ModelCounter(
        model,
        with_sooner_engine(recipe, args.set, num_videos),
        num_answers=args.samples,
        is_checked=False if args.actions and args.cross_check is None else args.cross_check,
        window_s=args.window,
        calibration=calibration,
        by_segment=args.segments,
    ) as counter:
        yield counter.count


@contextmanager
def _telling_of_plot(args: argparse.Namespace) -> Iterator[None]:
    """Name the option whose folder may not be written."""
    try:
        yield
    except OSError as error:
        if args.plot is None or not isinstance(error.filename, str | Path):
            raise
        raise UsageError(f"--plot {args.plot}: {error.strerror}") from error

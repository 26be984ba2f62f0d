"""`actrep validate`: arguments, progress and table; the work is done by `data_prep.validation`."""

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.commands import UsageError, add_command, add_set, read_recipe
from data_prep.printable import printable
from data_prep.schema import SPLITS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from actrep_ray.config import Recipe
    from data_prep.validation.findings import Finding
    from data_prep.validation.report import Report
    from data_prep.validation.validate import Progress
    from data_prep.validation.view import View

_NUM_EXAMPLES = 2  # of each kind, in the table
_WIDTH = 120  # of a table that is not for a terminal

# Of Qwen-VL where a config does not say: pixels of a patch, patches along a side and frames merged.
_PATCH = {"qwen2_vl": 14, "qwen2_5_vl": 14}
_NEWER_PATCH, _MERGE, _FRAMES = 16, 2, 2


def add_validate(commands: Any) -> None:
    """Add `actrep validate`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands,
        "validate",
        _validate,
        "check every row of a file of clips, its cycles, splits and videos",
        "actrep validate data/repcount/clips.jsonl --recipe recipes/qwen3_vl_4b_grpo.yaml",
    )
    add = parser.add_argument
    add("data", type=Path, metavar="FILE", help="JSONL of clips")
    add("--split", choices=SPLITS, help="only its rows; the others are looked at for leaks")
    add(
        "--recipe",
        type=Path,
        metavar="RECIPE",
        help="rate, pixel budget and model by which frames and tokens are counted (default: the "
        "defaults of the settings)",
    )
    add(
        "--workers",
        type=_at_least_one,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes that decode; default: %(default)s",
    )
    add(
        "--deadline",
        type=_positive,
        default=60.0,
        metavar="S",
        help="seconds that one video may take; default: %(default)g",
    )
    add(
        "--deep",
        action="store_true",
        help="compare the frames that a model sees with a pass through each whole video; without, "
        "only those of kinds in which decoders have been seen to err",
    )
    add("--no-decode", action="store_true", help="only look whether videos are there, and hash")
    add(
        "--out",
        type=Path,
        default=Path("runs/validation"),
        metavar="DIR",
        help="folder of report.json, report.png and estimates.jsonl; default: %(default)s",
    )
    add("--strict", action="store_true", help="warnings fail, too")
    add_set(parser)


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected 1 or more")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value}: expected seconds above 0")
    return value


def _validate(args: argparse.Namespace) -> None:
    from actrep_ray.run.console import as_text, console, make_console
    from data_prep.validation.report import is_failure, write_report
    from data_prep.validation.validate import Decoding, validate_file

    recipe = read_recipe(args)
    view, note = view_of(recipe)
    if args.deep and args.no_decode:
        raise UsageError("--deep decodes every video and --no-decode none: give one of them")
    decoding = Decoding(args.workers, args.deadline, is_on=not args.no_decode, is_deep=args.deep)
    with _progress(args.no_decode) as progress:
        report = validate_file(
            args.data,
            view,
            decoding,
            split=args.split,
            allow_outside=recipe.data.allow_outside,
            progress=progress,
        )
    path = write_report(report, args.out)
    shown_on = console() if console().is_terminal else make_console(width=_WIDTH)
    print_report(report, note, shown_on)
    picture = _draw(report, args.out / "report.png")
    shown_on.print(as_text(f"{path}, {picture}", "dim"), soft_wrap=True)
    if is_failure(report, strict=args.strict):
        raise UsageError(_verdict(report, path))


@contextmanager
def _progress(is_quick: bool) -> Iterator["Progress"]:
    """A bar of videos on stderr, of as many as there turn out to be."""
    from actrep_ray.run.console import error_console
    from actrep_ray.run.progress import step_progress

    title = "looking at videos" if is_quick else "decoding"
    with ExitStack() as stack:
        shown: list[Any] = []

        def report(done: int, total: int, num_frames: int, num_bad: int) -> None:
            if not shown:
                bar = step_progress(title, start=0, total=total, on=error_console())
                shown.append(stack.enter_context(bar))
            shown[0](done, {"frames": num_frames, "problems": num_bad})

        yield report


def view_of(recipe: "Recipe") -> tuple["View", str]:
    """How a recipe's model is shown clips, and a remark on where its patches come from."""
    from actrep_ray.config import ConfigError, is_hub_name
    from actrep_ray.models.families import max_distinct_fps
    from actrep_ray.models.published import find_config
    from actrep_ray.run.model_folder import model_folder
    from data_prep.validation.view import View

    video, rollout = recipe.video, recipe.rollout
    config: dict[str, Any] = {}
    if not recipe.model.path:
        note = "patches of Qwen3-VL, as model.path is not set"
    else:
        try:
            name, config = find_config(str(model_folder(recipe.model.path)))
        except ConfigError as error:
            note = f"patches of Qwen3-VL, since {error}"
        else:
            note = f"patches of {name if is_hub_name(recipe.model.path) else recipe.model.path}"
    vision = config.get("vision_config", {})
    patch = vision.get("patch_size", _PATCH.get(config.get("model_type", ""), _NEWER_PATCH))
    view = View(
        fps=video.fps,
        min_frames=video.min_frames,
        max_frames=video.max_frames,
        min_pixels=video.min_pixels,
        max_pixels=video.max_pixels,
        factor=patch * vision.get("spatial_merge_size", _MERGE),
        frames_per_patch=vision.get("temporal_patch_size", _FRAMES),
        max_visual_tokens=rollout.max_model_len - rollout.max_response_tokens,
        max_distinct_fps=max_distinct_fps(config),
    )
    return view, note


# --- what is shown


def print_report(report: "Report", note: str, console: "Console") -> None:
    """Findings by kind, what clips look like to the model, and where every row went."""
    from actrep_ray.run.console import as_text

    if report.findings:
        console.print(_findings_table(report))
    console.print(_spread_table(report))
    for line in (*_view_lines(report, note), _rows_line(report)):
        console.print(as_text(line))


def _findings_table(report: "Report") -> "Table":
    from rich.table import Table

    from actrep_ray.run.console import as_text

    table = Table(title="findings", title_justify="left", header_style="bold")
    table.add_column("")
    table.add_column("kind", no_wrap=True)
    table.add_column("rows", justify="right")
    table.add_column("for example", overflow="fold")
    for (level, kind), findings in report.by_kind().items():
        style = "red" if level == "error" else "yellow"
        num_rows = len({finding.row for finding in findings})
        examples = "\n".join(_example(finding) for finding in findings[:_NUM_EXAMPLES])
        table.add_row(as_text(level, style), kind, f"{num_rows:,}", as_text(examples))
    return table


def _example(finding: "Finding") -> str:
    name = f" ({finding.clip_id})" if finding.clip_id else ""
    return printable(f"row {finding.row}{name}: {finding.message}")


def _spread_table(report: "Report") -> "Table":
    from rich.table import Table

    names = {
        "count": "repetitions of a clip",
        "duration_s": "seconds of a clip",
        "cycle_s": "seconds of a cycle",
        "frames_shown": "frames shown",
        "visual_tokens": "visual tokens",
    }
    table = Table(title_justify="left", header_style="bold")
    table.add_column(f"{len(report.estimates):,} clips")
    columns = ("min", "median", "p95", "max", "total")
    for column in columns:
        table.add_column(column, justify="right")
    for key, spread in report.distributions().items():
        table.add_row(names[key], *(f"{spread[column]:,.6g}" for column in columns))
    return table


def _view_lines(report: "Report", note: str) -> Iterator[str]:
    view, rates = report.view, report.nyquist()
    yield (
        f"shown at {view.fps:g} fps, {view.min_pixels:,} to {view.max_pixels:,} pixels a frame, "
        f"one token for {view.factor}x{view.factor} pixels of {view.frames_per_patch} frames "
        f"({note})"
    )
    if rates["shown_below_wanted_fps"]:
        number = rates["shown_below_wanted_fps"]
        yield f"{number:,} clips are shown at a lower rate: they exceed {view.max_frames} frames"
    if number := rates["clips_that_repeat"]:
        yield (
            f"fewer than 2 samples in the median cycle: {rates['below_2_samples']:,} of "
            f"{number:,} clips at {view.fps:g} fps; {rates['below_2_temporal_patches']:,} at "
            f"{rates['patches_per_s']:g} patches a second, after {view.frames_per_patch} frames "
            "are merged"
        )


def _rows_line(report: "Report") -> str:
    others = f" + {report.num_other_rows:,} of other splits" if report.num_other_rows else ""
    return (
        f"{report.num_rows:,} rows = {report.num_ok:,} ok + {report.num_warnings:,} with warnings "
        f"+ {report.num_errors:,} with errors{others}; {report.num_videos_checked:,} of "
        f"{report.num_videos:,} videos decoded, {report.num_frames_decoded:,} frames"
    )


def _draw(report: "Report", path: Path) -> str:
    """Write the picture; returns its path, or why there is none."""
    if not report.estimates:
        return "no picture: no clip could be read"
    from actrep_ray.evaluation.data_figures import draw_report
    from actrep_ray.evaluation.figure_style import save

    save(draw_report(report), path)
    return str(path)


def _verdict(report: "Report", path: Path) -> str:
    level = "error" if report.num_errors else "warning"
    first = next(finding for finding in report.findings if finding.level == level)
    number = report.num_errors or report.num_warnings
    total = report.num_rows - report.num_other_rows
    return (
        f"{report.path}: {number} of {total} rows with {level}s, the first in {_example(first)}; "
        f"all are in {path}"
    )

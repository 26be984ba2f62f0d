"""`actrep demo`: a page of this machine that counts in videos that are dropped on it."""

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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
from actrep_ray.cli.commands import UsageError, add_command, complain, filled, port_number, show

if TYPE_CHECKING:
    from actrep_ray.demo.counters import Counters
    from actrep_ray.demo.limits import Limits

_LOOPBACK = "127.0.0.1"
_GRADIO = "gradio>=6.31,<7"  # as in pyproject.toml
_MOST_QUEUED = 1000


def add_demo(commands: Any) -> None:
    """Add `actrep demo`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands,
        "demo",
        _demo,
        "serve a page of this machine: drop a video, see how it is counted",
        "actrep demo\n  actrep demo --checkpoint runs/quickstart/grpo --port 7861",
    )
    add_checkpoint_arguments(parser, needs_one=False)
    add_samples(parser)
    add_calibration(parser)
    parser.add_argument(
        "--host",
        type=filled,
        default=_LOOPBACK,
        help="address to listen on; default: %(default)s, which only this machine reaches",
    )
    parser.add_argument("--port", type=_port, default=7860, help="0: any; default: %(default)s")
    parser.add_argument(
        "--max-upload-mb",
        type=_positive,
        default=200.0,
        metavar="N",
        help="largest file, MiB; default: 200",
    )
    parser.add_argument(
        "--max-duration-s",
        type=_positive,
        default=300.0,
        metavar="N",
        help="longest video, seconds; default: 300",
    )
    parser.add_argument(
        "--queue",
        type=_queued,
        default=8,
        metavar="N",
        help="videos that may wait while one is counted; default: %(default)s",
    )
    parser.add_argument(
        "--examples",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="offer clips that are drawn when they are asked for",
    )


def _port(text: str) -> int:
    return 0 if text == "0" else port_number(text)


def _queued(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_QUEUED:
        raise argparse.ArgumentTypeError(f"{text}: expected an integer of 1 to {_MOST_QUEUED}")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return number


def _demo(args: argparse.Namespace) -> None:
    _check_gradio()
    of_model = args.method == "model" or args.samples > 1 or args.calibration is not None
    if args.checkpoint is None and of_model:
        raise UsageError("--checkpoint DIR is missing; without one, the detector counts")
    from actrep_ray.demo.limits import Limits
    from actrep_ray.demo.server import address_of, listen, serve
    from data_prep.loopback import is_loopback

    try:
        listening = listen(args.host, args.port)
    except OSError as error:
        raise UsageError(f"--host {args.host} --port {args.port}: {error.strerror}") from error
    if not is_loopback(args.host):
        complain(
            f"warning: --host {args.host} lets everybody who reaches this machine upload videos "
            "and see the page; there is no password"
        )
    limits = Limits(args.max_upload_mb, args.max_duration_s, args.queue)
    with listening, _counters(args, limits) as counters:
        serve(
            counters, listening, args.host, has_examples=args.examples,
            ready=lambda: show(f"{address_of(listening, args.host)}  (ctrl-C ends it)"),
        )  # fmt: skip


def _check_gradio() -> None:
    if importlib.util.find_spec("gradio") is None:
        raise UsageError(
            f"the page needs gradio, which is not installed: {sys.executable} -m pip install "
            f"'{_GRADIO}'"
        )


@contextmanager
def _counters(args: argparse.Namespace, limits: "Limits") -> "Iterator[Counters]":
    """What counts; a model is loaded once, and kept."""
    from actrep_ray.demo.counters import Counters

    if args.checkpoint is None:
        yield Counters(limits)
        return
    model = read_model(args.checkpoint, may_download=args.download)
    recipe = recipe_for(args, model)
    from actrep_ray.counting.by_model import ModelCounter

    engine = with_sooner_engine(recipe, args.set, num_videos=1)
    calibration = calibration_for(args, model, recipe)
    with ModelCounter(model, engine, num_answers=args.samples, calibration=calibration) as counter:
        yield Counters(
            limits,
            counter.count,
            model_name=str(args.checkpoint),
            names_action=names_action(recipe),
            prefers_detector=args.method == "periodicity",
        )

"""`actrep count --camera`: the detector counts in what a camera or a stream shows, until ctrl-C."""

import argparse
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from actrep_ray.cli.commands import UsageError, complain, filled, show

if TYPE_CHECKING:
    from actrep_ray.counting.live import LiveTotal
    from data_prep.periodicity.live import Settled

EXIT_ENDED_EARLY = 1
"""A stream broke off."""


def add_camera(parser: argparse.ArgumentParser) -> None:
    """Add `--camera` and `--allow-network`.

    Args:
        parser: Of `actrep count`.
    """
    live = parser.add_argument_group("live", "by the detector, until the stream ends, or ctrl-C")
    live.add_argument(
        "--camera",
        type=filled,
        metavar="SOURCE",
        help="instead of VIDEO: the number or device of a camera (0, /dev/video0), a file, a named "
        "pipe, or the address of a stream",
    )
    live.add_argument(
        "--allow-network",
        action="store_true",
        help="let --camera open an address, as rtsp://camera/1",
    )


def count_camera(args: argparse.Namespace) -> int:
    """Count until the stream or somebody ends it.

    Args:
        args: Of `actrep count`, with `camera`.

    Returns:
        0, also after ctrl-C; 1 where the stream broke off.

    Raises:
        UsageError: for an address that is not allowed.
        VideoError: if no picture can be read.
    """
    from actrep_ray.counting.live import count_live
    from actrep_ray.run.console import as_text, error_console
    from data_prep.video.stream import is_address, without_login

    if is_address(args.camera) and not args.allow_network:
        named = without_login(args.camera)
        raise UsageError(f"--camera {named}: an address is opened with --allow-network alone")
    console = error_console()
    with _asked_to_end() as ended, console.status(as_text("waiting for pictures")) as status:
        total = count_live(
            args.camera,
            ended.is_set,
            (lambda count, seconds: status.update(as_text(f"{_told(count)}, {seconds:.0f} s")))
            if console.is_terminal
            else None,
            lambda one: _show_settled(one, as_json=args.json),
        )
    _show_total(total, without_login(args.camera), as_json=args.json)
    return EXIT_ENDED_EARLY if total.problem else 0


@contextmanager
def _asked_to_end() -> Iterator[threading.Event]:
    """Is set by ctrl-C; a second one ends the command at once."""
    from actrep_ray.cluster.stopping import handled

    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if ended.is_set():
            raise KeyboardInterrupt
        ended.set()

    with handled(signal.SIGINT, end):
        yield ended


def _show_settled(one: "Settled", *, as_json: bool) -> None:
    from actrep_ray.counting.record import detection_json

    found = one.found
    if as_json:
        span = {"start_s": round(one.start_s, 3), "end_s": round(one.end_s, 3)}
        show(json.dumps({**span, **detection_json(found)}))
        return
    doubt = f" ({found.verdict}: {found.reason})" if found.reason else ""
    show(f"{one.start_s:8.1f} s  to {one.end_s:8.1f} s: {_told(found.count)}{doubt}")


def _show_total(total: "LiveTotal", source: str, *, as_json: bool) -> None:
    if as_json:
        record = {
            "camera": source,
            "duration_s": round(total.duration_s, 3),
            "count": total.count,
            "num_windows": total.num_windows,
            "num_unsure": total.num_unsure,
            "left_out_s": round(total.left_out_s, 3),
        }
        show(json.dumps(record))
    else:
        unsure = f", not sure of {total.num_unsure} of {total.num_windows} windows"
        doubt = f"{unsure}: {total.reason}" if total.num_unsure else ""
        show(f"{source}: {_told(total.count)} in {total.duration_s:.1f} s{doubt}")
    if total.left_out_s:
        complain(f"{total.left_out_s:.1f} s were left out: counting was slower than the camera")
    if total.problem:
        complain(total.problem)


def _told(count: int) -> str:
    from actrep_ray.counting.panel import repetitions

    return repetitions(count)

"""`actrep evaluate --protocol`: trainings on few shots of each class, and what they come to."""

import argparse
from functools import partial
from pathlib import Path

from actrep_ray.cli.checkpoint import read_model
from actrep_ray.cli.commands import UsageError
from actrep_ray.protocols.plan import PROTOCOLS


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--protocol` and what belongs to it."""
    group = parser.add_argument_group(
        "protocols", "train on few shots of each class by SFT and by GRPO, from --checkpoint"
    )
    group.add_argument("--protocol", choices=PROTOCOLS)
    group.add_argument("--sft", type=Path, metavar="RECIPE", help="how SFT trains on the shots")
    group.add_argument("--grpo", type=Path, metavar="RECIPE", help="how GRPO does")
    group.add_argument(
        "--shots",
        type=partial(_numbers, least=1),
        default=(4,),
        metavar="K,...",
        help="of each class; default: 4",
    )
    group.add_argument("--seeds", type=_numbers, default=(0,), metavar="N,...", help="default: 0")
    group.add_argument(
        "--across", type=Path, action="append", default=[], metavar="FILE",
        help="another data set, of cross-dataset; may be given again",
    )  # fmt: skip
    group.add_argument(
        "--vary", action="append", default=[], metavar="KEY=VALUE",
        help="a change of both recipes to try, of ablation; may be given again",
    )  # fmt: skip


def refuse_without_protocol(args: argparse.Namespace) -> None:
    """Refuse what belongs to a protocol where none is named.

    Raises:
        UsageError: naming the first such option.
    """
    for name in ("sft", "grpo", "across", "vary"):
        if getattr(args, name):
            raise UsageError(f"--{name} belongs to --protocol, of which there is none")


def evaluate_by_protocol(args: argparse.Namespace) -> None:
    """Run a protocol, or what is left of it."""
    if args.sft is None or args.grpo is None:
        raise UsageError(f"--protocol {args.protocol} needs --sft RECIPE and --grpo RECIPE")
    if args.recipe is not None or args.method != "model":
        raise UsageError("--protocol takes --sft and --grpo, no --recipe and no --method")
    if args.resume or args.no_baseline:
        raise UsageError(
            "--protocol goes on by itself and has rows of its own: no --resume, no --no-baseline"
        )
    if len(args.data) > 1:
        raise UsageError("--protocol trains on one --data FILE; others are asked about by --across")
    if args.samples is not None or args.temperature is not None:
        raise UsageError("--protocol samples as its name asks: no --samples, no --temperature")
    if args.predictions or args.all_checkpoints or len(args.checkpoint or ()) > 1:
        raise UsageError("--protocol goes from one --checkpoint and takes no --predictions")
    checkpoint = args.checkpoint[0] if args.checkpoint else None
    model = read_model(checkpoint, may_download=args.download)
    from actrep_ray.protocols.run import run_protocol
    from actrep_ray.protocols.setup import Protocol

    protocol = Protocol(
        name=args.protocol,
        checkpoint=model,
        recipes={"sft": args.sft, "grpo": args.grpo},
        data=(*args.data, *args.across),
        shots=args.shots,
        seeds=args.seeds,
        out=args.out or Path("runs") / args.protocol,
        changes=tuple(args.vary),
        overrides=tuple(args.set),
    )
    run_protocol(protocol, overwrite=args.overwrite)


def _numbers(text: str, least: int = 0) -> tuple[int, ...]:
    """Whole numbers with commas between them, as the type of an argument."""
    try:
        found = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        found = (least - 1,)
    if found[0] < least:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected whole numbers from {least}, as in 1,4,16"
        )
    return found

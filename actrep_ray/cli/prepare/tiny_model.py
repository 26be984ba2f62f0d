"""`actrep prepare tiny-model`: a small checkpoint, pretrained or random."""

import argparse
from pathlib import Path
from typing import Any

from actrep_ray.cli.commands import add_command, add_overwrite, show


def add_tiny_model(kinds: Any) -> None:
    """Add `actrep prepare tiny-model`.

    Args:
        kinds: The sub-parsers of `prepare`.
    """
    tiny = add_command(
        kinds,
        "tiny-model",
        _tiny_model,
        "write a Qwen-VL checkpoint of about 1.5 million parameters",
        "actrep prepare tiny-model --family qwen2_5_vl --random --out data/tiny-qwen2_5_vl",
    )
    tiny.add_argument(
        "--family",
        choices=("qwen3_vl", "qwen2_5_vl", "qwen2_vl", "qwen3_vl_moe"),
        default="qwen3_vl",
    )
    tiny.add_argument(
        "--random", action="store_true", help="random weights instead of the pretrained base"
    )
    tiny.add_argument("--seed", type=int, default=0, help="of the random weights")
    tiny.add_argument("--untied", action="store_true", help="an output layer of its own (random)")
    add_overwrite(tiny, "the folder")
    tiny.add_argument("--out", type=Path, help="folder (default: data/tiny-FAMILY)")


def _tiny_model(args: argparse.Namespace) -> None:
    from actrep_ray.models.tiny import num_parameters, write_base_model, write_tiny_model
    from data_prep.overwriting import refuse_filled

    out = args.out or Path("data") / f"tiny-{args.family}"
    refuse_filled(out, overwrite=args.overwrite)
    if args.random:
        write_tiny_model(
            out,
            family=args.family,
            seed=args.seed,
            tied=not args.untied,
            overwrite=args.overwrite,
        )
    else:
        write_base_model(out, family=args.family, overwrite=args.overwrite)
    show(f"{out}: {args.family} with {num_parameters(out):,} parameters")

"""The `actrep` command.

Owns arguments, help and the words of an error; the work is done by the modules that each command
imports when it runs, so that `--help` costs no import of torch, ray or vLLM.

A user's mistake (a recipe, a file, a flag) is one line and exit code 2, before any worker starts.
Anything else keeps its traceback.
"""

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import actrep_ray
from actrep_ray.cli.cot import add_cot
from actrep_ray.cli.doctor import add_doctor
from actrep_ray.cli.parts import UsageError, add_command, add_set, checking_input, show
from actrep_ray.cli.periodicity import (
    add_baseline,
    add_count_options,
    add_method,
    count_periodicity,
    cross_check,
    describe_cross_check,
    evaluate_periodicity,
    needs_checkpoint,
)
from actrep_ray.cli.prepare import add_converters
from actrep_ray.cli.rcs import add_rcs
from actrep_ray.cli.validate import add_validate
from data_prep.schema import SPLITS

if TYPE_CHECKING:
    from actrep_ray.config import Recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 (failed), 2 (wrong input), 130 (ctrl-C)."""
    arguments = _parser().parse_args(argv)
    _quieten_libraries()
    try:
        return int(arguments.run(arguments) or 0)
    except KeyboardInterrupt:
        return _say("stopped", code=130)
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        sys.stdout = None
        return 1
    except ValueError as error:
        if not _is_usage_error(error):
            raise
        return _say(f"error: {_words_of(error)}", code=2)


def _quieten_libraries() -> None:
    """Keep what libraries say at import, and their own bars, out of ours; errors still show."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("TORCH_CPP_LOG_LEVEL", "ERROR"),
        # A thread that is cut off from our cluster must not start another on its way out.
        ("RAY_ENABLE_AUTO_CONNECT", "0"),
    ):
        os.environ.setdefault(name, value)
    logging.getLogger("DeepSpeed").addFilter(_is_no_device_notice)
    # Frames are shared read-only; nobody writes to them.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def _is_no_device_notice(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Setting accelerator to CPU")


def _is_usage_error(error: ValueError) -> bool:
    from actrep_ray.config import ConfigError
    from data_prep.schema import DataError

    return isinstance(error, UsageError | ConfigError | DataError)


def _words_of(error: ValueError) -> str:
    """One line; of a recipe with several mistakes one line each."""
    from actrep_ray.config import ConfigError

    cause = _cause(error)
    if isinstance(cause, ConfigError):
        return "\n  ".join(" ".join(line.split()) for line in str(cause).splitlines())
    return " ".join(str(cause).split())


def _cause(error: BaseException) -> BaseException:
    """What a worker raised, without the traceback that Ray puts into the message."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def _say(message: str, *, code: int) -> int:
    sys.stderr.write(f"actrep: {message}\n")
    return code


# --- the commands


def _prepare_synthetic(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from data_prep.synthetic.dataset import write_dataset

    out = args.out or Path("data") / f"synthetic-{args.level}"
    num_clips = {split: getattr(args, split) for split in SPLITS}
    with checking_input(), Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rendering", total=None)
        path = write_dataset(
            out,
            level=args.level,
            num_clips={split: number for split, number in num_clips.items() if number},
            seed=args.seed,
            num_processes=args.processes,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    show(f"{path}: {_summary_of(path)}")


def _prepare_tiny_model(args: argparse.Namespace) -> None:
    from actrep_ray.models.tiny import num_parameters, write_base_model, write_tiny_model

    out = args.out or Path("data") / f"tiny-{args.family}"
    with checking_input():
        if args.random:
            write_tiny_model(out, family=args.family, seed=args.seed, tied=not args.untied)
        else:
            write_base_model(out, family=args.family)
    show(f"{out}: {args.family} with {num_parameters(out):,} parameters")


def _sft(args: argparse.Namespace) -> None:
    recipe = _recipe(args, stage="sft")
    from actrep_ray.sft import prepare_sft

    with checking_input():
        job = prepare_sft(recipe, resume=args.resume)
    _announce(recipe)
    show(f"last checkpoint: {job.run().folder}")


def _train(args: argparse.Namespace) -> None:
    recipe = _recipe(args, stage="grpo")
    from actrep_ray.driver.job import prepare_grpo

    with checking_input():
        job = prepare_grpo(recipe, resume=args.resume)
    _announce(recipe)
    show(f"last checkpoint: {job.run(profile=args.profile).folder}")


def _evaluate(args: argparse.Namespace) -> None:
    if args.method == "periodicity":
        evaluate_periodicity(args)
        return
    from actrep_ray.run.checkpoint import resolve_model

    out_dir = args.out or Path("runs/evaluation")
    with checking_input():
        model = resolve_model(needs_checkpoint(args))
        recipe = _recipe_for(args, model, f"data.path={json.dumps(str(args.data))}")
        from actrep_ray.evaluation.jobs import prepare_evaluation

        job = prepare_evaluation(recipe, model, split=args.split, out_dir=out_dir)
    job.run()
    add_baseline(job.clips, out_dir, wanted=not args.no_baseline)
    from actrep_ray.evaluation.report import report_run

    report_run(out_dir)


def _count(args: argparse.Namespace) -> None:
    from data_prep.video import clip_of_video

    if args.method == "periodicity":
        count_periodicity(clip_of_video(args.video, action=args.action), args)
        return
    from actrep_ray.run.checkpoint import resolve_model

    if args.plot and not args.cross_check:
        raise UsageError("--plot shows the detector: use --method periodicity or --cross-check")
    with checking_input():
        model = resolve_model(needs_checkpoint(args))
        recipe = _recipe_for(args, model)
        from actrep_ray.evaluation.predictors import count_in

        clip = clip_of_video(args.video, action=args.action)
    prediction = count_in(clip, model, recipe)
    check = cross_check(clip, prediction, args) if args.cross_check else None
    if args.json:
        record: dict[str, Any] = {
            "video": str(args.video),
            "checkpoint": str(model),
            "count": prediction.count,
            "cycles": prediction.cycles,
            "text": prediction.text,
        }
        if check is not None:
            record["cross_check"] = check
        show(json.dumps(record))
        return
    answer = "no readable count" if prediction.count is None else f"{prediction.count} repetitions"
    show(f"{args.video}: {answer}")
    for i, (start, end) in enumerate(prediction.cycles, start=1):
        show(f"  {i:3d}  {start:6.1f} s  to {end:6.1f} s")
    show(f"\n{prediction.text}")
    if check is not None:
        show(f"\n{describe_cross_check(check, args.plot)}")


def _check(args: argparse.Namespace) -> int:
    from rewards.check import check_reward

    found = None

    if args.recipe is None and not args.reward:
        raise UsageError("give a recipe, a --reward, or both")
    with checking_input():
        checks = [check_reward(name) for name in args.reward]
        if args.recipe is not None:
            from actrep_ray.scoring.pool import make_spec

            recipe = _recipe(args)
            parts = make_spec(recipe).parts
            _print_settings(recipe)
            from actrep_ray.planning.description import check_recipe

            found = check_recipe(recipe, args.recipe, args.gpus)
            show("\n" + "\n".join(found.lines))
            checks += [
                check_reward(part.name, is_penalty=part.is_penalty, options=dict(part.options))
                for part in parts
                if part.options or ":" in part.name  # ours without options are tested
            ]
    for check in checks:
        seen = "never applied"
        if check.lowest is not None:
            seen = f"{check.lowest:g} to {check.highest:g}"
        show(
            f"reward {check.name}: keeps its contract on {check.num_calls} answers "
            f"({check.num_skipped} not applicable), values {seen}, "
            f"{check.seconds_per_call * 1e6:.0f} µs each"
        )
    return 0 if found is None or found.fits else 1


def _report(args: argparse.Namespace) -> None:
    from actrep_ray.evaluation.report import report_run

    with checking_input():
        report_run(args.run_dir)


def _quickstart(args: argparse.Namespace) -> None:
    from actrep_ray.quickstart import FULL, QUICK, run_quickstart

    run_quickstart(edition=FULL if args.full else QUICK, fresh=args.fresh, overrides=args.set)


# --- what they share


def _recipe(args: argparse.Namespace, *, stage: str | None = None) -> "Recipe":
    from actrep_ray.config import load_recipe, under_root

    recipe = load_recipe(args.recipe, args.set)
    if stage is not None and recipe.stage != stage:
        command = {"sft": "sft", "grpo": "train"}[recipe.stage]
        raise UsageError(f"{args.recipe}: stage={recipe.stage}, use `actrep {command}` for it")
    return under_root(recipe, args.root) if getattr(args, "root", None) else recipe


def _announce(recipe: "Recipe") -> None:
    from actrep_ray.planning.training import describe_training

    show("\n".join(describe_training(recipe)))
    show(f"run folder {recipe.run_dir}; watch it with: tensorboard --logdir {recipe.run_dir}")
    show("starting the workers ...")


def _recipe_for(args: argparse.Namespace, model: Path, *overrides: str) -> "Recipe":
    """Settings to run a checkpoint with: its own, else those of --recipe, else the defaults."""
    from actrep_ray.config import load_recipe, override
    from actrep_ray.run.checkpoint import recipe_of

    recipe = load_recipe(args.recipe) if args.recipe else recipe_of(model) or load_recipe(None)
    of_model = f"model.path={json.dumps(str(model))}"
    return override(recipe, [of_model, *overrides, *args.set])


def _summary_of(path: Path) -> str:
    from collections import Counter

    from data_prep.schema import read_clips

    clips = list(read_clips(path))
    splits = Counter(clip.split for clip in clips)
    counts = [clip.count for clip in clips]
    marked = sum(clip.cycles is not None for clip in clips)
    of_split = ", ".join(f"{splits[split]} {split}" for split in SPLITS if splits[split])
    return (
        f"{len(clips)} clips ({of_split}), counts {min(counts)} to {max(counts)}, "
        f"{marked} with cycle marks"
    )


def _print_settings(recipe: "Recipe") -> None:
    """Every setting, those that differ from the default marked with it."""
    from actrep_ray.config import Recipe

    values, defaults = _flat(recipe.model_dump()), _flat(Recipe().model_dump())
    width = max(map(len, values))
    for key in sorted(values):
        value, default = values[key], defaults.get(key)
        note = "" if value == default else f"    # default {default!r}"
        show(f"{'*' if note else ' '} {key:<{width}}  {value!r}{note}")
    changed = sum(values[key] != defaults.get(key) for key in values)
    show(f"{changed} of {len(values)} settings differ from the defaults (marked *)")


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name != "reward.weights":
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat


# --- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="actrep",
        description="Reinforcement learning of Qwen-VL to count repeated actions in video.",
        epilog="start with `actrep quickstart`; `actrep COMMAND --help` shows an example of each",
    )
    parser.add_argument("--version", action="version", version=f"actrep {actrep_ray.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_data_commands(commands)
    _add_training_commands(commands)
    _add_model_commands(commands)
    _add_other_commands(commands)
    return parser


def _add_data_commands(commands: Any) -> None:
    prepare = commands.add_parser("prepare", help="write data sets and small checkpoints")
    kinds = prepare.add_subparsers(title="what", metavar="WHAT", required=True)

    synthetic = add_command(
        kinds,
        "synthetic",
        _prepare_synthetic,
        "render mp4 videos of repeated motions with exact cycle marks",
        "actrep prepare synthetic --level hard --train 600 --test 200",
    )
    synthetic.add_argument("--level", choices=("easy", "medium", "hard"), default="easy")
    for split, number in zip(SPLITS, (600, 64, 200), strict=True):
        synthetic.add_argument(f"--{split}", type=int, default=number, metavar="N")
    synthetic.add_argument("--seed", type=int, default=0)
    synthetic.add_argument("--processes", type=int, default=2, metavar="N")
    synthetic.add_argument("--out", type=Path, help="folder (default: data/synthetic-LEVEL)")

    tiny = add_command(
        kinds,
        "tiny-model",
        _prepare_tiny_model,
        "write a Qwen-VL checkpoint of about 1.5 million parameters",
        "actrep prepare tiny-model --family qwen2_5_vl --random --out data/tiny",
    )
    tiny.add_argument(
        "--family", choices=("qwen3_vl", "qwen2_5_vl", "qwen2_vl"), default="qwen3_vl"
    )
    tiny.add_argument(
        "--random", action="store_true", help="random weights instead of the pretrained base"
    )
    tiny.add_argument("--seed", type=int, default=0, help="of the random weights")
    tiny.add_argument("--untied", action="store_true", help="an output layer of its own (random)")
    tiny.add_argument("--out", type=Path, help="folder (default: data/tiny-FAMILY)")

    add_converters(kinds)
    add_rcs(kinds)

    add_validate(commands)
    add_cot(commands)


def _add_training_commands(commands: Any) -> None:
    sft = add_command(
        commands,
        "sft",
        _sft,
        "supervised fine-tuning on reference answers",
        "actrep sft recipes/tiny_sft.yaml --set sft.num_steps=100",
    )
    train = add_command(
        commands,
        "train",
        _train,
        "reinforcement learning (GRPO) on counting rewards",
        "actrep train recipes/tiny_grpo.yaml --set learner.lr=2e-5 --set name=second",
    )
    for parser in (sft, train):
        parser.add_argument("recipe", type=Path, metavar="RECIPE")
        parser.add_argument(
            "--resume", action="store_true", help="go on from the run's last checkpoint"
        )
        parser.add_argument(
            "--root",
            type=Path,
            metavar="DIR",
            help="folder that the recipe's relative paths start from (default: the current one)",
        )
        add_set(parser)
    train.add_argument(
        "--profile", action="store_true", help="draw who did what when, and name the bottleneck"
    )


def _add_model_commands(commands: Any) -> None:
    evaluate = add_command(
        commands,
        "evaluate",
        _evaluate,
        "count in every clip of a split and score the answers",
        "actrep evaluate --checkpoint runs/tiny_grpo --data data/synthetic-easy/clips.jsonl",
    )
    evaluate.add_argument("--checkpoint", type=Path, metavar="DIR", help="model or run folder")
    add_method(evaluate)
    evaluate.add_argument("--data", type=Path, required=True, metavar="FILE")
    evaluate.add_argument("--split", choices=SPLITS, default="test")
    evaluate.add_argument(
        "--out", type=Path, metavar="DIR", help="default: runs/evaluation or runs/periodicity"
    )
    evaluate.add_argument(
        "--no-baseline",
        action="store_true",
        help="leave out the row of the periodicity detector",
    )
    count = add_command(
        commands,
        "count",
        _count,
        "count the repetitions in one video",
        "actrep count squats.mp4 --checkpoint runs/tiny_grpo --json",
    )
    count.add_argument("video", type=Path, metavar="VIDEO")
    count.add_argument("--checkpoint", type=Path, metavar="DIR", help="model or run folder")
    add_method(count)
    add_count_options(count)
    count.add_argument("--json", action="store_true", help="print one JSON object")
    count.add_argument("--action", default="unknown", help="name for {action} in data.question")
    for parser in (evaluate, count):
        parser.add_argument(
            "--recipe",
            type=Path,
            metavar="RECIPE",
            help="settings (default: those that the checkpoint was trained with)",
        )
        add_set(parser)


def _add_other_commands(commands: Any) -> None:
    check = add_command(
        commands,
        "check",
        _check,
        "show a recipe's settings beside the defaults and what it needs, or test a reward",
        "actrep check recipes/qwen3_vl_4b_grpo.yaml --gpus 8x80GB\n"
        "  actrep check recipes/tiny_grpo.yaml --reward my_package.rewards:smooth_count",
    )
    check.add_argument("recipe", type=Path, metavar="RECIPE", nargs="?")
    check.add_argument(
        "--gpus",
        metavar="NxSIZE",
        help="hardware to plan for, as 8x80GB or 2x8x80GB (nodes x GPUs x size); default: the "
        "cluster of RAY_ADDRESS, or the first line of the recipe",
    )
    check.add_argument("--reward", action="append", default=[], metavar="NAME")
    add_set(check)

    report = add_command(
        commands,
        "report",
        _report,
        "tables and plots of a finished or running run",
        "actrep report runs/tiny_grpo",
    )
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR")

    add_doctor(commands)
    quickstart = add_command(
        commands,
        "quickstart",
        _quickstart,
        "from nothing to a small Qwen3-VL that counts, in minutes on a CPU",
        "actrep quickstart --fresh",
    )
    quickstart.add_argument("--fresh", action="store_true", help="start over")
    quickstart.add_argument(
        "--full",
        action="store_true",
        help="the long recipes (tiny_sft.yaml, tiny_grpo.yaml; at most 90 minutes on 2 cores)",
    )
    add_set(quickstart)

"""The `actrep` command: its parser, and the one place where an error is told or raised.

Each command is a module that imports what it needs when it runs, so that `--help` costs no import
of torch, ray or vLLM. A user's mistake (a recipe, a file, a flag) is one line and exit code 2,
before any worker starts. Anything else keeps its traceback.
"""

import argparse
import logging
import os
import shlex
import socket
import sys
import warnings
from collections.abc import Sequence

import actrep_ray
from actrep_ray.cli.benchmark import add_benchmark
from actrep_ray.cli.boundary import words_of_mistake, words_of_stop
from actrep_ray.cli.check import add_check
from actrep_ray.cli.commands import complain, show
from actrep_ray.cli.completion import add_completion
from actrep_ray.cli.cot import add_cot
from actrep_ray.cli.count import add_count
from actrep_ray.cli.demo import add_demo
from actrep_ray.cli.doctor import add_doctor
from actrep_ray.cli.evaluate import add_evaluate
from actrep_ray.cli.headroom import add_headroom
from actrep_ray.cli.prepare.command import add_prepare
from actrep_ray.cli.quickstart import add_quickstart
from actrep_ray.cli.report import add_report
from actrep_ray.cli.serve import add_serve
from actrep_ray.cli.sft import add_sft
from actrep_ray.cli.train import add_train
from actrep_ray.cli.validate import add_validate
from actrep_ray.cluster.stopping import InterruptError
from actrep_ray.run.program import program

_ADD = (
    add_prepare, add_validate, add_cot, add_sft, add_headroom, add_train, add_evaluate,
    add_benchmark, add_count, add_demo, add_serve, add_check, add_report, add_doctor,
    add_quickstart, add_completion,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Its exit code: 0, 1 (failed), 2 (wrong input), 3 (not sure of a count), or 128 and the
        number of the signal that ended it: 130 (ctrl-C), 138 (SIGUSR1), 143 (SIGTERM, or a
        preemption notice).
    """
    typed = sys.argv[1:] if argv is None else list(argv)
    if not typed:
        show(_the_way())
        return 2
    parser = build_parser()
    args = parser.parse_args(typed)
    args.typed, args.parser = typed, parser
    _quieten_libraries()
    _stay_on_this_machine()
    try:
        return int(args.run(args) or 0)
    except InterruptError as stopped:
        return _say(words_of_stop(stopped, args), code=stopped.code)
    except KeyboardInterrupt:
        return _say("stopped", code=130)
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        sys.stdout = None
        return 1
    except Exception as error:
        words = words_of_mistake(error, args)
        if words is None:
            raise
        return _say(f"error: {words}", code=2)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each leaves what runs it in `run`."""
    parser = argparse.ArgumentParser(
        prog="actrep",
        description="Reinforcement learning of Qwen-VL to count repeated actions in video.",
        epilog="start with `actrep quickstart`; `actrep COMMAND --help` shows an example of each",
    )
    parser.add_argument("--version", action="version", version=f"actrep {actrep_ray.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in _ADD:
        add(commands)
    return parser


def _the_way() -> str:
    """The three commands from nothing to a model that counts, as they can be typed here."""
    actrep = shlex.quote(program("actrep"))
    return (
        f"{actrep} doctor\n  what can run on this machine, and why not\n"
        f"{actrep} quickstart\n  from nothing to a small model that counts: runs/quickstart/\n"
        f"{actrep} count VIDEO.mp4 --checkpoint runs/quickstart/grpo\n"
        "  the repetitions in a video of yours\n\n"
        f"{actrep} --help lists all commands; each has a --help with an example"
    )


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


def _stay_on_this_machine() -> None:
    """Have a Ray of our own, gloo and NCCL listen on the loopback address alone.

    Must precede Ray's import; its variable is named after the systems where it does so by itself. A
    cluster that is joined (RAY_ADDRESS) is reached as it says.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")


def _is_no_device_notice(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Setting accelerator to CPU")


def _say(message: str, *, code: int) -> int:
    complain(message)
    return code

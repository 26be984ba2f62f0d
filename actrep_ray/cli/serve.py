"""`actrep serve`: vLLM's OpenAI server with the frames that a checkpoint was trained on."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actrep_ray.cli.checkpoint import recipe_for
from actrep_ray.cli.commands import add_command, add_set, filled, port_number, show
from actrep_ray.cli.inputs import check_model

if TYPE_CHECKING:
    from actrep_ray.config import Recipe


def add_serve(commands: Any) -> None:
    """Add `actrep serve`.

    Args:
        commands: The sub-parsers of `actrep`.
    """
    parser = add_command(
        commands,
        "serve",
        _serve,
        "answer requests as OpenAI's API does, with the frames that a checkpoint was trained on",
        "actrep serve runs/quickstart/grpo --port 8000",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="model or run folder")
    parser.add_argument(
        "--host",
        type=filled,
        default="127.0.0.1",
        help="address to listen on; default: %(default)s, this one",
    )
    parser.add_argument("--port", type=port_number, default=8000, help="default: %(default)s")
    parser.add_argument(
        "--name",
        type=filled,
        help="by which requests ask for the model; default: the name of its run",
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="RECIPE",
        help="settings (default: those that the checkpoint was trained with)",
    )
    parser.add_argument(
        "--show", action="store_true", help="print the command and a request, and start nothing"
    )
    add_set(parser)


def _serve(args: argparse.Namespace) -> None:
    model = check_model(args.checkpoint)
    recipe = recipe_for(args, model)
    command, environment = server_command(
        recipe, model, host=args.host, port=args.port, name=args.name or recipe.name
    )
    if args.show:
        from actrep_ray.models.card import request_command

        told = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
        show(" ".join([*told, shlex.join(command)]))
        show("\n" + request_command(args.name or recipe.name, recipe.data.question, args.port))
        return
    sys.stdout.flush()
    os.execve(command[0], command, os.environ | environment)


def server_command(
    recipe: "Recipe", model: Path, *, host: str, port: int, name: str
) -> tuple[list[str], dict[str, str]]:
    """What starts the server, and what it reads from the environment.

    Args:
        recipe: Settings of the checkpoint.
        model: Its folder.
        host: Address to listen on.
        port: To listen on.
        name: By which requests ask for the model.
    """
    from actrep_ray.models.qwen_vl import QwenVLInputs
    from actrep_ray.models.serving import (
        OUR_SERVER,
        ServedModel,
        budget_in_vllm,
        cpu_arguments,
        cpu_environment,
        server_arguments,
    )
    from actrep_ray.models.torch_names import num_gpus

    inputs = QwenVLInputs(model)
    budget = budget_in_vllm(inputs.family, inputs.processor.video_processor)
    served = ServedModel(model, inputs.family, recipe, name, inputs.factor, budget)
    command = [sys.executable, "-m", OUR_SERVER, "--host", host, "--port", str(port)]
    command += server_arguments(served, is_ours=True)
    environment = {"VLLM_NO_USAGE_STATS": "1"}
    if recipe.device == "cpu" or not num_gpus():
        command += cpu_arguments(inputs.family)
        environment |= cpu_environment(recipe.rollout.num_threads)
        kv_cache_gib = max(1, round(recipe.rollout.kv_cache_gib))  # whole ones
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib)
    return command, environment

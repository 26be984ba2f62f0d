"""Whether a recipe fits its hardware, and what stands against it: memory, lengths, placement."""

import math
from collections.abc import Sequence

from actrep_ray.cluster.placement import (
    Node,
    PlacementError,
    describe,
    is_colocated,
    place,
    pools_of,
)
from actrep_ray.config import Recipe
from actrep_ray.models.architecture import Architecture
from actrep_ray.planning.engine_memory import plan_rollout
from actrep_ray.planning.learner_memory import (
    beside_sleeping_engine,
    plan_learner,
    resting_bytes,
)
from actrep_ray.planning.memory_plan import GIB, MemoryPlan, RoleMemory, value_bytes
from actrep_ray.planning.parameters import trainable_parameters
from actrep_ray.planning.prompts import PromptSize


def fit(
    recipe: Recipe, model: Architecture, prompt: PromptSize, nodes: Sequence[Node]
) -> MemoryPlan:
    """What each role needs and may use, without remedies.

    Args:
        recipe: Settings.
        model: Sizes of its model.
        prompt: The longest prompt.
        nodes: The hardware; without it nothing is judged.
    """
    problems, warnings = _length_problems(recipe, model, prompt)
    placement: tuple[str, ...] = ()
    gpu_gib = {"learner": 0.0, "rollout": 0.0}
    ranks_per_node = min(recipe.learner.num_workers, 8)
    if nodes:
        gpu_gib = dict.fromkeys(gpu_gib, min(node.gpu_gib for node in nodes))
        try:
            placed = place(pools_of(recipe), nodes)
        except PlacementError as error:
            problems.append(str(error))
        else:
            placement = tuple(describe(placed, nodes))
            for role, chosen in placed.items():
                gpu_gib[role] = min(nodes[i].gpu_gib for i in chosen)
            ranks_per_node = max(placed["learner"].count(i) for i in placed["learner"])
    roles = [plan_learner(recipe, model, prompt, gpu_gib["learner"], ranks_per_node)]
    if recipe.stage == "grpo":
        resting = 0.0
        if is_colocated(recipe):
            resting = resting_bytes(recipe, model)
            roles = [beside_sleeping_engine(recipe, roles[0])]
        roles.append(plan_rollout(recipe, model, prompt, gpu_gib["rollout"], resting))
        problems += _engine_problems(recipe, model)
    problems += [
        f"{role.role}: needs {role.num_bytes / GIB:.1f} GiB of a GPU, may use "
        f"{role.limit / GIB:.1f} GiB; most is {_largest(role)}"
        for role in roles
        if not role.fits
    ]
    if is_colocated(recipe):
        problems += _turn_problems(recipe, model, gpu_gib["rollout"])
    problems += _load_problems(recipe, model, roles[0].limit)
    return MemoryPlan(tuple(roles), placement, tuple(problems), tuple(warnings))


def _largest(role: RoleMemory) -> str:
    name, size = max(role.items, key=lambda item: item[1])
    return f"{name} ({size / GIB:.1f} GiB)"


def _length_problems(
    recipe: Recipe, model: Architecture, prompt: PromptSize
) -> tuple[list[str], list[str]]:
    """(problems, warnings) of prompts and answers that are too long, whatever memory there is.

    It is a problem if the visual tokens of a clip that exists are too many, else a warning.
    """
    problems: list[str] = []
    warnings: list[str] = []
    is_grpo = recipe.stage == "grpo"
    answer = recipe.rollout.max_response_tokens if is_grpo else 1
    limits = {"learner.micro_batch_tokens": recipe.learner.micro_batch_tokens}
    if is_grpo:
        limits["rollout.max_model_len"] = recipe.rollout.max_model_len
    for key, limit in limits.items():
        if prompt.num_tokens + answer <= limit:
            continue
        text = (
            f"a prompt of {prompt.num_tokens} tokens ({prompt.num_visual} of them visual) and an "
            f"answer of {answer} exceed {key}={limit}: raise it to {prompt.num_tokens + answer}, "
            "or lower video.max_frames"
        )
        is_certain = prompt.is_of_data and prompt.num_visual + answer > limit
        (problems if is_certain else warnings).append(text)
    if is_grpo and recipe.rollout.max_model_len > model.max_positions:
        problems.append(
            f"rollout.max_model_len={recipe.rollout.max_model_len} exceeds the "
            f"{model.max_positions} positions of {model.name}"
        )
    return problems, warnings


def _load_problems(recipe: Recipe, model: Architecture, limit: float) -> list[str]:
    """DeepSpeed splits what lies on the GPU: the whole model passes through it in float32."""
    trained, frozen = trainable_parameters(recipe, model)
    size = 4 * trained + value_bytes(recipe) * frozen
    if recipe.learner.strategy != "deepspeed" or not limit or size <= limit:
        return []
    return [
        f"learner: DeepSpeed splits a model that lies on the GPU whole, {size / GIB:.1f} GiB at "
        f"the start, and may use {limit / GIB:.1f} GiB: take learner.strategy=fsdp2"
    ]


def _turn_problems(recipe: Recipe, model: Architecture, gpu_gib: float) -> list[str]:
    """An engine takes its whole share of the GPU when it wakes; a rank's weights are there then."""
    resting = resting_bytes(recipe, model) / GIB
    asked = recipe.rollout.gpu_memory_utilization * gpu_gib
    if asked <= gpu_gib - resting or not gpu_gib:
        return []
    share = max(math.floor(100 * (gpu_gib - resting) / gpu_gib) / 100, 0.0)
    return [
        f"rollout: needs {asked:.1f} GiB of a GPU when it wakes up, and a learner rank keeps "
        f"{resting:.1f} of its {gpu_gib:.1f} GiB: set rollout.gpu_memory_utilization to at most "
        f"{share:.2f}, or learner.offload=all"
    ]


def _engine_problems(recipe: Recipe, model: Architecture) -> list[str]:
    """What vLLM cannot split over the GPUs of an engine; it finds out in a process of its own."""
    shards = recipe.rollout.tensor_parallel_size
    split = {
        "attention heads": model.num_heads,
        "columns of the MLP": model.expert_width,
        "attention heads of the vision tower": model.num_vision_heads,
        "columns of the MLP in the vision tower": model.vision_intermediate,
    }
    problems = [f"{number} {what}" for what, number in split.items() if number % shards]
    if model.num_key_heads % shards and shards % model.num_key_heads:  # else they are repeated
        problems.append(f"{model.num_key_heads} key heads, nor they it")
    return [
        f"rollout.tensor_parallel_size={shards} does not divide the {problem} of {model.name}: "
        f"take {_largest_split(model, shards)}"
        for problem in problems[:1]
    ]


def _largest_split(model: Architecture, below: int) -> int:
    """The most GPUs, fewer than `below`, that everything can be split over."""
    widths = (model.num_heads, model.expert_width, model.num_vision_heads)
    common = math.gcd(*widths, model.vision_intermediate)
    keys = model.num_key_heads
    return max(n for n in range(1, below) if common % n == 0 and (keys % n == 0 or n % keys == 0))

"""Memory of a learner rank: its share of the state, what is gathered, activations and logits."""

from dataclasses import replace

from actrep_ray.config import Recipe
from actrep_ray.models.architecture import Architecture
from actrep_ray.planning.activations import activation_bytes, micro_batch
from actrep_ray.planning.engine_memory import engine_overhead
from actrep_ray.planning.memory_plan import GIB, RoleMemory, value_bytes
from actrep_ray.planning.parameters import checkpoint_bytes, trainable_parameters
from actrep_ray.planning.prompts import PromptSize

_CUDA_GIB = 1.5  # context and NCCL buffers of a learner rank
_FRAGMENTATION = 0.04  # of what PyTorch's allocator holds
_BUCKET_ELEMENTS = 5e8  # DeepSpeed's reduce and all-gather buckets
_LIVE_ELEMENTS = 1e9  # ZeRO-3's largest number of gathered parameters


def plan_learner(
    recipe: Recipe,
    model: Architecture,
    prompt: PromptSize,
    gpu_gib: float = 0.0,
    ranks_per_node: int = 1,
) -> RoleMemory:
    """Peak memory of one rank, bytes.

    Args:
        recipe: Settings.
        model: Sizes of its model.
        prompt: The longest prompt.
        gpu_gib: Memory of the GPU; 0 if not known.
        ranks_per_node: For the host memory of a node.
    """
    state = state_bytes(recipe, model)
    activations, head = activation_bytes(recipe, model, prompt)
    overhead = _CUDA_GIB * GIB if recipe.device != "cpu" else 0.0
    items = [*state, ("activations", activations), ("logits", head)]
    slack = _FRAGMENTATION * sum(size for _, size in items) if recipe.device != "cpu" else 0.0
    items.append(("CUDA, NCCL, fragmentation", overhead + slack))
    return RoleMemory(
        "learner", tuple(items), gpu_gib * GIB, tuple(_learner_notes(recipe, model, prompt))
    )


def resting_bytes(recipe: Recipe, model: Architecture) -> float:
    """What a rank holds of its GPU while the engine that shares it is awake, bytes.

    Gathered weights, gradients and activations are gone between two steps.
    """
    kept = ("weights", "optimiser", "reference policy")
    held = sum(size for name, size in state_bytes(recipe, model) if name in kept)
    return held + (_CUDA_GIB * GIB if recipe.device != "cpu" else 0.0)


def beside_sleeping_engine(recipe: Recipe, learner: RoleMemory) -> RoleMemory:
    """A rank that takes turns: the engine sleeps on the CPU and leaves its context and graphs."""
    left = engine_overhead(recipe) if recipe.device != "cpu" else 0.0
    note = f"takes turns with an engine, which leaves {left / GIB:.1f} GiB behind when it sleeps"
    limit = max(learner.limit - left, 1.0) if learner.limit else 0.0
    return replace(learner, limit=limit, notes=(*learner.notes, note))


def state_bytes(recipe: Recipe, model: Architecture) -> list[tuple[str, float]]:
    """Weights, gradients, optimiser, and what is gathered for computing, of one rank."""
    cfg, ranks, size = recipe.learner, recipe.learner.num_workers, value_bytes(recipe)
    trained, frozen = trainable_parameters(recipe, model)
    is_zero = cfg.strategy == "deepspeed"
    master, moments, gradients = 4 * trained / ranks, 8 * trained / ranks, 4 * trained / ranks
    weights: float = master + size * frozen / ranks
    average = master if cfg.ema_decay is not None and cfg.offload == "none" else 0.0
    unit = max(model.layer_parameters, model.block_parameters)
    root = sum(model.root_parameters.values())
    if is_zero and cfg.zero_stage == 2:
        weights = size * (trained + frozen) + (master if size != 4 else 0.0)
        gathered = 2 * size * min(_BUCKET_ELEMENTS, trained)  # reduce and all-gather buckets
    elif is_zero:
        weights = size * (trained + frozen) / ranks + (master if size != 4 else 0.0)
        live = min(_LIVE_ELEMENTS + unit, model.total_parameters)
        gathered = size * (live + min(_BUCKET_ELEMENTS, trained))
    else:
        whole = ranks == 1 or not cfg.reshard_after_forward
        gathered = size * (model.total_parameters if whole else root + 3 * unit)
        if ranks > 1:  # gradients of a layer, whole, and on their way to be summed
            summed = 4 if cfg.reduce_dtype == "float32" else 2
            gathered += 2 * (size + summed) * unit * (trained / (trained + frozen))
    if cfg.offload in ("optimizer", "all"):
        moments, gradients = 0.0, (size if is_zero else 0) * trained / ranks
        weights -= master
    if cfg.offload == "all":
        weights = 0.0
    items = [("weights", max(weights, 0.0)), ("gathered weights", gathered)]
    items += [("gradients", gradients), ("optimiser", moments)]
    if average:
        items.append(("moving average", average))
    whole_tower = 0.0
    if recipe.caches_features and not is_zero:
        whole_tower = size * model.num_blocks * model.block_parameters
        items.append(("whole vision tower", whole_tower * (1 - 1 / ranks)))
    if _has_reference(recipe):  # it uses the same whole tower
        held = size * (model.total_parameters / ranks + root) - whole_tower / ranks
        items.append(("reference policy", held))
    return items


def _learner_notes(recipe: Recipe, model: Architecture, prompt: PromptSize) -> list[str]:
    trained, frozen = trainable_parameters(recipe, model)
    on, off = (activation_bytes(recipe, model, prompt, checkpointing=c)[0] for c in (True, False))
    batch = micro_batch(recipe, prompt, recipe.rollout.max_response_tokens)
    folders, state = checkpoint_bytes(recipe, model)
    return [
        f"a checkpoint is {(folders + state) / GIB:.2f} GiB (model {folders / GIB:.2f}, training "
        f"state {state / GIB:.2f}); each rank copies "
        f"{(folders + state) / recipe.learner.num_workers / GIB:.2f} GiB to host memory",
        f"{trained / 1e6:,.0f}M parameters trained, {frozen / 1e6:,.0f}M frozen",
        f"micro-batch of {batch.num_answers} longest answers: {batch.num_tokens} tokens; "
        f"activations {on / GIB:.1f} GiB with checkpointing, {off / GIB:.1f} GiB without",
    ]


def _has_reference(recipe: Recipe) -> bool:
    """Whether a second model is held; with adapters the reference is the model without them."""
    is_needed = recipe.stage == "grpo" and recipe.algorithm.kl_coef > 0
    return is_needed and not recipe.model.lora.rank

"""Memory of one GPU of a rollout engine, as vLLM takes it."""

from actrep_ray.config import VLLM_LORA_RANKS, Recipe
from actrep_ray.models.architecture import Architecture
from actrep_ray.planning.memory_plan import GIB, RoleMemory, value_bytes
from actrep_ray.planning.parameters import push_bytes
from actrep_ray.planning.prompts import PromptSize

_ENGINE_CUDA_GIB = 0.9
_CUDA_GRAPHS_GIB = 1.2
_ENGINE_BATCH_TOKENS = {True: 16384, False: 8192}  # vLLM's default on GPUs of 70 GiB and more
# is a batch's least size, see `rollout.vllm_engine`; its encoder cache holds one batch


def plan_rollout(
    recipe: Recipe,
    model: Architecture,
    prompt: PromptSize,
    gpu_gib: float = 0.0,
    taken: float = 0.0,
) -> RoleMemory:
    """Memory of one GPU of an engine, bytes; the KV cache is the least that an engine starts with.

    Args:
        recipe: Settings.
        model: Sizes of its model.
        prompt: The longest prompt.
        gpu_gib: Memory of the GPU; 0 if not known.
        taken: Bytes of it that a learner rank holds all the time.
    """
    cfg, size = recipe.rollout, value_bytes(recipe)
    shards = cfg.tensor_parallel_size
    is_gpu = recipe.device != "cpu"
    tokens = cfg.vllm.max_num_batched_tokens or max(
        _ENGINE_BATCH_TOKENS[gpu_gib >= 66], cfg.max_model_len
    )
    width = 6 * model.hidden + 3 * model.intermediate / shards
    patches = min(cfg.max_model_len, prompt.num_visual) * model.merge_size**2
    vision = patches * size * (10 * model.vision_hidden + 3 * model.vision_intermediate)
    logits = 2 * 4 * cfg.max_num_seqs * model.vocab
    kv_size = 1 if cfg.vllm.has_fp8_cache else size
    kv = model.kv_bytes_per_token(kv_size) / min(shards, model.num_key_heads)
    items = [
        ("weights", size * model.total_parameters / shards),
        ("profiled forward pass", max(tokens * size * width, vision) + logits),
        ("encoder cache", tokens * size * model.hidden * (1 + model.num_deepstack)),
        ("CUDA and graphs", engine_overhead(recipe) if is_gpu else 0.0),
        ("KV cache of one sequence", cfg.max_model_len * kv),
    ]
    if recipe.sends_adapters:
        items.insert(1, ("adapters", _adapter_bytes(recipe, model)))
    limit = gpu_gib * GIB * cfg.gpu_memory_utilization
    kind = "adapters" if recipe.sends_adapters else "all weights"
    notes = [f"a push brings {push_bytes(recipe, model) / GIB:.2f} GiB to each engine: {kind}"]
    if limit and taken:
        notes.append(f"a learner rank keeps {taken / GIB:.1f} GiB of the same GPU")
    left = limit - sum(size for _, size in items[:-1])
    if limit and left > 0:
        sequences = left / kv / cfg.max_model_len
        average = prompt.num_tokens + recipe.train.group_size * cfg.max_response_tokens / 2
        groups = left / kv / average
        notes.append(
            f"KV cache of {left / GIB:.1f} GiB: {sequences:.1f} sequences of "
            f"{cfg.max_model_len} tokens, or {groups:.1f} groups whose answers use half of "
            "max_response_tokens"
        )
    return RoleMemory("rollout", tuple(items), limit, tuple(notes))


def _adapter_bytes(recipe: Recipe, model: Architecture) -> float:
    """What vLLM sets aside for one adapter on each GPU: whole, of the next rank it has room for."""
    rank = recipe.model.lora.rank
    room = next(room for room in (*VLLM_LORA_RANKS, rank) if room >= rank)
    return push_bytes(recipe, model) * room / rank


def engine_overhead(recipe: Recipe) -> float:
    graphs = 0.0 if recipe.rollout.enforce_eager else _CUDA_GRAPHS_GIB
    return (_ENGINE_CUDA_GIB + graphs) * GIB

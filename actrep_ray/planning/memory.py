"""What a run will hold in memory, and whether it fits: per role and GPU, before anything starts.

Sizes come from the model's config on the meta device (`models.architecture`), the video settings
and the recipe; the terms follow what the learner and vLLM keep at their peak:

    learner   its share of weights, gradients and AdamW; weights gathered for the layer at hand;
              activations of one micro-batch; logits of one chunk; what CUDA and NCCL take
    rollout   weights; the profiled forward pass; CUDA graphs; the rest of `gpu_memory_utilization`
              is KV cache, which must hold at least one sequence

A plan is arithmetic, so "what would help" is found by trying changed recipes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from actrep_ray.cluster.placement import (
    Node,
    PlacementError,
    describe,
    place,
    pools_of,
    shares_bundles,
)
from actrep_ray.config import ConfigError, Recipe, override
from actrep_ray.models.architecture import Architecture

GIB = 2**30

_CHUNK_LOGITS = 1 << 26  # as `learner.policy` cuts them
_LOGIT_BYTES = 16  # float32 logits, log-softmax, its exponential and their product
_CUDA_GIB = 1.5  # context and NCCL buffers of a learner rank
_FRAGMENTATION = 0.04  # of what PyTorch's allocator holds
_ENGINE_CUDA_GIB = 0.9
_CUDA_GRAPHS_GIB = 1.2
_ENGINE_BATCH_TOKENS = {True: 16384, False: 8192}  # vLLM's default on GPUs of 70 GiB and more
_BUCKET_ELEMENTS = 5e8  # DeepSpeed's reduce and all-gather buckets
_LIVE_ELEMENTS = 1e9  # ZeRO-3's largest number of gathered parameters
_SHORT_ANSWER = 128
_TEMPLATE_TOKENS = 24  # chat template around the question
_TIMESTAMP_TOKENS = 11  # `<12.5 seconds>` and the marks around each temporal patch of Qwen3-VL


@dataclass(frozen=True)
class PromptSize:
    """A clip and its question in tokens.

    Attributes:
        num_visual: Visual tokens.
        num_text: All others, estimated: the tokenizer need not be here.
        is_of_data: Whether the data holds such a clip, or only the video settings allow it.
    """

    num_visual: int
    num_text: int
    is_of_data: bool = False

    @property
    def num_tokens(self) -> int:
        """Of the prompt."""
        return self.num_visual + self.num_text


@dataclass(frozen=True)
class RolePlan:
    """Memory of one GPU of a role.

    Attributes:
        role: `learner` or `rollout`.
        items: (what, bytes), in the order in which they are shown; they add up to `num_bytes`.
        limit: Bytes that the role may use on its GPU; 0 if the GPU is not known.
        notes: Further lines: KV cache, host memory, alternatives.
    """

    role: str
    items: tuple[tuple[str, float], ...]
    limit: float
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> float:
        """What the role needs."""
        return sum(size for _, size in self.items)

    @property
    def fits(self) -> bool:
        """Whether it fits; True if the GPU is not known."""
        return not self.limit or self.num_bytes <= self.limit


@dataclass(frozen=True)
class Plan:
    """A recipe on some hardware.

    Attributes:
        roles: Learner, and in GRPO rollout.
        placement: Lines that say which worker is where; empty without nodes.
        problems: Why it cannot run, one line each; empty if it fits.
        warnings: What could stop a run, if the data holds such clips.
        remedies: The first settings to change, one line each, with what they come to.
    """

    roles: tuple[RolePlan, ...]
    placement: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether nothing stands against it."""
        return not self.problems


def largest_prompt(recipe: Recipe, model: Architecture) -> PromptSize:
    """The longest prompt that the video settings allow."""
    video = recipe.video
    cells = max(1, video.max_pixels // model.frame_factor**2)
    pairs = -(-video.max_frames // model.temporal_patch_size)
    return prompt_size(recipe, model, num_visual=pairs * cells, num_pairs=pairs)


def prompt_size(
    recipe: Recipe,
    model: Architecture,
    *,
    num_visual: int,
    num_pairs: int,
    is_of_data: bool = False,
) -> PromptSize:
    """A prompt of so many visual tokens in so many temporal patches; text is estimated."""
    text = _TEMPLATE_TOKENS + math.ceil(len(recipe.data.question) / 3.5)
    if model.family.startswith("qwen3_vl"):
        text += num_pairs * _TIMESTAMP_TOKENS
    return PromptSize(num_visual, text, is_of_data)


def make_plan(
    recipe: Recipe, model: Architecture, prompt: PromptSize, nodes: Sequence[Node] = ()
) -> Plan:
    """Plan a recipe, and if it does not fit, find what would help.

    Args:
        recipe: Settings.
        model: Sizes of its model.
        prompt: The longest prompt.
        nodes: The hardware; without it nothing is judged.
    """
    plan = _plan(recipe, model, prompt, nodes)
    if plan.fits or not nodes:
        return plan
    return replace(plan, remedies=tuple(_remedies(recipe, model, prompt, nodes, plan)))


def _plan(recipe: Recipe, model: Architecture, prompt: PromptSize, nodes: Sequence[Node]) -> Plan:
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
        if shares_bundles(recipe):
            resting = resting_bytes(recipe, model)
            roles = [_beside_sleeping_engine(recipe, roles[0])]
        roles.append(plan_rollout(recipe, model, prompt, gpu_gib["rollout"], resting))
        problems += _engine_problems(recipe, model)
    problems += [
        f"{role.role}: needs {role.num_bytes / GIB:.1f} GiB of a GPU, may use "
        f"{role.limit / GIB:.1f} GiB; most is {_largest(role)}"
        for role in roles
        if not role.fits
    ]
    if shares_bundles(recipe):
        problems += _turn_problems(recipe, model, gpu_gib["rollout"])
    problems += _load_problems(recipe, model, roles[0].limit)
    return Plan(tuple(roles), placement, tuple(problems), tuple(warnings))


# ---------------------------------------------------------------------------------------- learner


def plan_learner(
    recipe: Recipe,
    model: Architecture,
    prompt: PromptSize,
    gpu_gib: float = 0.0,
    ranks_per_node: int = 1,
) -> RolePlan:
    """Peak memory of one rank, bytes.

    Args:
        recipe: Settings.
        model: Sizes of its model.
        prompt: The longest prompt.
        gpu_gib: Memory of the GPU; 0 if not known.
        ranks_per_node: For the host memory of a node.
    """
    state = _state_bytes(recipe, model)
    activations, head = activation_bytes(recipe, model, prompt)
    overhead = _CUDA_GIB * GIB if recipe.device != "cpu" else 0.0
    items = [*state, ("activations", activations), ("logits", head)]
    slack = _FRAGMENTATION * sum(size for _, size in items) if recipe.device != "cpu" else 0.0
    items.append(("CUDA, NCCL, fragmentation", overhead + slack))
    return RolePlan(
        "learner", tuple(items), gpu_gib * GIB, tuple(_learner_notes(recipe, model, prompt))
    )


def resting_bytes(recipe: Recipe, model: Architecture) -> float:
    """What a rank holds of its GPU while the engine that shares it is awake, bytes.

    Gathered weights, gradients and activations are gone between two steps.
    """
    kept = ("weights", "optimiser", "reference policy")
    held = sum(size for name, size in _state_bytes(recipe, model) if name in kept)
    return held + (_CUDA_GIB * GIB if recipe.device != "cpu" else 0.0)


def _beside_sleeping_engine(recipe: Recipe, learner: RolePlan) -> RolePlan:
    """A rank that takes turns: the engine sleeps on the CPU and leaves its context and graphs."""
    left = _engine_overhead(recipe) if recipe.device != "cpu" else 0.0
    note = f"takes turns with an engine, which leaves {left / GIB:.1f} GiB behind when it sleeps"
    limit = max(learner.limit - left, 1.0) if learner.limit else 0.0
    return replace(learner, limit=limit, notes=(*learner.notes, note))


def trainable_parameters(recipe: Recipe, model: Architecture) -> tuple[int, int]:
    """(trained, frozen) parameters."""
    lora = recipe.model.lora
    if not lora.rank:
        frozen = sum(model.num_parameters[part] for part in recipe.model.freeze)
        return model.total_parameters - frozen, frozen
    trained = 0
    if "language_model" in lora.parts:
        shapes = [model.linear_shapes[n] for n in lora.target_modules if n in model.linear_shapes]
        trained = model.num_layers * lora.rank * sum(a + b for a, b in shapes)
    return trained, model.total_parameters


def _state_bytes(recipe: Recipe, model: Architecture) -> list[tuple[str, float]]:
    """Weights, gradients, optimiser, and what is gathered for computing, of one rank."""
    cfg, ranks, size = recipe.learner, recipe.learner.num_workers, _value_bytes(recipe)
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
    if _has_reference(recipe):
        items.append(("reference policy", size * (model.total_parameters / ranks + root)))
    return items


def activation_bytes(
    recipe: Recipe, model: Architecture, prompt: PromptSize, *, checkpointing: bool | None = None
) -> tuple[float, float]:
    """(activations, logits) of one micro-batch at the peak, bytes.

    With checkpointing each layer's input is kept and one layer is computed again at a time.

    Args:
        recipe: Settings.
        model: Sizes.
        prompt: The longest prompt.
        checkpointing: In place of the recipe's setting.
    """
    is_checkpointed = recipe.learner.gradient_checkpointing
    if checkpointing is not None:
        is_checkpointed = checkpointing
    batches = [micro_batch(recipe, prompt, length) for length in _answer_lengths(recipe)]
    found = [_activation_bytes(recipe, model, batch, is_checkpointed) for batch in batches]
    return max(found, key=sum)


def _activation_bytes(
    recipe: Recipe, model: Architecture, batch: "MicroBatch", is_checkpointed: bool
) -> tuple[float, float]:
    size = _value_bytes(recipe)
    tokens, patches = batch.num_tokens, batch.num_visual * model.merge_size**2
    layer = tokens * _layer_bytes(model, size) + _copies_bytes(recipe, model, batch, size)
    backward = tokens * size * (3 * model.intermediate + 2 * model.hidden)
    block = patches * _block_bytes(model, size)
    is_vision_trained = "vision_tower" not in recipe.model.freeze and not recipe.model.lora.rank
    if is_checkpointed:
        decoder = float(model.num_layers * tokens * size * model.hidden)
        peak = layer + backward
        tower = float(model.num_blocks * patches * size * model.vision_hidden)
    else:
        decoder, peak = model.num_layers * layer, 0.0
        tower = model.num_blocks * block
    merger = batch.num_visual * (1 + model.num_deepstack) * 16 * size * model.vision_hidden
    pixels = patches * model.patch_dim * (4 + (size if size != 4 else 0))
    embeddings = tokens * size * model.hidden * (2 + model.num_deepstack)
    chunk = min(_CHUNK_LOGITS, batch.num_targets * model.vocab)
    head = chunk * _LOGIT_BYTES + batch.num_targets * size * model.hidden
    # A layer and the logits are not at their peak at the same time.
    kept = decoder + tower * is_vision_trained + merger + pixels + embeddings
    forward_of_vision = 1.5 * block
    return max(kept + max(peak - head, 0.0), pixels + forward_of_vision), head


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch.

    Attributes:
        num_rows: Prompts.
        num_tokens: Read, padding included.
        num_visual: Visual tokens among them.
        num_answers: Answers.
        num_targets: Tokens that are predicted.
    """

    num_rows: int
    num_tokens: int
    num_visual: int
    num_answers: int
    num_targets: int


def micro_batch(recipe: Recipe, prompt: PromptSize, answer: int) -> MicroBatch:
    """The largest micro-batch that `learner.micro_batch_tokens` and a rank's share allow.

    Args:
        recipe: Settings.
        prompt: Of every row.
        answer: Tokens of every answer.
    """
    cfg, train = recipe.learner, recipe.train
    if recipe.stage == "sft":
        answers, rows = 1, recipe.sft.clips_per_step // cfg.num_workers
    else:
        groups = recipe.answers_per_optimizer_step // train.group_size
        answers, rows = train.group_size, groups // cfg.num_workers
    if cfg.packing == "none":
        answers, rows = 1, rows * answers
    budget = cfg.micro_batch_tokens
    row = prompt.num_tokens + answers * (answer - 1)
    if row > budget:  # a row is cut into rows of fewer answers
        answers = max(1, (budget - prompt.num_tokens) // max(1, answer - 1))
        row = min(prompt.num_tokens + answers * (answer - 1), budget)
    num_rows = max(1, min(rows, budget // row))
    return MicroBatch(
        num_rows=num_rows,
        num_tokens=num_rows * row,
        num_visual=num_rows * prompt.num_visual,
        num_answers=num_rows * answers,
        num_targets=num_rows * answers * answer,
    )


def _answer_lengths(recipe: Recipe) -> tuple[int, int]:
    """Short and longest: short answers leave room for more prompts in a micro-batch."""
    longest = recipe.rollout.max_response_tokens
    return min(_SHORT_ANSWER, longest), longest


def _layer_bytes(model: Architecture, size: int) -> float:
    """What backward needs of one decoder layer, bytes per token: norms, attention, MLP."""
    query, keys = model.num_heads * model.head_dim, model.num_key_heads * model.head_dim
    norms: float = 2 * (4 + 2 * size) * model.hidden  # float32 input, normalised, scaled
    attention = 4 * size * query + 4 * model.num_heads  # query, key, value (repeated), output
    if model.has_head_norm:
        attention += (4 + size) * (query + keys)
    mlp: float = 4 * size * model.intermediate  # gate, its activation, up, their product
    if model.num_experts:
        copies = model.intermediate / max(1, _expert_width(model))
        mlp += 2 * size * copies * model.hidden + 8 * model.num_experts
    return norms + attention + mlp


def _expert_width(model: Architecture) -> float:
    """Width of one expert, from the experts' share of a layer."""
    attention = sum(a * b for a, b in model.linear_shapes.values())
    router = model.num_experts * model.hidden
    experts = model.layer_parameters - attention - router
    return experts / (3 * model.hidden * model.num_experts)


def _copies_bytes(recipe: Recipe, model: Architecture, batch: MicroBatch, size: int) -> float:
    """Keys and values that packed attention repeats for each answer, and its masks, of a layer."""
    cfg = recipe.learner
    if batch.num_answers == batch.num_rows or cfg.packing == "none" or cfg.attention != "sdpa":
        return 0.0
    answer = max(1, batch.num_targets // batch.num_answers)
    prefix = max(1, (batch.num_tokens - batch.num_targets) // batch.num_rows)
    width = model.num_heads * model.head_dim
    keys = 2 * batch.num_answers * (prefix + answer) * width * size
    queries = 3 * batch.num_targets * width * size
    mask = batch.num_answers * answer * (prefix + answer) * (1 + size)
    return keys + queries + mask


def _block_bytes(model: Architecture, size: int) -> float:
    """What backward needs of one vision block, bytes per patch."""
    if model.family == "qwen2_5_vl":  # RMSNorm and a gated MLP
        norms, mlp = 2 * (4 + 2 * size), 4 * size
    else:
        norms, mlp = 4 * size, 2 * size
    return (norms + 4 * size) * model.vision_hidden + mlp * model.vision_intermediate


def _learner_notes(recipe: Recipe, model: Architecture, prompt: PromptSize) -> list[str]:
    trained, frozen = trainable_parameters(recipe, model)
    on, off = (activation_bytes(recipe, model, prompt, checkpointing=c)[0] for c in (True, False))
    batch = micro_batch(recipe, prompt, recipe.rollout.max_response_tokens)
    return [
        f"{trained / 1e6:,.0f}M parameters trained, {frozen / 1e6:,.0f}M frozen",
        f"micro-batch of {batch.num_answers} longest answers: {batch.num_tokens} tokens; "
        f"activations {on / GIB:.1f} GiB with checkpointing, {off / GIB:.1f} GiB without",
    ]


# ---------------------------------------------------------------------------------------- rollout


def plan_rollout(
    recipe: Recipe,
    model: Architecture,
    prompt: PromptSize,
    gpu_gib: float = 0.0,
    taken: float = 0.0,
) -> RolePlan:
    """Memory of one GPU of an engine, bytes; the KV cache is the least that an engine starts with.

    Args:
        recipe: Settings.
        model: Sizes of its model.
        prompt: The longest prompt.
        gpu_gib: Memory of the GPU; 0 if not known.
        taken: Bytes of it that a learner rank holds all the time.
    """
    cfg, size = recipe.rollout, _value_bytes(recipe)
    shards = cfg.tensor_parallel_size
    is_gpu = recipe.device != "cpu"
    tokens = max(_ENGINE_BATCH_TOKENS[gpu_gib >= 66], 0)
    width = 6 * model.hidden + 3 * model.intermediate / shards
    patches = min(cfg.max_model_len, prompt.num_visual) * model.merge_size**2
    vision = patches * size * (10 * model.vision_hidden + 3 * model.vision_intermediate)
    logits = 2 * 4 * cfg.max_num_seqs * model.vocab
    kv = model.kv_bytes_per_token(size) / min(shards, model.num_key_heads)
    items = [
        ("weights", size * model.total_parameters / shards),
        ("profiled forward pass", max(tokens * size * width, vision) + logits),
        ("CUDA and graphs", _engine_overhead(recipe) if is_gpu else 0.0),
        ("KV cache of one sequence", cfg.max_model_len * kv),
    ]
    limit = gpu_gib * GIB * cfg.gpu_memory_utilization
    notes = []
    if limit and taken:
        notes.append(f"a learner rank keeps {taken / GIB:.1f} GiB of the same GPU")
    left = limit - sum(size for _, size in items[:3])
    if limit and left > 0:
        sequences = left / kv / cfg.max_model_len
        average = prompt.num_tokens + recipe.train.group_size * cfg.max_response_tokens / 2
        groups = left / kv / average
        notes.append(
            f"KV cache of {left / GIB:.1f} GiB: {sequences:.1f} sequences of "
            f"{cfg.max_model_len} tokens, or {groups:.1f} groups whose answers use half of "
            "max_response_tokens"
        )
    return RolePlan("rollout", tuple(items), limit, tuple(notes))


def _engine_overhead(recipe: Recipe) -> float:
    graphs = 0.0 if recipe.rollout.enforce_eager else _CUDA_GRAPHS_GIB
    return (_ENGINE_CUDA_GIB + graphs) * GIB


# ------------------------------------------------------------------------------------ what is wrong


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
    size = 4 * trained + _value_bytes(recipe) * frozen
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
    shards = recipe.rollout.tensor_parallel_size
    if model.num_heads % shards:
        return [
            f"rollout.tensor_parallel_size={shards} does not divide the {model.num_heads} "
            f"attention heads of {model.name}"
        ]
    return []


def _remedies(
    recipe: Recipe,
    model: Architecture,
    prompt: PromptSize,
    nodes: Sequence[Node],
    plan: Plan,
) -> list[str]:
    """The first three settings that help: those that make it fit, then those that gain most."""
    missed = {role.role for role in plan.roles if not role.fits}
    excess = _excess(plan)
    found = []
    for order, change in enumerate(_changes(recipe, missed, prompt)):
        settings = [setting for setting in change.split() if _changes_something(recipe, setting)]
        try:
            changed = override(recipe, settings)
        except ConfigError:
            continue
        size = prompt if "video." not in change else largest_prompt(changed, model)
        new = _plan(changed, model, size, nodes)
        is_better = _excess(new) < excess if missed else len(new.problems) < len(plan.problems)
        if len(new.problems) > len(plan.problems) or not is_better:
            continue
        text = f"--set {' --set '.join(settings)}: "
        if new.fits:
            text += "fits"
        else:
            text += ", ".join(f"{r.role} {r.num_bytes / GIB:.1f} GiB" for r in new.roles)
        found.append((not new.fits, order if new.fits else _excess(new), text))
    return list(dict.fromkeys(text for _, _, text in sorted(found)))[:3]


def _changes_something(recipe: Recipe, setting: str) -> bool:
    try:
        return override(recipe, [setting]) != recipe
    except ConfigError:
        return True  # of use only with the others


def _changes(recipe: Recipe, missed: set[str], prompt: PromptSize) -> list[str]:
    """Settings to try, the cheapest first."""
    learner, rollout = recipe.learner, recipe.rollout
    needed = prompt.num_tokens + rollout.max_response_tokens
    changes = []
    if "learner" in missed:
        half = max(learner.micro_batch_tokens // 2, needed)
        changes += [
            "learner.gradient_checkpointing=true",
            f"learner.micro_batch_tokens={half}",
            f"learner.gradient_checkpointing=true learner.micro_batch_tokens={half}",
            "model.freeze=[vision_tower]",
            f"learner.num_workers={2 * learner.num_workers}",
            "learner.offload=all",
            f"learner.offload=all learner.micro_batch_tokens={half}",
            "learner.strategy=fsdp2",
            "model.freeze=[] model.lora.rank=64",
            "learner.gradient_checkpointing=true model.freeze=[] model.lora.rank=64",
            "learner.offload=all model.freeze=[] model.lora.rank=64",
            "algorithm.kl_coef=0",
            f"video.max_frames={max(recipe.video.min_frames, recipe.video.max_frames // 2)} "
            f"learner.micro_batch_tokens={max(learner.micro_batch_tokens // 2, 1024)}",
        ]
    if "rollout" in missed:
        shards, workers = rollout.tensor_parallel_size, rollout.num_workers
        changes += [
            f"rollout.max_model_len={needed}",
            "rollout.gpu_memory_utilization=0.92",
            f"rollout.tensor_parallel_size={2 * shards} rollout.num_workers={max(1, workers // 2)}",
            f"rollout.tensor_parallel_size={4 * shards} rollout.num_workers={max(1, workers // 4)}",
            "rollout.enforce_eager=true",
        ]
    if not missed:
        changes += [
            "placement.mode=colocated",
            *(f"placement.mode=colocated rollout.gpu_memory_utilization={u}" for u in (0.5, 0.3)),
            "learner.strategy=fsdp2",
            f"rollout.max_model_len={needed}",
            f"learner.micro_batch_tokens={needed}",
            f"video.max_frames={max(recipe.video.min_frames, recipe.video.max_frames // 2)}",
            f"rollout.num_workers={max(1, rollout.num_workers // 2)}",
            f"learner.num_workers={max(1, learner.num_workers // 2)}",
            f"rollout.num_workers={max(1, rollout.num_workers // 2)} "
            f"learner.num_workers={max(1, learner.num_workers // 2)}",
        ]
    return changes


def _excess(plan: Plan) -> float:
    """Bytes by which the roles exceed their limits."""
    return sum(max(0.0, role.num_bytes - role.limit) for role in plan.roles if role.limit)


def _largest(role: RolePlan) -> str:
    name, size = max(role.items, key=lambda item: item[1])
    return f"{name} ({size / GIB:.1f} GiB)"


def _value_bytes(recipe: Recipe) -> int:
    return 4 if recipe.model.dtype == "float32" else 2


def _has_reference(recipe: Recipe) -> bool:
    """Whether a second model is held; with adapters the reference is the model without them."""
    is_needed = recipe.stage == "grpo" and recipe.algorithm.kl_coef > 0
    return is_needed and not recipe.model.lora.rank

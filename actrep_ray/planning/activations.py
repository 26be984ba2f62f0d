"""Activations of a micro-batch of the learner at their peak."""

from dataclasses import dataclass

from actrep_ray.config import Recipe
from actrep_ray.models.architecture import Architecture
from actrep_ray.planning.memory_plan import value_bytes
from actrep_ray.planning.prompts import PromptSize

_CHUNK_LOGITS = 1 << 26  # as `learner.policy` cuts them
_LOGIT_BYTES = 16  # float32 logits, log-softmax, its exponential and their product
SHORT_ANSWER = 128
"""Tokens of an answer that is shorter than most; see `activation_bytes`."""


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
    size = value_bytes(recipe)
    tokens, patches = batch.num_tokens, batch.num_visual * model.merge_size**2
    layer = tokens * _layer_bytes(model, size) + _copies_bytes(recipe, model, batch, size)
    backward = tokens * size * (3 * model.intermediate + 2 * model.hidden)
    block = patches * _block_bytes(model, size)
    is_vision_trained = not recipe.model.is_frozen("vision_tower")
    if is_checkpointed:
        decoder = float(model.num_layers * tokens * size * model.hidden)
        peak = layer + backward
        tower = float(model.num_blocks * patches * size * model.vision_hidden)
    else:
        decoder, peak = model.num_layers * layer, 0.0
        tower = model.num_blocks * block
    merger = batch.num_visual * (1 + model.num_deepstack) * 16 * size * model.vision_hidden
    pixels = patches * model.patch_dim * (4 + (size if size != 4 else 0))
    features = float(patches * (1 + model.num_deepstack) * size * model.vision_hidden)
    embeddings = tokens * size * model.hidden * (2 + model.num_deepstack)
    chunk = min(_CHUNK_LOGITS, batch.num_targets * model.vocab)
    head = chunk * _LOGIT_BYTES + batch.num_targets * size * model.hidden
    # A layer and the logits are not at their peak at the same time.
    if not recipe.caches_features:
        features = 0.0
    kept = decoder + tower * is_vision_trained + merger + (features or pixels) + embeddings
    forward_of_vision = 1.5 * block
    of_tower = pixels + forward_of_vision + features
    if features:  # it takes one clip at a time, before there is a batch
        of_tower /= batch.num_rows
    return max(kept + max(peak - head, 0.0), of_tower), head


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
    return min(SHORT_ANSWER, longest), longest


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

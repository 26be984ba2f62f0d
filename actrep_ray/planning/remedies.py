"""What would make a recipe fit: changed recipes are planned, and those that help are told."""

from collections.abc import Sequence

from actrep_ray.cluster.placement import Node
from actrep_ray.config import ConfigError, Recipe, override
from actrep_ray.models.architecture import Architecture
from actrep_ray.planning.fit import fit
from actrep_ray.planning.memory_plan import GIB, MemoryPlan
from actrep_ray.planning.prompts import PromptSize, largest_prompt


def find_remedies(
    recipe: Recipe,
    model: Architecture,
    prompt: PromptSize,
    nodes: Sequence[Node],
    plan: MemoryPlan,
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
        new = fit(changed, model, size, nodes)
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
            f"rollout.tensor_parallel_size={max(1, rollout.tensor_parallel_size // 2)} "
            f"rollout.num_workers={2 * rollout.num_workers}",
            f"learner.micro_batch_tokens={needed}",
            f"video.max_frames={max(recipe.video.min_frames, recipe.video.max_frames // 2)}",
            f"rollout.num_workers={max(1, rollout.num_workers // 2)}",
            f"learner.num_workers={max(1, learner.num_workers // 2)}",
            f"rollout.num_workers={max(1, rollout.num_workers // 2)} "
            f"learner.num_workers={max(1, learner.num_workers // 2)}",
        ]
    return changes


def _excess(plan: MemoryPlan) -> float:
    """Bytes by which the roles exceed their limits."""
    return sum(max(0.0, role.num_bytes - role.limit) for role in plan.roles if role.limit)

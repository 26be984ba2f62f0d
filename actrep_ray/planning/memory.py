"""What a run will hold in memory, and whether it fits: per role and GPU, before anything starts.

Sizes come from the model's config on the meta device (`models.architecture`), the video settings
and the recipe; the terms follow what the learner and vLLM keep at their peak:

    learner   its share of weights, gradients and AdamW; weights gathered for the layer at hand;
              activations of one micro-batch; logits of one chunk; what CUDA and NCCL take
    rollout   weights; the profiled forward pass; CUDA graphs; the rest of `gpu_memory_utilization`
              is KV cache, which must hold at least one sequence

A plan is arithmetic, so "what would help" is found by trying changed recipes.
"""

from collections.abc import Sequence
from dataclasses import replace

from actrep_ray.cluster.placement import Node
from actrep_ray.config import Recipe
from actrep_ray.models.architecture import Architecture
from actrep_ray.planning.fit import fit
from actrep_ray.planning.memory_plan import MemoryPlan
from actrep_ray.planning.prompts import PromptSize
from actrep_ray.planning.remedies import find_remedies


def plan_memory(
    recipe: Recipe, model: Architecture, prompt: PromptSize, nodes: Sequence[Node] = ()
) -> MemoryPlan:
    """Plan the memory of a recipe, and if it does not fit, find what would help.

    Args:
        recipe: Settings.
        model: Sizes of its model.
        prompt: The longest prompt.
        nodes: The hardware; without it nothing is judged.
    """
    plan = fit(recipe, model, prompt, nodes)
    if plan.fits or not nodes:
        return plan
    return replace(plan, remedies=tuple(find_remedies(recipe, model, prompt, nodes, plan)))

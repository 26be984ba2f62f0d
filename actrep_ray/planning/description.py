"""`actrep check RECIPE`: what a recipe will do and whether its hardware holds it, before it starts.

The hardware is that of `--gpus`, else of the cluster of RAY_ADDRESS, else the recipe's own first
line (`# hardware: 8x80GB`).
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actrep_ray.cluster.placement import Node, parse_gpus
from actrep_ray.config import ConfigError, Recipe, load_recipe
from actrep_ray.models.architecture import Architecture, read_architecture
from actrep_ray.models.families import max_distinct_fps
from actrep_ray.models.published import find_config
from actrep_ray.planning.memory import plan_memory
from actrep_ray.planning.memory_plan import GIB, MemoryPlan, RoleMemory
from actrep_ray.planning.parameters import check_adapters
from actrep_ray.planning.prompts import PromptSize, clip_size, largest_prompt
from actrep_ray.planning.training import describe_training
from actrep_ray.run.model_folder import model_folder
from actrep_ray.tasks.loading import chosen_clips
from data_prep.files import read_text


@dataclass(frozen=True)
class Check:
    """What a recipe comes to.

    Attributes:
        lines: For the person who asked.
        plan: The memory plan; None where no model is named.
    """

    lines: tuple[str, ...]
    plan: MemoryPlan | None

    @property
    def fits(self) -> bool:
        """Whether nothing stands against the recipe."""
        return self.plan is None or self.plan.fits


def check_recipe(recipe: Recipe, path: Path, gpus: str | None = None) -> Check:
    """Plan the memory of a recipe.

    Args:
        recipe: Settings.
        path: Where they were read from; other recipes beside it say what `runs/NAME` holds.
        gpus: Hardware, as `8x80GB`.

    Raises:
        ConfigError: for hardware or a model that is not known, or settings that contradict.
    """
    lines = describe_training(recipe)
    source = model_source(recipe, path)
    if not source:
        return Check((*lines, "memory: not planned, since model.path is not set"), None)
    model = read_architecture(str(model_folder(source)))
    check_adapters(recipe, model)
    prompt, of_data = _prompt_of(recipe, model)
    where, nodes = find_hardware(path, gpus, is_cpu=recipe.device == "cpu")
    plan = plan_memory(recipe, model, prompt, nodes)
    lines += _time_warning(recipe, source)
    lines = [_describe_model(model, source, recipe), of_data, *lines, *_describe_roles(plan)]
    return Check((*lines, *_verdict(plan, where)), plan)


def _time_warning(recipe: Recipe, source: str) -> list[str]:
    """A line where temporal patches of a clip share a position in time."""
    limit = max_distinct_fps(find_config(str(model_folder(source)))[1])
    if limit is None or recipe.video.fps <= limit:
        return []
    return [
        f"warning: video.fps={recipe.video.fps:g}: Qwen2.5-VL has positions in time for "
        f"{limit:g} fps, above it temporal patches share one and their order is lost: set "
        f"video.fps={limit:g} or take Qwen3-VL"
    ]


def model_source(recipe: Recipe, path: Path) -> str:
    """Folder or published name from which the sizes of a recipe's model are known.

    A run folder that does not exist yet (`runs/qwen3_vl_4b_sft`) stands for the model of the recipe
    that writes it, if that recipe lies beside this one.
    """
    seen: set[str] = set()
    found = recipe.model.path
    while found and found not in seen:
        seen.add(found)
        try:
            find_config(str(model_folder(found)))
        except ConfigError:
            others = _recipes_beside(path)
            found = next((r.model.path for r in others if str(r.run_dir) == found), found)
    return found


def find_hardware(path: Path, gpus: str | None, *, is_cpu: bool) -> tuple[str, list[Node]]:
    """(its name, nodes) of the hardware to plan for; no nodes where nothing is known.

    Raises:
        ConfigError: if a description cannot be read.
    """
    if gpus is not None:
        return gpus, parse_gpus(gpus)
    if is_cpu:
        return "", []
    if os.environ.get("RAY_ADDRESS"):
        from actrep_ray.cluster.nodes import nodes_of_cluster

        return "the cluster of RAY_ADDRESS", nodes_of_cluster()
    stated = stated_hardware(path)
    return (stated, parse_gpus(stated)) if stated else ("", [])


def stated_hardware(path: Path) -> str:
    """Hardware of a recipe's first line, `# hardware: 8x80GB ...`; empty if it states none."""
    match = re.match(r"#\s*hardware:\s*([^\s,]+)", read_text(path, "a recipe"))
    return match[1] if match else ""


def _recipes_beside(path: Path) -> Iterator[Recipe]:
    for other in sorted(path.parent.glob("*.yaml")):
        try:
            yield load_recipe(other)
        except ConfigError:
            continue  # another recipe's mistake is not this one's


def _prompt_of(recipe: Recipe, model: Architecture) -> tuple[PromptSize, str]:
    """The longest prompt, and a line on the visual tokens of the data if they are here."""
    path = Path(recipe.data.path)
    largest = largest_prompt(recipe, model)
    if not recipe.data.path or not path.is_file():
        return largest, (
            f"visual tokens of a clip: at most {largest.num_visual} by the video settings "
            f"({recipe.data.path or 'data.path'} is not here); prompt at most {largest.num_tokens}"
        )
    sizes = [clip_size(clip, recipe, model) for clip in chosen_clips(recipe)]
    if not sizes:
        return largest, f"visual tokens of a clip: {path} holds none"
    visual = np.array([size.num_visual for size in sizes])
    longest = max(sizes, key=lambda size: size.num_tokens)
    return longest, (
        f"visual tokens of a clip: median {np.median(visual):.0f}, 95% below "
        f"{np.quantile(visual, 0.95):.0f}, most {visual.max()} ({len(sizes)} clips of {path}); "
        f"prompt at most about {longest.num_tokens}"
    )


def _describe_model(model: Architecture, source: str, recipe: Recipe) -> str:
    components = ", ".join(
        f"{component} {_size(number)}" + " (frozen)" * (component in recipe.model.freeze)
        for component, number in model.num_parameters.items()
    )
    start = "" if source == recipe.model.path else f"; {recipe.model.path} is trained from it"
    return (
        f"model: {model.name} ({model.family}), {_size(model.total_parameters)} parameters: "
        f"{components}{start}"
    )


def _size(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e8 else f"{number / 1e6:.2f}M"


def _describe_roles(plan: MemoryPlan) -> Iterable[str]:
    for role in plan.roles:
        yield from _describe_role(role)


def _describe_role(role: RoleMemory) -> Sequence[str]:
    total = f"{role.num_bytes / GIB:.1f} GiB"
    limit = f" of {role.limit / GIB:.1f}" if role.limit else ""
    lines = [f"memory of a GPU, {role.role}: {total}{limit}"]
    lines += [f"  {size / GIB:8.2f}  {name}" for name, size in role.items if size]
    return [*lines, *(f"  {note}" for note in role.notes)]


def _verdict(plan: MemoryPlan, where: str) -> Iterable[str]:
    yield from (f"placement, {line}" for line in plan.placement)
    yield from (f"warning: {line}" for line in plan.warnings)
    if plan.fits:
        yield f"fits {where}" if where else "hardware: give --gpus 8x80GB to know whether it fits"
        return
    yield f"does NOT fit {where}".rstrip() + ":"
    yield from (f"  - {problem}" for problem in plan.problems)
    if plan.remedies:
        yield "change first:"
        yield from (f"  {i}. {text}" for i, text in enumerate(plan.remedies, start=1))

"""Every recipe of the repository loads, is sparse, and says what it is for."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from actrep_ray.cluster.placement import parse_gpus
from actrep_ray.config import Recipe, load_recipe
from actrep_ray.models.architecture import read_architecture
from actrep_ray.planning.description import model_source, stated_hardware
from actrep_ray.planning.memory import plan_memory
from actrep_ray.planning.memory_plan import MemoryPlan
from actrep_ray.planning.prompts import largest_prompt
from rewards.compose import RewardSpec

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("**/*.yaml"))


def leaves(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict) and key != "weights":
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_its_rewards_exist(path: Path) -> None:
    recipe = load_recipe(path)
    RewardSpec.from_mapping(recipe.reward.weights)
    assert recipe.model.path
    assert recipe.data.path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_holds_only_what_differs_from_the_defaults(path: Path) -> None:
    given = leaves(yaml.safe_load(path.read_text()))
    defaults = leaves(Recipe().model_dump())
    resolved = leaves(load_recipe(path).model_dump())
    assert not [key for key in given if key != "stage" and resolved[key] == defaults[key]]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_goes_on_where_engine_and_learner_disagree(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.train.on_log_prob_gap == "stop"
    assert recipe.log_prob_gap_limit == {"float32": 0.01, "bfloat16": 0.03}[recipe.model.dtype]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_begins_with_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert "stage: " in text


def test_there_is_a_recipe_for_each_model_and_stage() -> None:
    stems = {path.stem for path in RECIPES}
    models = {
        "qwen2_vl": ("2b", "7b"),
        "qwen2_5_vl": ("3b", "7b", "32b", "72b"),
        "qwen3_vl": ("2b", "4b", "8b", "32b", "30b_a3b"),
    }
    names = {f"{family}_{size}" for family, sizes in models.items() for size in sizes}
    for model in names | {"tiny", "quickstart"}:
        assert {f"{model}_sft", f"{model}_grpo"} <= stems


SIZES_GB = (16, 24, 40, 48, 80, 141)
PLANNED = [path for path in RECIPES if path.stem.startswith("qwen")]


def plan_on(path: Path, hardware: str) -> MemoryPlan:
    recipe = load_recipe(path)
    model = read_architecture(model_source(recipe, path))
    return plan_memory(recipe, model, largest_prompt(recipe, model), parse_gpus(hardware))


@pytest.mark.parametrize("path", PLANNED, ids=lambda path: path.stem)
def test_a_recipe_fits_its_hardware_and_not_the_next_smaller(path: Path) -> None:
    hardware = stated_hardware(path)
    plan = plan_on(path, hardware)
    assert plan.problems == ()
    assert plan.warnings == ()
    num_learners = load_recipe(path).learner.num_workers
    assert any(line.startswith(f"learner: {min(num_learners, 8)} on ") for line in plan.placement)
    nodes, size = hardware.removesuffix("GB").rsplit("x", 1)
    smaller = plan_on(path, f"{nodes}x{SIZES_GB[SIZES_GB.index(int(size)) - 1]}GB")
    assert "learner:" in smaller.problems[0]
    reasons = ("learner: needs", "rollout: needs", "learner: DeepSpeed splits")
    assert all(problem.startswith(reasons) for problem in smaller.problems)


@pytest.mark.parametrize("path", PLANNED, ids=lambda path: path.stem)
def test_fewer_gpus_than_workers_are_refused(path: Path) -> None:
    nodes, _, size = stated_hardware(path).rpartition("x")
    num_gpus = int(nodes.rpartition("x")[2])
    plan = plan_on(path, f"{num_gpus - 1}x{size}")
    assert "the nodes cannot hold" in plan.problems[0]


def test_names_of_runs_differ() -> None:
    folders = [load_recipe(path).run_dir for path in RECIPES]
    assert len(set(folders)) == len(folders)

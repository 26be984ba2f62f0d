"""Every recipe of the repository loads, is sparse, and says what it is for."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from actrep_ray.config import Recipe, load_recipe
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
def test_a_recipe_begins_with_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert "stage: " in text


def test_there_is_a_recipe_for_each_family_and_stage() -> None:
    stems = {path.stem for path in RECIPES}
    for model in ("qwen2_vl_2b", "qwen2_5_vl_3b", "qwen3_vl_4b", "tiny", "quickstart"):
        assert {f"{model}_sft", f"{model}_grpo"} <= stems


def test_names_of_runs_differ() -> None:
    folders = [load_recipe(path).run_dir for path in RECIPES]
    assert len(set(folders)) == len(folders)

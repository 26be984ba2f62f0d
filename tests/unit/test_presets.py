"""Presets of algorithms in a recipe, and choices of attention that are refused."""

from pathlib import Path

import pytest

from actrep_ray.config import (
    PRESETS,
    AlgorithmConfig,
    ConfigError,
    RewardConfig,
    check_attention,
    load_recipe,
    override,
)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_its_keys_and_no_others(name: str) -> None:
    found = load_recipe(None, [f"algorithm.preset={name}"]).algorithm.model_dump()
    default = AlgorithmConfig().model_dump()
    assert found == {**default, **PRESETS[name], "preset": name}


def test_what_the_recipe_gives_itself_wins(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("algorithm:\n  preset: dapo\n  clip_low: 0.1\n  dual_clip: 4\n")
    found = load_recipe(path, ["algorithm.clip_high=0.5"]).algorithm
    assert (found.clip_low, found.clip_high, found.dual_clip) == (0.1, 0.5, 4.0)
    assert found.aggregation == "token-mean"


def test_dapo_brings_its_penalty_for_length() -> None:
    weights = RewardConfig().weights
    assert load_recipe(None, ["algorithm.preset=dapo"]).reward.weights == {**weights, "overlong": 1}
    given = load_recipe(None, ["algorithm.preset=dapo", "reward.weights={exact: 1}"]).reward
    assert given.weights == {"exact": 1.0}
    assert load_recipe(None, ["algorithm.preset=gspo"]).reward.weights == weights


def test_another_preset_takes_the_place_of_the_first() -> None:
    dapo = load_recipe(None, ["algorithm.preset=dapo", "algorithm.entropy_coef=0.01"])
    gspo = load_recipe(None, ["algorithm.preset=gspo", "algorithm.entropy_coef=0.01"])
    assert override(dapo, ["algorithm.preset=gspo"]) == gspo
    assert override(dapo, ["learner.lr=1e-5"]).algorithm == dapo.algorithm
    assert override(gspo, ["algorithm.preset=null"]).algorithm == AlgorithmConfig(entropy_coef=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("algorithm.preset=dappo", "algorithm.preset='dappo'"),
        ("algorithm.loss=sapo", "set it to seq-mean-token-mean"),
        ("algorithm.loss=geo_mean", "set it to seq-mean-token-mean"),
        ("algorithm.kl_target=0.1", "algorithm.kl_coef, which is 0"),
        ("algorithm.clip_cov_range=[5, 1]", "two rising numbers"),
        ("algorithm.advantage=gdpo algorithm.kl_in=reward", "set algorithm.kl_in=loss"),
        ("learner.attention=flash_attention_2", "needs a mask that it does not take"),
        ("learner.attention=flex device=cpu", "device=cpu: its kernels need a GPU"),
        (
            "learner.attention=flash_attention_2 learner.packing=none model.dtype=float32",
            "its kernels compute in bfloat16",
        ),
        (
            "learner.attention=flash_attention_2 learner.packing=none device=cpu",
            "device=cpu: its kernels need a GPU",
        ),
    ],
)
def test_settings_that_cannot_be_combined_are_refused(settings: str, message: str) -> None:
    overrides = settings.replace(", ", ",").split(" ")
    with pytest.raises(ConfigError) as error:
        load_recipe(None, overrides)
    assert message in str(error.value)


def test_attention_is_refused_where_the_cluster_has_no_gpu() -> None:
    recipe = load_recipe(None, ["learner.attention=flex"])  # device=auto: not known yet
    with pytest.raises(ConfigError, match=r"attention=flex cannot serve device=cpu"):
        check_attention(recipe.model_copy(update={"device": "cpu"}))

"""Settings: precedence, types, rules, and the words of an error."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from actrep_ray.config import (
    ConfigError,
    LearnerConfig,
    Recipe,
    load_recipe,
    override,
    read_resolved,
    read_saved,
    write_resolved,
)


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_later_settings_win(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "learner:\n  lr: 3.0e-5\n  num_threads: 2\n")
    assert load_recipe(None).learner.lr == 1e-6
    assert load_recipe(path).learner.lr == 3e-5
    changed = load_recipe(path, ["learner.lr=1e-4", "learner.lr=2e-4"])
    assert (changed.learner.lr, changed.learner.num_threads) == (2e-4, 2)


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "'1e-6'", "0.000001"])
def test_every_way_to_write_a_number(tmp_path: Path, text: str) -> None:
    path = recipe_file(tmp_path, f"learner: {{lr: {text}}}")
    assert load_recipe(path).learner.lr == 1e-6
    assert load_recipe(None, [f"learner.lr={text}"]).learner.lr == 1e-6


@given(st.floats(1e-12, 1))
def test_any_learning_rate_survives_the_command_line(value: float) -> None:
    assert load_recipe(None, [f"learner.lr={value!r}"]).learner.lr == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerner: {lr: 1}", "unknown key 'lerner'; did you mean 'learner'"),
        ("learner: {leraning_rate: 1}", "unknown key 'learner.leraning_rate'"),
        ("learner: {lr: -1}", r"learner.lr=-1: .*greater than 0"),
        ("learner: {lr: fast}", r"learner.lr='fast': .*valid number"),
        ("train: {group_size: 1}", r"train.group_size=1: .*greater than or equal to 2"),
        (
            "train: {prompts_per_step: 10}\nlearner: {num_workers: 4}",
            "train.prompts_per_step=10 is not a multiple of learner.num_workers=4",
        ),
        (
            "stage: sft\nsft: {clips_per_step: 7}\nlearner: {num_workers: 2}",
            "sft.clips_per_step=7 is not a multiple of learner.num_workers=2",
        ),
        (
            "train: {prompts_per_step: 4, group_size: 8, mini_batch_size: 12}",
            "train.mini_batch_size=12: expected a divisor of .* = 32 that is a multiple of .* = 8",
        ),
        ("video: {min_frames: 9, max_frames: 8}", "video.min_frames must not exceed max_frames"),
        ("sampling: {bins: [5, 5]}", r"sampling.bins=\[5, 5\]: expected rising integers"),
        ("reward: {weights: {obo: 0}}", "reward.weights: expected one weight above 0"),
        ("reward: {weights: {obo: -1}}", "reward.weights.obo: weight=-1.*expected a number >= 0"),
        ("reward: {weights: {obo: {weigth: 1}}}", "reward.weights.obo: weight=None"),
        (
            "reward: {weights: {obo: {weight: 1, evidence: [a]}}}",
            r"reward.weights.obo.evidence=\['a'\]: expected a number, a string or a boolean",
        ),
        ("rollout: {engine: sglang}", "rollout.engine='sglang'"),
        ("sft: {text_lists: true}", "sft.text_lists=True: expected a number, got a boolean"),
        ("name: ../elsewhere", "name='../elsewhere'"),
        ("- a\n- b", "expected a mapping of settings, got list"),
        ("a: [", "not YAML"),
        ("seed: 2024-13-45", "not YAML"),
        ("1: 2", "unknown key '1'"),
    ],
)
def test_a_wrong_setting_is_told_with_key_and_rule(tmp_path: Path, text: str, message: str) -> None:
    path = recipe_file(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as error:
        load_recipe(path)
    assert str(error.value).startswith((f"{path}: ", f"{path}:1: "))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learner.lr", "expected key=value"),
        ("=3", "expected key=value"),
        ("seed.x=3", "seed is a value, not a section"),
        ("train.group_size=[", r"not YAML \(expected the node content"),
        ("learner.lr=.inf", r"\.inf, expected a finite number"),
        ("seed=99999999999999999999999", "999, expected an integer within 64 bits"),
        ("data={path: a, path: b}", "key 'path' is given twice"),
    ],
)
def test_a_wrong_override_is_quoted(tmp_path: Path, text: str, message: str) -> None:
    path = recipe_file(tmp_path, "seed: 1")
    with pytest.raises(ConfigError, match=message) as error:
        load_recipe(path, [text])
    assert repr(text) in str(error.value)


def test_an_override_is_not_blamed_for_a_key_of_the_recipe_that_is_like_its_own(
    tmp_path: Path,
) -> None:
    path = recipe_file(tmp_path, "learner: {lrr: 1.0e-5}")
    with pytest.raises(ConfigError) as error:
        load_recipe(path, ["learner.lr=1e-5"])
    assert str(error.value) == f"{path}: unknown key 'learner.lrr'; did you mean 'lr'?"


def mistakes_in(path: Path | None, overrides: list[str] | None = None) -> list[str]:
    """What a recipe with several mistakes is answered with, without the header."""
    with pytest.raises(ConfigError) as error:
        load_recipe(path, overrides or [])
    header, *mistakes = str(error.value).splitlines()
    assert header == f"{path or 'settings'}: {len(mistakes)} settings cannot be used:"
    assert all(line.startswith("  ") for line in mistakes)
    return [line.strip() for line in mistakes]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = """
learner: {learning_rates: 1, num_workers: 3}
train: {group_size: eight, prompts_per_step: 32}
video: {fps: -1, min_frames: 9, max_frames: 8}
"""
    found = mistakes_in(recipe_file(tmp_path, text))
    assert found == [
        "video.fps=-1: Input should be greater than 0",
        "unknown key 'learner.learning_rates'; known keys: "
        + ", ".join(LearnerConfig.model_fields),
        "train.group_size='eight': Input should be a valid integer, unable to parse string as an "
        "integer",
        "video.min_frames must not exceed max_frames",
        "train.prompts_per_step=32 is not a multiple of learner.num_workers=3: change one of them",
    ]


def test_all_wrong_overrides_are_told_with_the_recipe(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "lerner: {lr: 1}\nseed: 1")
    wrong = [
        "seed.x=3",
        "train.group_size",
        "train.num_steps=[",
        "eval.splt=test",
        "sft.num_steps=0",
    ]
    found = mistakes_in(path, wrong)
    assert found == [
        "--set 'seed.x=3': seed is a value, not a section",
        "--set 'train.group_size': expected key=value, for example learner.lr=1e-6",
        "--set 'train.num_steps=[': not YAML (expected the node content, but found '<stream end>')",
        "--set 'sft.num_steps=0': sft.num_steps=0: Input should be greater than or equal to 1",
        "--set 'eval.splt=test': unknown key 'eval.splt'; did you mean 'split'?",
        "unknown key 'lerner'; did you mean 'learner'?",
    ]


def test_contradictions_of_one_section_are_told_together() -> None:
    video = "video={min_frames: 9, max_frames: 8, min_pixels: 10, max_pixels: 9}"
    found = mistakes_in(None, [video, "seed=-1"])
    assert sorted(found) == [
        "--set 'seed=-1': seed=-1: Input should be greater than or equal to 0",
        f"--set {video!r}: video.min_frames must not exceed max_frames",
        f"--set {video!r}: video.min_pixels must not exceed max_pixels",
    ]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        # 10 prompts would not go onto 4 ranks; but how many are meant is not known
        (["train.prompts_per_step=x", "learner.num_workers=5"], "train.prompts_per_step='x'"),
        (["train.prompt_per_step=10", "learner.num_workers=5"], "unknown key"),
        (["train.prompts_per_step=[", "learner.num_workers=5"], "not YAML"),
        # without the preset's aggregation this loss is refused
        (["algorithm.preset=grp0", "algorithm.loss=sapo"], "algorithm.preset='grp0'"),
        (["learner=3", "train.prompts_per_step=7"], "learner=3"),
        (["rollout.num_workers={min: 2}", "placement.mode=colocated"], "rollout.num_workers="),
    ],
)
def test_a_rule_is_not_judged_by_what_stands_in_for_a_faulty_setting(
    overrides: list[str], told: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe(None, overrides)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.yaml: no such recipe"):
        load_recipe(tmp_path / "absent.yaml")


def test_a_range_of_engines() -> None:
    rollout = load_recipe(None, ["rollout.num_workers={min: 2, max: 5}"]).rollout
    assert (rollout.num_workers, rollout.max_workers) == (2, 5)
    with pytest.raises(ConfigError, match=r"rollout.num_workers=.*expected a number, or"):
        load_recipe(None, ["rollout.num_workers={min: 2}"])
    with pytest.raises(ConfigError, match=r"rollout.max_workers=1: expected at least .*=2"):
        load_recipe(None, ["rollout.num_workers={min: 2, max: 1}"])


def test_a_recipe_is_read_as_every_file_of_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for text in (b"seed: 3\n", b"\xef\xbb\xbfseed: 3\n", b"\r\nseed: 3\r\n", b"\n\nseed: 3"):
        path.write_bytes(text)
        assert load_recipe(path).seed == 3
    path.write_bytes("name: 'a\u2028b'".encode())
    with pytest.raises(ConfigError, match=r"name='a.*b'"):
        load_recipe(path)
    path.write_bytes(b"seed: 3\nname: \xff\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml:2: byte 0xff"):
        load_recipe(path)
    with pytest.raises(ConfigError, match="is a folder, expected a recipe"):
        load_recipe(tmp_path)


def test_an_empty_recipe_is_the_defaults(tmp_path: Path) -> None:
    assert load_recipe(recipe_file(tmp_path, "# nothing\n")) == Recipe()


def test_a_reward_is_a_weight_or_a_weight_with_options(tmp_path: Path) -> None:
    text = "reward: {weights: {obo: 5e-1, cycles: {weight: 1, tolerance: 3e-1}}}"
    recipe = load_recipe(recipe_file(tmp_path, text))
    assert recipe.reward.weights == {"obo": 0.5, "cycles": {"weight": 1, "tolerance": 0.3}}
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert override(recipe, ["seed=3"]).reward == recipe.reward


def test_overrides_of_a_recipe_at_hand_are_checked_too() -> None:
    recipe = Recipe()
    assert override(recipe, ["train.group_size=4"]).train.group_size == 4
    assert recipe.train.group_size == 8
    with pytest.raises(ConfigError, match=r"train\.group_size=1"):
        override(recipe, ["train.group_size=1"])


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        Recipe().seed = 3  # type: ignore[misc]


def test_resolved_settings_are_read_back_the_same(tmp_path: Path) -> None:
    recipe = load_recipe(None, ["learner.betas=[0.9, 0.95]", "sampling.bins=[1, 3]"])
    path = tmp_path / "run" / "config.resolved.json"
    write_resolved(recipe, path, {"commit": "abc"})
    found, content = read_resolved(path)
    assert content["commit"] == "abc"
    assert found == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_saved_settings_of_another_version_are_told(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    recipe = load_recipe(None, ["learner.betas=[0.9, 0.95]", "algorithm.preset=dapo"])
    path.write_text(recipe.model_dump_json())
    assert read_saved(path) == recipe
    path.write_text('{"learner": {"old_key": 1}, "seed": -1}')
    with pytest.raises(ConfigError, match="2 settings cannot be used") as error:
        read_saved(path)
    assert str(error.value).startswith(f"{path}: ")
    for text in ("[]", "{", "\ufeff"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"recipe\.json:1: "):
            read_saved(path)

"""Settings whose values are words: each can be chosen as it stands, whatever YAML makes of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml

from actrep_ray.config import ConfigError, Recipe, load_recipe, override
from actrep_ray.config.section import Section
from actrep_ray.config.strict_yaml import parse_yaml

SWITCHES = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}
SPELLINGS = [form(word) for word in SWITCHES for form in (str.lower, str.title, str.upper)]


def settings(section: type[Section] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and annotation of every setting."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from settings(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


def members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def words_of(kind: Any) -> list[Any]:
    return [word for m in members(kind) if get_origin(m) is Literal for word in get_args(m)]


CHOICES = [(key, word) for key, kind in settings() for word in words_of(kind)]
BOOLEANS = [key for key, kind in settings() if bool in members(kind)]
NULLABLE = [key for key, kind in settings() if type(None) in members(kind)]


def value_of(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for name in key.split("."):
        value = getattr(value, name)
    return value


def read(key: str, text: str, folder: Path) -> list[Any]:
    """A setting's value by each way to give it; settings that contradict others read as given."""
    sections = key.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(sections)]
    path = folder / "recipe.yaml"
    path.write_text("\n".join(lines) + f" {text}\n")
    found = []
    ways: tuple[Callable[[], Recipe], ...] = (
        lambda: load_recipe(None, [f"{key}={text}"]),
        lambda: load_recipe(path),
        lambda: override(Recipe(), [f"{key}={text}"]),
    )
    for load in ways:
        try:
            found.append(value_of(load(), key))
        except ConfigError as error:
            found.append(None)
            told = str(error)
            is_of_its_own = "Input should be" in told or text not in told
            if is_of_its_own:  # no rule between settings, which would have read the value
                raise
    return found


def test_the_lists_are_not_empty() -> None:
    assert len(CHOICES) > 60
    assert {"algorithm.rollout_correction", "learner.offload", "learner.packing"} <= {
        key for key, _ in CHOICES
    }
    assert "learner.gradient_checkpointing" in BOOLEANS
    assert {"algorithm.preset", "algorithm.dual_clip", "train.max_staleness"} <= set(NULLABLE)


@pytest.mark.parametrize(("key", "word"), CHOICES, ids=str)
def test_every_word_of_every_choice_is_read_as_it_stands(
    key: str, word: Any, tmp_path: Path
) -> None:
    found = read(key, str(word), tmp_path)
    assert set(found) <= {word, None}
    if value_of(Recipe(), key) == word:  # what is the default contradicts nothing
        assert found == [word] * 3


# What else a switch asks for when it is on.
ASKED_BY = {"video.shared_cache": ["video.cache_dir=frames"]}


@pytest.mark.parametrize("key", BOOLEANS)
def test_a_boolean_is_read_in_every_spelling(key: str) -> None:
    for text in SPELLINGS:
        recipe = load_recipe(None, [f"{key}={text}", *ASKED_BY.get(key, [])])
        assert value_of(recipe, key) is SWITCHES[text.lower()]


@pytest.mark.parametrize("key", NULLABLE)
def test_nothing_is_null_or_none(key: str, tmp_path: Path) -> None:
    kind = dict(settings())[key]
    for text in ("null", "~", "Null") if str in members(kind) else ("null", "~", "none", "None"):
        assert read(key, text, tmp_path) == [None] * 3


def test_null_is_the_word_none_where_one_may_choose_it(tmp_path: Path) -> None:
    keys = [key for key, word in CHOICES if word == "none"]
    assert keys
    for key in keys:
        *given, over_others = read(key, "null", tmp_path)
        assert given == ["none", "none"]
        assert over_others in ("none", None)  # data.reasoning contradicts the rewards of before


class Words(Section):
    """Choices among all that YAML 1.1 does not read as text."""

    switch: Literal["on", "off", "yes", "no"] = "on"
    empty: Literal["null", "some"] = "some"
    either: Literal["none", "some"] | None = None
    flag: bool = False
    text: str = ""


@pytest.mark.parametrize("word", ["on", "off", "yes", "no"])
def test_a_choice_of_switches(word: str) -> None:
    assert Words.model_validate(parse_yaml(f"switch: {word}")).switch == word
    assert Words.model_validate(parse_yaml(f"text: {word}")).text == word
    assert isinstance(yaml.safe_load(word), bool)  # what YAML 1.1 makes of it


def test_a_choice_of_words_for_nothing() -> None:
    assert Words.model_validate(parse_yaml("empty: null")).empty == "null"
    assert Words.model_validate(parse_yaml("either: none")).either == "none"
    assert Words.model_validate(parse_yaml("either: null")).either is None
    assert Words.model_validate(parse_yaml("text: none")).text == "none"


def test_options_of_rewards_read_switches_as_booleans() -> None:
    text = "reward.weights={a: {weight: 1, b: off, c: Yes, d: 'off', e: true}}"
    (options,) = load_recipe(None, [text]).reward.weights.values()
    assert options == {"weight": 1, "b": False, "c": True, "d": "off", "e": True}


def test_a_switch_is_no_number() -> None:
    for key in ("learner.lr", "seed"):
        with pytest.raises(ConfigError, match=f"{key}='yes'"):
            load_recipe(None, [f"{key}=yes"])

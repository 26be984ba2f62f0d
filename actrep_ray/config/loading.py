"""Reading and writing recipes: YAML, `key=value` overrides, and the settings of a run as JSON."""

import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from actrep_ray.config.algorithm import AlgorithmConfig
from actrep_ray.config.generation import RewardConfig
from actrep_ray.config.mistakes import Mistake, explain
from actrep_ray.config.presets import PRESET_PENALTIES, PRESETS
from actrep_ray.config.recipe import Recipe
from actrep_ray.config.section import ConfigError
from actrep_ray.config.strict_yaml import YamlError, parse_yaml
from data_prep.files import DataError, looks_like_url, read_object, read_text, write_lines


def load_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: defaults, then the YAML file, then `key.subkey=value` overrides.

    Args:
        path: YAML file, or None for the defaults alone.
        overrides: For example `["learner.lr=2.0e-6", "train.num_steps=10"]`; values are YAML.

    Raises:
        ConfigError: naming the file or override, the key, the value and what was expected.
    """
    values: dict[str, Any] = {} if path is None else _read_yaml(Path(path))
    return _build(values, overrides, str(path or "settings"))


def recipes_folder() -> Path:
    """Folder of the recipes: inside an installed package, or at the top level of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The same settings with `key.subkey=value` overrides, as in `load_recipe`.

    Raises:
        ConfigError: naming the override, the key, the value and what was expected.
    """
    values = recipe.model_dump()
    if any(text.startswith("algorithm.preset=") for text in overrides):
        _forget_preset(values, recipe.algorithm.preset)
    return _build(values, overrides, "settings")


def read_saved(path: Path) -> Recipe:
    """Settings that were written as JSON, as in the folder of a checkpoint.

    Raises:
        ConfigError: naming the file and all of it that is not settings of this version.
    """
    return _build(_read_json(path, "the settings of a checkpoint"), (), str(path))


def read_resolved(path: Path) -> tuple[Recipe, dict[str, Any]]:
    """What `write_resolved` wrote: the settings, and all of the file by name.

    Raises:
        ConfigError: naming the file and all of it that is not settings of this version.
    """
    content = _read_json(path, "the settings of a run")
    if not isinstance(content.get("recipe"), dict):
        raise ConfigError(f"{path}: not the settings of a run (no recipe in it)")
    return _build(content["recipe"], (), str(path)), content


def write_resolved(recipe: Recipe, path: Path, extra: dict[str, Any]) -> None:
    """Write every setting and `extra` (versions, commit, data) as JSON."""
    content = {"recipe": recipe.model_dump(mode="json"), **extra}
    write_lines(path, [json.dumps(content, indent=2, sort_keys=True)])


def _build(values: dict[str, Any], overrides: Sequence[str], where: str) -> Recipe:
    """The recipe of these values, or all that is wrong with them and the overrides."""
    mistakes: list[str] = []
    unread: set[str] = set()
    for text in overrides:
        try:
            _assign(values, text)
        except ConfigError as error:
            mistakes.append(f"--set {text!r}: {error}")
            unread.add(text.partition("=")[0])
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        mistakes += [_blamed(mistake, overrides) for mistake in explain(error, values, unread)]
    if not mistakes:
        return recipe
    if len(mistakes) == 1:
        is_of_override = mistakes[0].startswith("--set ")
        raise ConfigError(mistakes[0] if is_of_override else f"{where}: {mistakes[0]}")
    listed = "".join(f"\n  {mistake}" for mistake in mistakes)
    raise ConfigError(f"{where}: {len(mistakes)} settings cannot be used:{listed}")


def _blamed(mistake: Mistake, overrides: Sequence[str]) -> str:
    """The words of a mistake, with the last override that gave what is wrong, if one did."""
    for text in reversed(overrides):
        if mistake.is_about(text.partition("=")[0]):
            return f"--set {text!r}: {mistake.message}"
    return mistake.message


def _forget_preset(values: dict[str, Any], preset: str | None) -> None:
    """Take out what a preset set, so that another one can take its place."""
    default = AlgorithmConfig().model_dump()
    chosen: dict[str, Any] = PRESETS.get(preset or "", {})
    values["algorithm"] = {
        key: value
        for key, value in values["algorithm"].items()
        if value not in (default[key], chosen.get(key, default[key]))
    }
    if values["reward"]["weights"] == {
        **RewardConfig().weights,
        **PRESET_PENALTIES.get(preset or "", {}),
    }:
        del values["reward"]["weights"]


def _read_yaml(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path) and not looks_like_url(path):
        raise ConfigError(f"{path}: no such recipe; {_where_recipes_are(path.name)}")
    try:
        values = parse_yaml(read_text(path, "a recipe"))
    except DataError as error:
        raise ConfigError(str(error)) from error
    except YamlError as error:
        raise ConfigError(f"{path}:{error.line}: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return values


def _read_json(path: Path, expected: str) -> dict[str, Any]:
    try:
        return read_object(path, expected)
    except DataError as error:
        raise ConfigError(str(error)) from error


def _where_recipes_are(name: str) -> str:
    folder = recipes_folder()
    near = difflib.get_close_matches(name, [path.name for path in folder.glob("*.yaml")], n=1)
    return f"did you mean {folder / near[0]}?" if near else f"ours are in {folder}"


def _assign(values: dict[str, Any], override: str) -> None:
    """Put `key.subkey=value` into nested settings."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError("expected key=value, for example learner.lr=1e-6")
    try:
        value = parse_yaml(text)
    except YamlError as error:
        raise ConfigError(str(error)) from error
    *sections, last = key.split(".")
    for name in sections:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{name} is a value, not a section")
    values[last] = value

"""The record of a run, `config.resolved.json`: what it is made of, and how a resumed one differs.

Settings are compared by value; data, answers, model and a task of one's own by content, wherever
they lie; a reward of one's own by the file that it is in. What decides no number that is trained
may change freely (`_FREE`). A longer run is the same run so long as the learning rate does not
depend on its length.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actrep_ray.config import ConfigError, Recipe, SamplingConfig
from actrep_ray.run.provenance import file_hash
from data_prep.files import DataError, read_object

RECORD = "config.resolved.json"

_FREE = (
    "name", "runs_dir", "checkpoint.", "eval.", "placement.", "run.", "data.check_videos",
    "data.max_quarantined_share",
    "video.cache_dir", "video.shared_cache", "video.cache_gib", "video.decode_timeout_s",
    "rollout.timeout_s", "rollout.max_restarts", "rollout.num_cpus",
    "reward.timeout_s", "reward.num_workers", "reward.num_cpus", "reward.max_failures",
    "reward.max_restarts",
    "learner.timeout_s", "learner.max_restarts", "learner.num_cpus",
    "learner.feature_cache_gib", "data.allow_outside",
    "sft.validate_every", "sft.num_validation_clips",
    "train.max_untrained_steps", "train.on_untrained",
)  # fmt: skip
# Of sampling SFT uses its strata alone: a row in quarantine is replaced from its own.
_OF_DRAWS = tuple(f"sampling.{name}" for name in SamplingConfig.model_fields if name != "bins")
_UNUSED = {
    "grpo": ("sft.",),
    "sft": ("train.", *_OF_DRAWS, "algorithm.", "reward.", "model.lora.send"),
}
_LENGTHS = ("train.num_steps", "sft.num_steps")
_NUM_SAMPLES, _SAMPLE_BYTES = 64, 2**16


@dataclass(frozen=True)
class Change:
    """A setting that is not what it was.

    Attributes:
        key: Of the recipe.
        before: In the record, as JSON.
        now: In the recipe.
    """

    key: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.now}"


def run_id(run_dir: Path) -> str | None:
    """The id that a run has written into its record; None before checkpoint format 2."""
    try:
        content = read_object(run_dir / RECORD, "the record of a run", is_strict=False)
    except DataError:
        return None
    found = content.get("run")
    return found if isinstance(found, str) else None


def read_record(run_dir: Path) -> dict[str, Any]:
    """All of a record.

    Raises:
        ConfigError: if there is none that can be read.
    """
    path = run_dir / RECORD
    if not path.is_file():
        raise ConfigError(f"{run_dir}: holds no run to go on with (no {RECORD} in it)")
    try:
        content = read_object(path, "the record of a run", is_strict=False)
    except DataError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(content.get("recipe"), dict):
        raise ConfigError(f"{path}: not the record of a run (no recipe in it)")
    return content


def fingerprints(recipe: Recipe, model: Path) -> dict[str, str]:
    """What content tells of the inputs of a run, by the setting that names each.

    Args:
        recipe: Settings.
        model: Folder of the model that it starts from.
    """
    found = {"data.path": file_hash(Path(recipe.data.path)), "model.path": model_fingerprint(model)}
    if recipe.data.answers:
        found["data.answers"] = file_hash(Path(recipe.data.answers))
    file, colon, class_name = recipe.task.rpartition(":")
    if colon:
        text = f"{file_hash(Path(file))}:{class_name}"
        found["task"] = hashlib.sha256(text.encode()).hexdigest()
    for name in recipe.reward.weights:
        if ":" in name and (source := _source_of(name)) is not None:
            found[f"reward.weights {name}"] = file_hash(source)
    return found


def model_fingerprint(folder: Path) -> str:
    """SHA-256 of the config and, of each file of weights, its length, header and 64 samples.

    Other weights of the same shape differ in all layers, as a rule; a model of hundreds of GB is
    told from them in a second.
    """
    hashed = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        hashed.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            hashed.update(file.read(min(header, size)))
            step = max((size - file.tell()) // _NUM_SAMPLES, _SAMPLE_BYTES)
            for start in range(file.tell(), size, step):
                file.seek(start)
                hashed.update(file.read(_SAMPLE_BYTES))
    return hashed.hexdigest()


def changes(record: Mapping[str, Any], recipe: Recipe, prints: Mapping[str, str]) -> list[Change]:
    """What a run would be trained with otherwise than its record says, by key."""
    before, now = dict(_flat(record["recipe"])), dict(_flat(recipe.model_dump(mode="json")))
    default = dict(_flat(Recipe().model_dump(mode="json")))
    known = record.get("fingerprints", {})
    if not known and isinstance(record.get("data"), dict):  # of checkpoint format 1
        known = {"data.path": record["data"].get("sha256")}
    found = []
    for key in sorted(before.keys() | now.keys()):
        if _is_free(key, recipe, before):
            continue
        if key in known and key in prints:
            if known[key] != prints[key]:
                found.append(Change(key, f"content {known[key][:12]}", f"{prints[key][:12]}"))
            continue
        old, new = before.get(key, default.get(key)), now.get(key)
        if old != new:
            found.append(Change(key, json.dumps(old), json.dumps(new)))
    for name in sorted(prints.keys() & known.keys()):
        if name.startswith("reward.weights ") and known[name] != prints[name]:
            what = name.partition(" ")[2]
            told = f"source of {what} {known[name][:12]}"
            found.append(Change("reward.weights", told, prints[name][:12]))
    return found


def check_changes(
    run_dir: Path,
    record: Mapping[str, Any],
    recipe: Recipe,
    prints: Mapping[str, str],
    allowed: Collection[str],
) -> list[Change]:
    """The changes since a run's record, all of them allowed.

    Raises:
        ConfigError: naming each that is not, or a name in `allowed` that is no setting.
    """
    keys = dict(_flat(recipe.model_dump(mode="json"))).keys() | dict(_flat(record["recipe"])).keys()
    if unknown := sorted(set(allowed) - keys):
        raise ConfigError(f"--allow-changes {unknown[0]}: no such setting")
    found = changes(record, recipe, prints)
    refused = [change for change in found if change.key not in allowed]
    if not refused:
        return found
    names = ",".join(dict.fromkeys(change.key for change in found))
    lines = "".join(f"\n{change}" for change in refused)
    raise ConfigError(
        f"{run_dir}: its run was begun with something else; go on as it was, or name what may "
        f"change: --allow-changes {names}{lines}"
    )


def changed_versions(record: Mapping[str, Any], versions: Mapping[str, Any]) -> list[str]:
    """Packages that are not what they were, as "torch 2.12.0 -> 2.13.0"."""
    before = record.get("versions", {})
    return [
        f"{name} {before[name]} -> {versions[name]}"
        for name in sorted(before.keys() & versions.keys())
        if before[name] != versions[name]
    ]


def _is_free(key: str, recipe: Recipe, before: Mapping[str, Any]) -> bool:
    free = (*_FREE, *_UNUSED[recipe.stage])
    if not (recipe.model.lora.rank or before.get("model.lora.rank")):
        free = (*free, "model.lora.")
    if any(key == one or (one.endswith(".") and key.startswith(one)) for one in free):
        return True
    schedules = {recipe.learner.schedule, before.get("learner.schedule")}
    return key in _LENGTHS and schedules == {"constant"}


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and name != "reward.weights":
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _source_of(reward: str) -> Path | None:
    """The file that a reward of one's own is in; it has been imported by then."""
    module_name, _, _ = reward.partition(":")
    module = sys.modules.get(module_name)
    source = None if module is None else inspect.getsourcefile(module)
    return Path(source) if source is not None else None

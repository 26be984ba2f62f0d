"""Which evaluation a folder holds, so that nothing else is gone on with.

OUT_DIR/begun.json by the name of the predictor: who answers (a checkpoint by its content, a model
behind an API by its name), which clips, and every setting that can change an answer. How many
engines share the work, what memory they take and how long they are waited for may differ.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actrep_ray.config import ConfigError, Recipe, flat_settings
from data_prep.files import read_object, write_json
from data_prep.rows import Row

_FILE = "begun.json"
_FREE = (
    "name", "runs_dir", "stage",
    "model.path", "data.path", "data.allow_outside",  # their content is compared
    "data.check_videos", "data.max_train_clips", "data.max_quarantined_share", "data.answers",
    "data.wording_variety",
    "video.cache_dir", "video.shared_cache", "video.cache_gib", "video.decode_timeout_s",
    "rollout.num_workers", "rollout.max_workers", "rollout.num_cpus", "rollout.max_num_seqs",
    "rollout.max_in_flight", "rollout.gpu_memory_utilization", "rollout.kv_cache_gib",
    "rollout.max_restarts", "rollout.timeout_s",
    "sampling.", "reward.", "algorithm.", "learner.", "sft.", "train.", "eval.", "checkpoint.",
    "placement.", "run.",
)  # fmt: skip
_SECTIONS = tuple(name for name in _FREE if name.endswith("."))


def begin(
    out_dir: Path, name: str, *, answers: Mapping[str, Any], recipe: Recipe, clips: Sequence[Row]
) -> None:
    """Write down what is begun, or compare it with what was.

    Args:
        out_dir: Of the evaluation.
        name: Of the predictor.
        answers: Who answers and how, by what it is called, as JSON-able values.
        recipe: Settings.
        clips: What is asked about.

    Raises:
        ConfigError: if it was begun with something else, naming that.
    """
    path = out_dir / _FILE
    known: dict[str, Any] = read_object(path, "begun evaluations") if path.is_file() else {}
    own = {**answers, "settings": deciding_settings(recipe), "clips": _digest_of(clips)}
    own = json.loads(json.dumps(own))  # as it is read back
    if (was := known.get(name)) is not None and was != own:
        changed = ", ".join(_changes(was, own))
        raise ConfigError(
            f"{out_dir}: the evaluation in it was begun with another one of: {changed}; give "
            "--overwrite, or another --out"
        )
    write_json(path, {**known, name: own})


def deciding_settings(recipe: Recipe) -> dict[str, Any]:
    """Those settings that can change an answer, by their dotted names."""
    return {
        key: value
        for key, value in flat_settings(recipe).items()
        if key not in _FREE and not key.startswith(_SECTIONS)
    }


def _changes(was: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """What differs, settings by their names and values."""
    found = []
    for key in {**was, **own}:
        before, now = was.get(key), own.get(key)
        if before == now:
            continue
        if key == "settings" and isinstance(before, dict) and isinstance(now, dict):
            found += [
                f"{name} ({json.dumps(before.get(name))} -> {json.dumps(now.get(name))})"
                for name in {**before, **now}
                if before.get(name) != now.get(name)
            ]
        else:
            found.append(key)
    return found


def _digest_of(clips: Sequence[Row]) -> str:
    rows = (json.dumps(_values_of(clip), sort_keys=True, default=str) for clip in clips)
    return hashlib.sha256("\n".join(rows).encode(errors="surrogatepass")).hexdigest()[:16]


def _values_of(row: Row) -> dict[str, Any]:
    """What a row holds; images before it are left out where there are none, as they once were."""
    return {key: value for key, value in vars(row).items() if key != "images" or value}

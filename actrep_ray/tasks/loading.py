"""What a recipe asks about: its task, and the clips of a split."""

import hashlib
import importlib.util
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from actrep_ray.config import ConfigError, Recipe
from actrep_ray.tasks.base import Task
from actrep_ray.tasks.counting import Counting
from actrep_ray.tasks.lmms_eval import LMMS_EVAL
from actrep_ray.tasks.recognition import Recognition
from data_prep.files import DataError
from data_prep.rows import Row, read_rows
from data_prep.schema import Clip
from data_prep.video import check_videos, unreadable_videos

_log = logging.getLogger(__name__)
_TASKS: dict[str, Task] = {task.name: task for task in (Counting(), Recognition(), *LMMS_EVAL)}


def load_task(name: str) -> Task:
    """The task that a recipe's `task` names; workers are sent the name, not the task.

    Args:
        name: Of ours, or `FILE.py:CLASS`. The file is run once in each process, the class made
            without arguments; on several nodes it lies at the same path on each.

    Raises:
        ConfigError: naming the tasks that there are, or what is wrong with the file or its class.
    """
    if name in _TASKS:
        return _TASKS[name]
    path, colon, class_name = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise ConfigError(f"task={name!r}, expected one of {', '.join(_TASKS)} or FILE.py:CLASS")
    return _task_of_file(Path(path), class_name)


@lru_cache
def _task_of_file(path: Path, class_name: str) -> Task:
    where = f"task={path}:{class_name}"
    make = getattr(_module_of(path, where), class_name, None)
    if not isinstance(make, type):
        raise ConfigError(f"{where}: the file has no class {class_name!r}")
    names = [name for name in dir(Task) if not name.startswith("_")]
    try:
        task: Task = make()
        missing = [name for name in names if not hasattr(task, name)]
    except Exception as error:
        told = "cannot be made without arguments, or a property of it raises"
        raise ConfigError(f"{where}: {told} ({_told(error)})") from error
    if missing:
        raise ConfigError(f"{where}: lacks {', '.join(missing)}, expected all of the Task protocol")
    return task


def _module_of(path: Path, where: str) -> ModuleType:
    """The module of a file, as an import would leave it."""
    if not path.is_file():
        raise ConfigError(f"{where}: no such file")
    name = f"actrep_task_{hashlib.sha256(bytes(path.absolute())).hexdigest()[:16]}"
    if (known := sys.modules.get(name)) is not None:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a name that ends in .py has a loader"
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{where}: the file cannot be run ({_told(error)})") from error
    return module


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def load_clips(
    recipe: Recipe, split: str, *, limit: int | None = None, max_unreadable_share: float = 0.0
) -> list[Row]:
    """Clips of one split, checked.

    Args:
        recipe: Its `data` section says which file, and whether every video is opened first.
        split: A split of the file.
        limit: Only the first clips.
        max_unreadable_share: Share of the clips (rows; several may be of one video) whose videos
            need not open; they are told.

    Raises:
        ConfigError: if `data.path` is not set, or for an image that engines have no room for.
        DataError: for a bad row, a video that cannot be opened, a data set that no row is of, or a
            split without clips.
    """
    if not recipe.data.path:
        raise ConfigError("data.path is not set: give the JSONL file of clips")
    clips = clips_of_split(recipe, split)[:limit]
    _check_room_for_images(clips, recipe)
    if not recipe.data.check_videos:
        return clips
    if not max_unreadable_share:
        check_videos(clips)
        return clips
    problems = unreadable_videos(clips)
    num_rows = sum((clip.file, clip.images) in problems for clip in clips)
    if num_rows > most_rows(max_unreadable_share, len(clips)):
        raise DataError(
            f"{next(iter(problems.values()))}; {num_rows} of {len(clips)} rows cannot be used, "
            f"more than data.max_quarantined_share={max_unreadable_share:g} allows"
        )
    for problem in problems.values():
        _log.warning("%s: left out of the run if its frames are not cached", problem)
    return clips


def _check_room_for_images(clips: Sequence[Row], recipe: Recipe) -> None:
    """Refuse images that the recipe's engines would refuse one by one."""
    cfg = recipe.rollout
    if cfg.engine != "vllm":
        return
    for row in clips:
        num_images = len(row.images) + (row.kind == "image")
        told = f"row {row.id!r} of {recipe.data.path} shows {num_images} still image"
        if num_images and not cfg.takes_images:
            raise ConfigError(
                f"rollout.takes_images=false: {told}{'s' * (num_images > 1)}, for which "
                "rollout.engine=vllm has no room; set rollout.takes_images=true"
            )
        if num_images > cfg.max_images:
            raise ConfigError(
                f"rollout.max_images={cfg.max_images}: {told}s; set rollout.max_images={num_images}"
            )


def most_rows(share: float, num_clips: int) -> int:
    """How many unusable rows a run bears: a share of its clips, at least one unless that is 0."""
    return max(math.floor(share * num_clips + 1e-9), 1) if share > 0 else 0


def clips_of_split(recipe: Recipe, split: str) -> list[Row]:
    """Clips of one split that are of the data sets that the recipe names, as they are listed.

    Raises:
        DataError: for a bad row, a data set that no row is of, or a split without clips.
    """
    clips = [clip for clip in chosen_clips(recipe) if clip.split == split]
    if not clips:
        of_sets = f" and dataset={'|'.join(recipe.data.datasets)}" if recipe.data.datasets else ""
        raise DataError(f"{recipe.data.path}: no clip has split={split!r}{of_sets}")
    return clips


def example_question(recipe: Recipe) -> str:
    """What is asked about the first clip of train, as a model reads it.

    `{action}` stays where our counting puts what each clip repeats. Without `data.path` it is
    `data.question` as it stands.

    Raises:
        DataError: as `chosen_clips`, or if there is none of train.
    """
    if not recipe.data.path:
        return recipe.data.question
    row = next((clip for clip in chosen_clips(recipe) if clip.split == "train"), None)
    if row is None:
        raise DataError(f"{recipe.data.path}: no clip of train")
    if isinstance(row, Clip) and recipe.task in _TASKS:
        row = replace(row, action="{action}")
    return load_task(recipe.task).question(row, recipe.data)


def chosen_clips(recipe: Recipe) -> Iterator[Row]:
    """Clips of all splits that are of the data sets that the recipe names.

    Raises:
        DataError: for a bad row, or, after the last clip, for a data set that no row is of.
    """
    data, found, kinds = recipe.data, set(), load_task(recipe.task).kinds
    for clip in read_rows(data.path, allow_outside=data.allow_outside):
        found.add(clip.dataset)
        if data.datasets and clip.dataset not in data.datasets:
            continue
        if clip.kind not in kinds:
            raise DataError(
                f"{data.path}: row {clip.id!r} is of kind {clip.kind!r}, and task={recipe.task} "
                f"asks about {' or '.join(map(repr, kinds))}"
            )
        yield clip
    if missing := sorted(set(data.datasets) - found):
        raise DataError(
            f"data.datasets: {data.path} has no clip of data set {missing[0]!r}, "
            f"expected one of {', '.join(sorted(found))}"
        )

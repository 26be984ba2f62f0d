"""The second task once: SFT on drawn activities, then four shots of each in another style.

    data ─► base model ─► SFT on the base classes, style `line` ─► base-to-new, style `block`:
                          zero-shot, SFT and GRPO on four shots of each base class, then all classes

A milestone that was finished with the same settings and data is not done again.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from actrep_ray.config import load_recipe, recipes_folder
from actrep_ray.models.tiny import write_base_model
from actrep_ray.protocols.run import run_protocol
from actrep_ray.protocols.setup import Protocol
from actrep_ray.quickstart.milestones import Milestones
from actrep_ray.quickstart.run import hash_of
from actrep_ray.run.console import as_text, console
from actrep_ray.run.folder import remove_others
from actrep_ray.run.lock import FolderLock
from actrep_ray.run.provenance import file_hash
from actrep_ray.run.record import RECORD
from actrep_ray.sft import prepare_sft
from data_prep.activities.dataset import FILE, write_activities
from data_prep.activities.shots import choose_classes
from data_prep.rows import images_among, read_rows, write_rows

NUM_IMAGES = {"train": 40, "validation": 4, "test": 20}
"""Of each class, in each style."""

_DATA = Path("data/quickstart-activities")
_SFT, _SHOTS_SFT, _GRPO = (f"recognition_tiny_{name}.yaml" for name in ("sft", "shots_sft", "grpo"))


def run_activities(*, fresh: bool, overrides: Sequence[str] = ()) -> Path:
    """Run what is not there yet; returns the page of the report.

    Args:
        fresh: Start over: remove the run folder first.
        overrides: `key=value` settings on top of the recipes.

    Raises:
        ValueError: for settings that cannot be used.
    """
    own = ["runs_dir=runs/quickstart_recognition", *overrides]
    folder = Path(load_recipe(recipes_folder() / _SFT, own).runs_dir)
    with FolderLock.acquire(folder, "actrep quickstart") as lock:
        if fresh:
            remove_others(folder, lock.path)
        milestones = Milestones(folder / "milestones.json", console())
        key = _write_data(milestones)
        base = folder / "base"
        if not base.is_dir():
            with milestones.doing("model"):
                write_base_model(base)
        key = _fine_tune(folder, key, own, milestones)
        page = _learn_from_few(folder, key, overrides, milestones)
        console().print(as_text(f"This call took {milestones.total_s:.0f} s"))
        return page


def _write_data(milestones: Milestones) -> str:
    """Draw both styles, if they are not there; returns what they are."""
    key = hash_of(NUM_IMAGES)
    if not milestones.is_done("data", key) or not (_DATA / "block" / FILE).is_file():
        with milestones.doing("data", key):
            for style in ("line", "block"):
                write_activities(
                    _DATA / style, style=style, num_images=NUM_IMAGES, seed=0, overwrite=True
                )
            rows = images_among(read_rows(_DATA / "line" / FILE))
            write_rows(_DATA / "line" / "base.jsonl", choose_classes(rows, "base"))
    return hash_of(*(file_hash(_DATA / style / FILE) for style in ("line", "block")))


def _fine_tune(folder: Path, key: str, overrides: Sequence[str], milestones: Milestones) -> str:
    """SFT on the base classes of one style; returns what its checkpoint depends on."""
    paths = {"model.path": folder / "base", "data.path": _DATA / "line" / "base.jsonl"}
    given = [f"{name}={json.dumps(str(path))}" for name, path in paths.items()]
    recipe = load_recipe(recipes_folder() / _SFT, [*overrides, *given])
    key = hash_of(key, recipe.model_dump_json())
    if not milestones.is_done("sft", key):
        is_cut_short = (recipe.run_dir / RECORD).is_file() and not milestones.is_known("sft")
        with milestones.doing("sft", key):
            prepare_sft(recipe, resume=is_cut_short, overwrite=not is_cut_short).run()
    return key


def _learn_from_few(
    folder: Path, key: str, overrides: Sequence[str], milestones: Milestones
) -> Path:
    """SFT and GRPO on four shots of each base class of the other style; returns the page."""
    recipes = recipes_folder()
    protocol = Protocol(
        name="base-to-new",
        checkpoint=folder / "sft",
        recipes={"sft": recipes / _SHOTS_SFT, "grpo": recipes / _GRPO},
        data=(_DATA / "block" / FILE,),
        shots=(4,),
        seeds=(0,),
        out=folder / "base-to-new",
        overrides=tuple(overrides),
    )
    key = hash_of(key, overrides)
    is_other = milestones.is_known("few shots") and not milestones.is_done("few shots", key)
    with milestones.doing("few shots", key):
        return run_protocol(protocol, overwrite=is_other)

"""Checkpoints of a run: a folder that is complete or absent.

    RUN_DIR/checkpoints/step-000050/     an ordinary Hugging Face folder: config, weights, processor
        recipe.json                      the settings it was trained with
        ema/                             such a folder of averaged weights (learner.ema_decay)
        training/                        what a resumed run needs beside the weights
            driver.json                  step and sampler state
            ...                          the learner's own files

A checkpoint is written under another name and renamed, so a kill in mid-write leaves none. With
learners on several nodes the run folder must be on storage that they share.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from actrep_ray.config import ConfigError, Recipe, read_saved
from data_prep.files import complete_folder, read_object, write_lines
from data_prep.partial_files import remove_leftovers

_MAX_HEADER_BYTES = 100 * 2**20
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        folder: A Hugging Face model folder.
        step: Steps of the loop that were finished.
    """

    folder: Path
    step: int

    @property
    def learner_folder(self) -> Path:
        """Folder of the learner's optimiser state."""
        return self.folder / "training"

    def driver_state(self) -> dict[str, Any]:
        """What the driver saved: `step`, and what `CheckpointStore.write` was given."""
        path = self.learner_folder / "driver.json"
        return read_object(path, "the driver's state", is_strict=False)


class SavesItself(Protocol):
    """What a learner pool does for a checkpoint."""

    def save_model(self, folder: Path) -> None: ...

    def save_state(self, folder: Path) -> None: ...


class CheckpointStore:
    """The checkpoints of one run folder.

    Args:
        run_dir: The run's folder.
        keep: How many of the newest are kept.
    """

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        self.folder = run_dir / "checkpoints"
        self.keep = keep

    def newest(self) -> Checkpoint | None:
        """The checkpoint of the latest step, or None."""
        found = self._all()
        return found[-1] if found else None

    def write(
        self,
        step: int,
        recipe: Recipe,
        driver_state: dict[str, Any],
        learners: "SavesItself",
    ) -> Checkpoint:
        """Write a checkpoint; remove those beyond `keep`, and what others were cut short at.

        Only one driver writes a run's checkpoints: what it finds half-written is of a dead one,
        whichever machine that ran on.

        Args:
            step: Steps finished.
            recipe: Settings of the run; evaluation takes its video settings from them.
            driver_state: Saved as JSON beside the step.
            learners: Write the model, and the state of their optimiser.
        """
        target = self.folder / f"step-{step:06d}"
        if self.folder.is_dir():
            remove_leftovers(self.folder, are_all_dead=True)
        with complete_folder(target, replaces=True) as partial:
            training = partial / "training"
            training.mkdir()
            learners.save_model(partial)
            learners.save_state(training)
            for folder in (partial, partial / "ema"):
                if folder.is_dir():
                    write_lines(folder / "recipe.json", [recipe.model_dump_json(indent=2)])
            state = json.dumps({"step": step, **driver_state})
            write_lines(training / "driver.json", [state])
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old.folder)
        return Checkpoint(target, step)

    def _all(self) -> list[Checkpoint]:
        if not self.folder.is_dir():
            return []
        found = [
            Checkpoint(path, int(match[1]))
            for path in self.folder.iterdir()
            if (match := _NAME.fullmatch(path.name))
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.step)


def is_due(every: int, step: int, last: int) -> bool:
    """Whether what is done every so many steps and at the last one is due; 0 is never."""
    return every > 0 and (step % every == 0 or step == last)


def resolve_model(path: str | Path) -> Path:
    """The model folder meant by a path: itself, or the newest checkpoint of a run folder.

    Raises:
        ConfigError: if there is no model, or its weights are cut short.
    """
    if not str(path):
        raise ConfigError("model.path is not set: give the folder of a Hugging Face checkpoint")
    path = Path(path).absolute()
    if not path.exists():
        raise ConfigError(f"{path}: no such checkpoint, expected a model folder or a run folder")
    folder = model_folder(path)
    if folder != path:
        return folder
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path}: not a model checkpoint (no config.json in it)")
    _check_weights(path)
    return path


def model_folder(path: str | Path) -> Path:
    """The newest checkpoint of a run folder; any other path as it is."""
    path = Path(path)
    if not path.is_dir() or (path / "config.json").is_file():
        return path
    newest = CheckpointStore(path, keep=1).newest()
    return path if newest is None else newest.folder


def _check_weights(folder: Path) -> None:
    """Refuse weights that are missing, cut short or not safetensors, from their headers alone."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder}: not a model checkpoint (no *.safetensors in it)")
    for path in files:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(min(size, _MAX_HEADER_BYTES)))
            except ValueError as error:
                raise ConfigError(f"{path}: not a safetensors file") from error
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[0] != "_"]
        expected = 8 + size + max(ends, default=0)
        if path.stat().st_size != expected:
            raise ConfigError(
                f"{path}: holds {path.stat().st_size} bytes, its header says {expected}: cut short?"
            )


def recipe_of(folder: Path) -> Recipe | None:
    """The settings that a checkpoint of ours was trained with; None for other model folders.

    Raises:
        ConfigError: if they are not settings of this version.
    """
    path = folder / "recipe.json"
    return read_saved(path) if path.is_file() else None

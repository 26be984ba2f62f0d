"""Checkpoints of a run: a folder that is whole or absent, and a loader that looks before it trusts.

    RUN_DIR/checkpoints/newest.json      names the one that was completed last
                        best.json        names one that is kept whatever its age
                        step-000050/     an ordinary Hugging Face folder: config, weights, processor
        manifest.json                    every file with its length and hash (`manifest.py`)
        recipe.json                      the settings it was trained with
        ema/                             such a folder of averaged weights (learner.ema_decay)
        training/                        what a resumed run needs beside the weights
            driver.json                  step and sampler state
            ...                          the learner's own files

    begin ─► learners copy to host memory ─► they write ─► the driver completes: manifest, fsync,
             (the loop waits for this)       (the loop goes on)     rename, newest.json, prune

A kill at any time leaves what was complete before. With learners on several nodes the run folder
must be on storage that they share.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actrep_ray.config import ConfigError, Recipe
from actrep_ray.models.weights_files import check_weights
from actrep_ray.run import manifest
from actrep_ray.run.lock import check_holder
from actrep_ray.run.manifest import TRAINING, DamageError, Depth
from actrep_ray.run.record import run_id
from actrep_ray.run.saving import SaveError, SavesItself, Saving, as_save_errors
from data_prep.files import DataError, complete_folder, read_object, write_json, write_lines
from data_prep.looks import Looks
from data_prep.partial_files import partial_of, remove_leftovers

_NAME = re.compile(r"step-(\d{6,})")
_NEWEST, _BEST = "newest.json", "best.json"
_SPARE_BYTES = 8 * 2**20  # left for metrics and logs while a checkpoint is written
_log = logging.getLogger(__name__)


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
        return self.folder / TRAINING

    def driver_state(self) -> dict[str, Any]:
        """What the driver saved: `step`, and what `CheckpointStore.write` was given."""
        path = self.learner_folder / "driver.json"
        return read_object(path, "the driver's state", is_strict=False)


@dataclass(frozen=True)
class Skipped:
    """What looks like a checkpoint of a later step than the one that is used, and why it is not.

    Attributes:
        path: The folder, or file.
        reason: For example "model.safetensors holds 10 bytes of 3087468".
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: skipped, {self.reason}"


class CheckpointStore:
    """The checkpoints of one run folder.

    Args:
        run_dir: The run's folder.
        keep: How many of the newest are kept.

    Attributes:
        in_use: The one that the run goes on from, which stays while it runs: engines that are
            replaced start from its weights.
    """

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / "checkpoints"
        self.keep = keep
        self.run = run_id(run_dir)
        self.in_use: Checkpoint | None = None
        self._damaged: set[Path] = set()

    # ---------------------------------------------------------------- reading

    def newest(self, depth: Depth = "all") -> Checkpoint | None:
        """The latest checkpoint that is whole, or None; what is skipped is logged."""
        found, skipped = self.look(depth)
        for one in skipped:
            _log.warning("%s", one)
        return found

    def newest_or_none_begun(self) -> Checkpoint | None:
        """As `newest`, where None means that no checkpoint was completed yet.

        Raises:
            ConfigError: if there are some and none is whole, naming each.
        """
        found, skipped = self.look()
        if found is None and skipped:
            lines = "".join(f"\n{one}" for one in skipped)
            raise ConfigError(f"{self.folder}: no checkpoint of this run is whole:{lines}")
        for one in skipped:
            _log.warning("%s", one)
        return found

    def look(self, depth: Depth = "all") -> tuple[Checkpoint | None, list[Skipped]]:
        """The latest checkpoint that is whole, and what was skipped before it was found."""
        skipped = []
        candidates = self._named()
        pointed = self._pointed(_NEWEST)
        if pointed is not None and not pointed.folder.exists():
            candidates = sorted([*candidates, pointed], key=lambda one: one.step)
        for candidate in reversed(candidates):
            try:
                self.check(candidate, depth)
            except DamageError as error:
                self._damaged.add(candidate.folder)
                skipped.append(Skipped(candidate.folder, str(error)))
            else:
                return candidate, skipped
        return None, skipped

    def whole(self) -> list[Checkpoint]:
        """All that are whole, by step; what is not is logged."""
        found = []
        for one in self._named():
            try:
                self.check(one, "model")
            except DamageError as error:
                _log.warning("%s", Skipped(one.folder, str(error)))
            else:
                found.append(one)
        return found

    def check(self, checkpoint: Checkpoint, depth: Depth) -> None:
        """Refuse a checkpoint that is not whole or not of this run.

        Raises:
            DamageError: saying why.
        """
        folder = checkpoint.folder
        if not folder.exists():
            is_link = folder.is_symlink()
            raise DamageError(
                "it is a link to nothing"
                if is_link
                else f"it is missing, though {_NEWEST} names it"
            )
        if not folder.is_dir():
            raise DamageError("it is a file, not a folder")
        if self.run is None and not (folder / manifest.NAME).exists():
            _check_without_manifest(checkpoint)
            return
        found = manifest.read_manifest(folder)
        if self.run is not None and found.run != self.run:
            raise DamageError("it belongs to another run")
        if found.step != checkpoint.step:
            raise DamageError(f"it is of step {found.step}")
        manifest.check_files(folder, found, depth)

    # ---------------------------------------------------------------- writing

    def begin(
        self,
        step: int,
        recipe: Recipe,
        driver_state: dict[str, Any],
        learners: SavesItself,
        looks: Callable[[], Looks | None] = lambda: None,
    ) -> Saving[Checkpoint]:
        """Start to write a checkpoint; the learners may go on when this returns.

        Only one driver writes a run's checkpoints: what it finds half-written is of a dead one,
        whichever machine that ran on.

        Args:
            step: Steps finished.
            recipe: Settings of the run; evaluation takes its video settings from them.
            driver_state: Saved as JSON beside the step.
            learners: Write the model, and the state of their optimiser.
            looks: What the clips of the training look like, if that is known by then.

        Raises:
            SaveError: if there is no room, or something cannot be written.
            LockLostError: if another process has taken over the folder.
        """
        checkpoint = Checkpoint(self.folder / f"step-{step:06d}", step)
        with as_save_errors(), ExitStack() as stack:
            check_holder(self.run_dir)
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder, are_all_dead=True)
            self.make_room()
            self._set_aside(checkpoint)
            partial = stack.enter_context(complete_folder(checkpoint.folder, replaces=True))
            (partial / TRAINING).mkdir()
            num_listings = learners.begin_save(partial)
            state = json.dumps({"step": step, **driver_state})
            write_lines(partial / TRAINING / "driver.json", [state])
            held = stack.pop_all()

        def complete() -> Checkpoint:
            with as_save_errors(), held:
                check_holder(self.run_dir)
                if (found := manifest.num_listings(partial)) < num_listings:
                    raise SaveError(
                        f"{partial}: the files of {found} of {num_listings} learner ranks are in "
                        "it; runs_dir must be a folder that all nodes share"
                    )
                seen = looks()
                for folder in (partial, partial / "ema"):
                    if folder.is_dir():
                        write_lines(folder / "recipe.json", [recipe.model_dump_json(indent=2)])
                        if seen is not None:
                            seen.write(folder)
                manifest.write_manifest(partial, step, self.run)
            self._damaged.discard(checkpoint.folder)
            try:
                self._point(_NEWEST, checkpoint)
            except (OSError, DataError) as error:  # it is whole, and found all the same
                _log.warning("%s", error)
            else:
                self.prune()
            return checkpoint

        def abandon() -> None:
            with suppress(_AbandonedError), held:
                raise _AbandonedError

        return Saving(partial, num_listings, complete, abandon)

    def write(
        self, step: int, recipe: Recipe, driver_state: dict[str, Any], learners: SavesItself
    ) -> Checkpoint:
        """Write a checkpoint and wait for it; see `begin`."""
        saving = self.begin(step, recipe, driver_state, learners)
        try:
            learners.finish_save()
        except BaseException:
            saving.abandon()
            raise
        return saving.finish()

    def mark_best(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint whatever its age, until another one is marked."""
        self._point(_BEST, checkpoint)

    def best(self) -> Checkpoint | None:
        """The checkpoint that was marked, if it is still there."""
        found = self._pointed(_BEST)
        return found if found is not None and found.folder.is_dir() else None

    def make_room(self) -> None:
        """Before a checkpoint is written: remove old ones early if it would not fit beside them.

        The newest stays, and those that `prune` keeps whatever their age.

        Raises:
            SaveError: if it does not fit even so.
        """
        newest = self._own()[-1:]
        if not newest or not (newest[0].folder / manifest.NAME).is_file():
            return  # its size is not known: try
        size = manifest.read_manifest(newest[0].folder).num_bytes
        needed = size + size // 50 + _SPARE_BYTES
        if self._free_bytes() >= needed:
            return
        self.prune(keep=1)
        if (free := self._free_bytes()) < needed:
            raise SaveError(
                f"{self.folder}: {needed / 2**20:,.0f} MiB are needed, {free / 2**20:,.0f} MiB are "
                "free on its disk"
            )

    def prune(self, *, keep: int | None = None) -> None:
        """Remove what is older than the newest `keep`, but for the best and the one in use.

        Damaged ones go when a whole one is newer; what is not of this run is left alone.
        """
        own = self._own()
        kept = {one.folder for one in own[-(keep or self.keep) :]}
        kept |= {one.folder for one in (self.in_use, self.best()) if one is not None}
        newest_step = own[-1].step if own else 0
        damaged = [
            one
            for one in self._named()
            if one.folder in self._damaged and one.step < newest_step and self._is_own(one)
        ]
        for old in (*own, *damaged):
            if old.folder not in kept:
                # Away at once: one killed in mid-removal leaves no half of a checkpoint.
                with partial_of(old.folder) as aside, suppress(OSError):
                    old.folder.rename(aside)

    # ---------------------------------------------------------------- the folder

    def _named(self) -> list[Checkpoint]:
        """Whatever has the name of a checkpoint, by step."""
        if not self.folder.is_dir():
            return []
        found = [
            Checkpoint(path, int(match[1]))
            for path in self.folder.iterdir()
            if (match := _NAME.fullmatch(path.name))
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def _own(self) -> list[Checkpoint]:
        """Those of this run that are not known to be damaged, by step."""
        return [
            one for one in self._named() if one.folder not in self._damaged and self._is_own(one)
        ]

    def _is_own(self, checkpoint: Checkpoint) -> bool:
        """Whether a folder says that it is of this run and step; its files are not read."""
        try:
            self.check(checkpoint, "lengths")
            return True
        except DamageError:
            pass
        with suppress(DamageError):
            return manifest.read_manifest(checkpoint.folder).run == self.run is not None
        return False

    def _set_aside(self, checkpoint: Checkpoint) -> None:
        """Give another name to what has the name of a checkpoint and is none of this run."""
        folder = checkpoint.folder
        if not folder.exists() and not folder.is_symlink():
            return
        if folder.is_dir() and (self.run is None or self._is_own(checkpoint)):
            return
        number = 1
        while (aside := folder.with_name(f"aside-{number}-{folder.name}")).exists():
            number += 1
        folder.rename(aside)
        _log.warning("%s: not a checkpoint of this run, now called %s", folder, aside.name)

    def _point(self, name: str, checkpoint: Checkpoint) -> None:
        values = {"step": checkpoint.step, "folder": checkpoint.folder.name}
        write_json(self.folder / name, values, indent=None)

    def _pointed(self, name: str) -> Checkpoint | None:
        """The checkpoint that a pointer names; None without a pointer that can be read."""
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            named = _NAME.fullmatch(str(read_object(path, "a pointer").get("folder")))
        except DataError as error:
            _log.warning("%s", error)
            return None
        return None if named is None else Checkpoint(self.folder / named[0], int(named[1]))

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free


class _AbandonedError(Exception):
    """Ends the writing of a checkpoint."""


def adopt(checkpoint: Checkpoint, run: str) -> None:
    """Give a checkpoint of format 1 a manifest, as it is found."""
    if not (checkpoint.folder / manifest.NAME).is_file():
        manifest.write_manifest(checkpoint.folder, checkpoint.step, run)


def _check_without_manifest(checkpoint: Checkpoint) -> None:
    """Format 1: what can be told from lengths and syntax alone."""
    folder, training = checkpoint.folder, checkpoint.learner_folder
    try:
        for name in ("config.json", "recipe.json", "training/learner.json"):
            read_object(folder / name, "a file of a checkpoint", is_strict=False)
        if not (training / "learner.safetensors").is_file():
            raise DataError("training/learner.safetensors is missing")
        check_weights(folder)
        check_weights(training)
        step = checkpoint.driver_state().get("step")
    except (DataError, ConfigError, OSError) as error:
        raise DamageError(f"it has no {manifest.NAME}, and {error}") from error
    if step != checkpoint.step:
        raise DamageError(f"it is of step {step}")


def is_due(every: int, step: int, last: int) -> bool:
    """Whether what is done every so many steps and at the last one is due; 0 is never."""
    return every > 0 and (step % every == 0 or step == last)

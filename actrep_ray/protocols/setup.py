"""What a protocol runs on: its settings, its files of shots and of held-out images."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from actrep_ray.cluster.placement import is_colocated
from actrep_ray.config import ConfigError, Recipe, load_recipe
from actrep_ray.protocols.plan import Exam, Trial, exams_of, trained_classes, trials_of
from actrep_ray.run.model_folder import resolve_model
from actrep_ray.run.provenance import file_hash
from actrep_ray.run.record import model_fingerprint
from data_prep.activities.shots import choose_classes, take_shots
from data_prep.files import DataError, read_object, read_text, write_json, write_lines
from data_prep.images import LabelledImage
from data_prep.rows import images_among, read_rows, write_rows

_RECORD = "protocol.json"
_FIXED = (
    "model.", "video.", "placement.", "runs_dir", "name", "seed", "stage", "data.path",
    "data.datasets", "rollout.engine", "rollout.max_model_len", "rollout.num_",
    "rollout.takes_images", "rollout.max_images", "rollout.tensor_parallel_size",
)  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """What was asked for.

    Attributes:
        name: Of `PROTOCOLS`.
        checkpoint: What every training starts from.
        recipes: File of the recipe of each stage, "sft" and "grpo".
        data: Files of rows, each with train and test images of one data set.
        shots: Each k.
        seeds: Each seed.
        changes: `key=value` of an ablation, one at a time.
        overrides: `key=value` settings on top of both recipes.
        out: Folder of all that comes of it.
    """

    name: str
    checkpoint: Path
    recipes: Mapping[str, Path]
    data: tuple[Path, ...]
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    out: Path
    changes: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    @property
    def trials(self) -> list[Trial]:
        """All models that are asked."""
        return trials_of(self.name, list(self.rows), self.shots, self.seeds, self.changes)

    @property
    def exams(self) -> list[Exam]:
        """What they are asked about."""
        return exams_of(self.name, list(self.rows))

    @cached_property
    def model(self) -> Path:
        """Folder of the checkpoint."""
        return resolve_model(self.checkpoint)

    @cached_property
    def rows(self) -> dict[str, list[LabelledImage]]:
        """Images by data set.

        Raises:
            DataError: for rows that are no images, or of two files that name one data set.
        """
        found: dict[str, list[LabelledImage]] = {}
        for path in self.data:
            rows = images_among(read_rows(path))
            name = rows[0].dataset if rows else path.stem
            if name in found:
                raise DataError(f"{path}: data set {name!r} is in another file of --data as well")
            found[name] = rows
        return found

    def shots_of(self, trial: Trial) -> list[LabelledImage]:
        """What a trial trains on."""
        rows = choose_classes(self.rows[trial.source], trained_classes(self.name))
        shots = take_shots(rows, trial.shots, seed=trial.seed, has_splits=True)
        return [row for row in shots if row.split != "test"]

    def images_of(self, exam: Exam) -> list[LabelledImage]:
        """What an exam asks about."""
        rows = choose_classes(self.rows[exam.source], exam.classes)
        return [row for row in rows if row.split == "test"]

    def recipe_of(self, trial: Trial) -> Recipe:
        """The settings that a trial trains with; without a training, those of GRPO."""
        path = self.out / "data" / f"{_shots_name(trial)}.jsonl"
        return self._recipe(trial, path)

    def recipe_to_ask(self, trial: Trial, exam: Exam) -> Recipe:
        """The settings that a trial is asked with."""
        return self._recipe(trial, self.out / "data" / f"exam.{exam.name}.jsonl")

    def _recipe(self, trial: Trial, data: Path) -> Recipe:
        stage = "sft" if trial.method == "sft" else "grpo"
        settings: dict[str, Any] = {
            "model.path": str(self.model),
            "data.path": str(data),
            "data.datasets": [],
            "data.allow_outside": self._folders,
            "runs_dir": str(self.out / "trials"),
            "name": trial.name,
            "seed": trial.seed,
            "train.on_untrained": "log",  # on few shots all answers may be right for a while
        }
        own = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        changed = [trial.change] if trial.change else []
        kept = self._kept_recipe(stage)  # of when it began: the file may be edited meanwhile
        path = kept if kept.is_file() else self.recipes[stage]
        return load_recipe(path, [*self.overrides, *changed, *own])

    def _kept_recipe(self, stage: str) -> Path:
        return self.out / "recipes" / f"{stage}.yaml"

    @cached_property
    def _folders(self) -> list[str]:
        return sorted({str(Path(row.image).parent) for rows in self.rows.values() for row in rows})

    def predictions(self, trial: Trial, exam: Exam) -> Path:
        """Where answers lie."""
        return self.out / "predictions" / f"{trial.name}.on.{exam.name}.jsonl"

    def certainties(self, trial: Trial, exam: Exam) -> Path:
        """Where it lies how sure they are."""
        return self.predictions(trial, exam).with_suffix(".certainty.json")

    def is_done(self, trial: Trial, exam: Exam) -> bool:
        """Whether a trial answered an exam."""
        needed = [self.predictions(trial, exam)]
        if self.name == "open-set":
            needed.append(self.certainties(trial, exam))
        return all(path.is_file() for path in needed)

    def begin(self) -> None:
        """Check what can be checked and write the files of data, or find them as they are.

        Raises:
            ConfigError: for settings that no protocol, or not this one, can be run with.
            DataError: for rows that do not suffice, or a folder that holds another protocol.
        """
        self._check()
        record = self._record()
        if (path := self.out / _RECORD).is_file():
            known = read_object(path, "the record of a protocol")
            if changed := sorted(key for key in record if known.get(key) != record[key]):
                raise DataError(
                    f"{self.out}: holds a protocol with another {', '.join(changed)}; give another "
                    "--out, or --overwrite"
                )
        for trial in self.trials:
            if trial.shots:
                write_rows(Path(self.recipe_of(trial).data.path), self.shots_of(trial))
        for exam in self.exams:
            write_rows(self.out / "data" / f"exam.{exam.name}.jsonl", self.images_of(exam))
        for stage, recipe in self.recipes.items():
            write_lines(self._kept_recipe(stage), read_text(recipe, "a recipe").splitlines())
        write_json(path, record)

    def _check(self) -> None:
        for change in self.changes:
            if change.startswith(_FIXED):
                raise ConfigError(f"--vary {change}: cannot vary between trials of one engine")
        if (self.name == "ablation") != bool(self.changes):
            raise ConfigError("--vary KEY=VALUE belongs to --protocol ablation, which needs it")
        if (self.name == "cross-dataset") != (len(self.data) > 1):
            raise ConfigError("--data: several files belong to --protocol cross-dataset")
        names = [trial.name for trial in self.trials]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"--vary: two changes would be called {twice[0]}: leave one out")
        for trial in self.trials:
            recipe = self.recipe_of(trial)
            if is_colocated(recipe):
                raise ConfigError("placement.mode=colocated: a protocol needs room for both pools")
            if self.name == "open-set" and recipe.data.candidates != "open":
                raise ConfigError(
                    f"data.candidates={recipe.data.candidates}: of a list of classes that lacks "
                    "the right one nothing is asked; set data.candidates=open"
                )

    def _record(self) -> dict[str, Any]:
        """What results depend on."""
        asked = {key: value for key, value in asdict(self).items() if key not in ("out", "data")}
        shown = {
            **asked,
            "recipes": {stage: file_hash(path) for stage, path in self.recipes.items()},
            "checkpoint": str(self.model),
            "weights": model_fingerprint(self.model),
            "data": [file_hash(path) for path in self.data],
        }
        shown_json: dict[str, Any] = json.loads(json.dumps(shown))
        return shown_json


def _shots_name(trial: Trial) -> str:
    return f"shots.{trial.source}.{trial.shots}.seed-{trial.seed}"

"""Trackers: where the numbers of a run's steps go beside `metrics.jsonl`, each in a local store.

    tensorboard   RUN_DIR/tb, written by `metrics.py`: texts and distributions as well
    wandb         RUNS/trackers/wandb/offline-run-*, sent by `wandb sync` if anybody wants it
    mlflow        RUNS/trackers/mlflow.db
    trackio       RUNS/trackers/trackio

RUNS is the folder of run folders, so that runs are compared. Nothing is sent anywhere.

A tracker holds what `metrics.jsonl` holds. When a run goes on, what it left in a store is taken out
and written anew from that file, in which there is nothing after the checkpoint: clients buffer, and
none can take back the steps that an attempt took after it. No step is doubled, none is missing.
"""

import importlib.util
import io
import os
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actrep_ray.config import ConfigError
from actrep_ray.run.record import read_record

TENSORBOARD = "tensorboard"
PROJECT = "actrep"
"""What all runs are filed under."""

Row = Mapping[str, float]

_PACKAGES = {
    TENSORBOARD: ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "trackio": ("trackio",),
}
_NO_NAME = re.compile(r"[^\w\-. :/]", re.ASCII)  # of what MLflow takes in a name
_REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID")


class TrackerError(ConfigError):
    """A tracker that cannot be opened, or takes no numbers; a run that has begun goes on."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose packages are not installed; takes no time.

    Raises:
        ConfigError: naming the first, and what is missing.
    """
    for name in names:
        for package in _PACKAGES[name]:
            if not _is_installed(package):
                raise ConfigError(
                    f"run.trackers={name}: the package {package} is not installed here; install "
                    f"the extra `{name}`, or leave {name} out of run.trackers"
                )


def _is_installed(package: str) -> bool:
    """Whether it can be imported; a folder of that name (as wandb makes one) is no package."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it.

    Attributes:
        id: Of the run, the same when it goes on.
        name: Of its folder.
        stores: Where trackers keep what they are told.
        settings: Of the recipe, as JSON values.
    """

    id: str
    name: str
    stores: Path
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, run_dir: Path) -> "TrackedRun":
        """The run of a folder, by its record."""
        record = read_record(run_dir)
        folder = run_dir.absolute()
        return cls(record["run"], folder.name, folder.parent / "trackers", record["recipe"])


class Tracker(ABC):
    """Takes the numbers of one run."""

    @abstractmethod
    def log(self, step: int, values: Row) -> None:
        """Take the numbers of a step, all finite; steps rise.

        Raises:
            TrackerError: if they are not taken.
        """

    @abstractmethod
    def close(self) -> None:
        """Write what is buffered, and end."""


def open_trackers(
    names: Sequence[str], run_dir: Path, rows: Sequence[tuple[int, Row]]
) -> list[Tracker]:
    """Trackers that hold the steps so far, and no other of this run.

    Args:
        names: Of `run.trackers`; TensorBoard is left out.
        run_dir: Folder of the run, with its record.
        rows: Step and finite numbers of each step so far.

    Raises:
        TrackerError: if one cannot be opened.
    """
    kinds = [_KINDS[name] for name in dict.fromkeys(names) if name != TENSORBOARD]
    if not kinds:
        return []
    run = TrackedRun.of(run_dir)
    run.stores.mkdir(parents=True, exist_ok=True)
    trackers = [kind(run) for kind in kinds]
    for tracker in trackers:
        for step, values in rows:
            tracker.log(step, values)
    return trackers


class Wandb(Tracker):
    """Weights & Biases, offline: a folder for each time that the run was begun or gone on with."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        for before in run.stores.glob(f"wandb/offline-run-*-{run.id}"):
            shutil.rmtree(before)
        self._client, self._errors = wandb, (wandb.Error, OSError)
        with _telling("wandb", self._errors):
            self._run = wandb.init(
                dir=str(run.stores),
                mode="offline",
                project=PROJECT,
                id=run.id,
                name=run.name,
                config=dict(run.settings),
                reinit="create_new",
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    save_code=False,
                    disable_git=True,
                    x_disable_stats=True,
                    x_disable_meta=True,
                ),
            )

    def log(self, step: int, values: Row) -> None:
        """As `Tracker.log`."""
        with _telling("wandb", self._errors):
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        """As `Tracker.close`; its service would else write on for a while."""
        with _telling("wandb", self._errors):
            self._run.finish()
            self._client.teardown()


class Mlflow(Tracker):
    """MLflow in a SQLite file; a run that goes on is one anew, and the one before is deleted."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._metric, self._errors = Metric, (MlflowException, OSError)
        with _telling("mlflow", self._errors):
            self._client = MlflowClient(f"sqlite:///{run.stores / 'mlflow.db'}")
            known = self._client.get_experiment_by_name(PROJECT)
            experiment = (
                known.experiment_id
                if known
                else self._client.create_experiment(PROJECT, str(run.stores / "mlflow"))
            )
            same = f"tags.`actrep.run` = '{run.id}'"
            for before in self._client.search_runs([experiment], same):
                self._client.delete_run(before.info.run_id)
            made = self._client.create_run(
                experiment, tags={"actrep.run": run.id}, run_name=run.name
            )
            self._run_id = made.info.run_id

    def log(self, step: int, values: Row) -> None:
        """As `Tracker.log`; a character of a name that MLflow does not take becomes `_`."""
        now = time.time_ns() // 1_000_000
        found = [
            self._metric(_NO_NAME.sub("_", key), value, now, step) for key, value in values.items()
        ]
        with _telling("mlflow", self._errors):
            self._client.log_batch(self._run_id, metrics=found)

    def close(self) -> None:
        """As `Tracker.close`."""
        with _telling("mlflow", self._errors):
            self._client.set_terminated(self._run_id)


class Trackio(Tracker):
    """Trackio; its client has one store in a process."""

    def __init__(self, run: TrackedRun) -> None:
        store, name = run.stores / "trackio", f"{run.name}-{run.id[:8]}"
        os.environ["TRACKIO_DIR"] = str(store)
        for remote in _REMOTE:  # which would send what is logged
            os.environ.pop(remote, None)
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        if Path(trackio.TRACKIO_DIR) != store:
            raise TrackerError(
                f"trackio keeps {trackio.TRACKIO_DIR} in this process and cannot keep {store} too"
            )
        self._client = trackio
        SQLiteStorage.delete_run(PROJECT, name)
        with redirect_stdout(io.StringIO()):
            trackio.init(
                PROJECT,
                name,
                config=dict(run.settings),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, values: Row) -> None:
        """As `Tracker.log`."""
        with _telling("trackio", (RuntimeError, OSError)):
            self._client.log(dict(values), step=step)

    def close(self) -> None:
        """As `Tracker.close`."""
        with redirect_stdout(io.StringIO()), _telling("trackio", (RuntimeError, OSError)):
            self._client.finish()


_KINDS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}


@contextmanager
def _telling(name: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Say which tracker it is that does not work."""
    try:
        yield
    except errors as error:
        raise TrackerError(f"{name}: {error}") from error

"""Trackers hold what metrics.jsonl holds, read back from their stores; of a resumed run too."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from actrep_ray.cli.main import main
from actrep_ray.config import ConfigError, Recipe, load_recipe, write_resolved
from actrep_ray.run import trackers
from actrep_ray.run.metrics import MetricLogger, read_metrics
from actrep_ray.run.trackers import PROJECT, TrackerError, check_trackers
from data_prep.files import write_lines

Curves = dict[str, list[tuple[int, float]]]


def id_of(run: Path) -> str:
    """The id of a run, as its record has one."""
    return blake2b(run.name.encode(), digest_size=16).hexdigest()


def curves_of(path: Path) -> Curves:
    """What the file holds: (step, value) by name."""
    found: Curves = {}
    for row in read_metrics(path):
        for key, value in row.items():
            if key not in ("step", "time_s", "not_finite") and value is not None:
                found.setdefault(key, []).append((row["step"], value))
    return found


def tensorboard_curves(run: Path) -> Curves:
    board = EventAccumulator(str(run / "tb"))
    board.Reload()
    return {
        key: [(event.step, event.value) for event in board.Scalars(key)]
        for key in board.Tags()["scalars"]
    }


def wandb_curves(run: Path) -> Curves:
    """Of the one offline run: records of protobuf in a log of LevelDB's form."""
    from wandb.proto import wandb_internal_pb2

    [path] = run.parent.glob(f"trackers/wandb/offline-run-*-{id_of(run)}/run-*.wandb")
    found: Curves = {}
    for content in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        for item in record.history.item:
            key = item.key or item.nested_key[0]
            if not key.startswith("_"):  # of wandb itself
                point = (record.history.step.num, json.loads(item.value_json))
                found.setdefault(key, []).append(point)
    return found


def leveldb_records(content: bytes, head: int = 7, block: int = 1 << 15) -> list[bytes]:
    """Whole records: each part has a checksum, a length and a type, and lies in one block."""
    found, part, at = [], b"", head
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        part = (b"" if kind in (1, 2) else part) + content[at + 7 : at + 7 + length]
        if kind in (1, 4):
            found.append(part)
        at += 7 + length
    return found


def mlflow_curves(run: Path) -> Curves:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run.parent.absolute() / 'trackers' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(PROJECT)
    same = f"attributes.run_name = '{run.name}'"
    [found] = client.search_runs([experiment.experiment_id], same)
    return {
        key: [(one.step, one.value) for one in client.get_metric_history(found.info.run_id, key)]
        for key in found.data.metrics
    }


def trackio_curves(run: Path) -> Curves:
    from trackio.sqlite_storage import SQLiteStorage

    [name] = [one for one in SQLiteStorage.get_runs(PROJECT) if one.startswith(run.name)]
    found: Curves = {}
    for row in SQLiteStorage.get_logs(PROJECT, name):
        for key, value in row.items():
            if key not in ("step", "timestamp"):
                found.setdefault(key, []).append((row["step"], value))
    return found


READERS: dict[str, Callable[[Path], Curves]] = {
    "tensorboard": tensorboard_curves,
    "wandb": wandb_curves,
    "mlflow": mlflow_curves,
    "trackio": trackio_curves,
}


def begin(run: Path) -> Path:
    """A run with its record."""
    write_resolved(Recipe(), run / "config.resolved.json", {"run": id_of(run)})
    return run


def log_steps(logger: MetricLogger, steps: range, scale: float) -> None:
    for step in steps:
        with logger.timer("rollout"):
            pass
        values = {"reward/mean": step / scale, "dropped/groups": step, "time/step_s": 0.1 * step}
        if step % 2:
            values["eval/obo"] = 1 / 3
        if step == 2:
            values["learner/grad_norm"] = math.inf
        logger.log(step, values, {"data/41 or more": 7} if step == 0 else None)


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def runs(all_runs: Path, name: str) -> Path:
    """The folder of a tracker's runs: one, since trackio has one store in a process."""
    return all_runs / name


@pytest.fixture(params=READERS)
def name(request: pytest.FixtureRequest) -> str:
    """A tracker that is installed."""
    found: str = request.param
    if not all(map(trackers._is_installed, trackers._PACKAGES[found])):
        pytest.skip(f"the extra `{found}` is not installed")
    return found


@pytest.mark.lengthy
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's and wandb's own
def test_curves_are_those_of_the_file_and_a_resumed_run_doubles_no_step(
    name: str, runs: Path
) -> None:
    run = begin(runs / "grpo")
    with MetricLogger(run, purge_after_step=-1, trackers=[name]) as logger:
        log_steps(logger, range(6), 10)
    check_curves(name, run)
    go_on(name, run)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_that_was_killed_goes_on(name: str, runs: Path) -> None:
    """Whatever a client had not written, and whatever it holds open."""
    run = begin(runs / "killed")
    command = [sys.executable, __file__, name, str(run)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == list(range(6))
    go_on(name, run)


def go_on(name: str, run: Path) -> None:
    """From the checkpoint of step 3, by other numbers."""
    if name == "tensorboard":
        time.sleep(1.0)  # it orders its files by the second of their names
    with MetricLogger(run, purge_after_step=3, trackers=[name]) as logger:
        log_steps(logger, range(4, 8), 7)
    found = check_curves(name, run)
    assert [step for step, _ in found["reward/mean"]] == list(range(8))
    assert found["reward/mean"][3][1] == pytest.approx(0.3)
    assert found["reward/mean"][5][1] == pytest.approx(5 / 7)


def check_curves(name: str, run: Path) -> Curves:
    found, expected = READERS[name](run), curves_of(run / "metrics.jsonl")
    assert "learner/grad_norm" not in expected  # it was not finite
    if name == "tensorboard":  # float32, without facts
        del expected["data/41 or more"]
        assert found.keys() == expected.keys()
        for key, curve in expected.items():
            assert [step for step, _ in found[key]] == [step for step, _ in curve]
            assert [value for _, value in found[key]] == pytest.approx([v for _, v in curve])
    else:
        assert found == expected
    return found


def test_only_named_trackers_are_written(tmp_path: Path) -> None:
    with MetricLogger(tmp_path / "none", trackers=[]) as logger:
        logger.log(1, {"reward/mean": 0.5})
        logger.text(1, "rollout/0", "x")
        logger.histogram(1, "sampling/count", [1, 2])
    assert sorted(path.name for path in (tmp_path / "none").iterdir()) == [
        "metrics.jsonl",
        "texts.jsonl",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none"]
    assert load_recipe(None).run.trackers == ("tensorboard",)


class Full(trackers.Tracker):
    """A tracker that takes the first step and no more."""

    def __init__(self, run: trackers.TrackedRun) -> None:
        self.steps: list[int] = []

    def log(self, step: int, values: Any) -> None:
        if self.steps:
            raise TrackerError("full: no room")
        self.steps.append(step)

    def close(self) -> None:
        raise TrackerError("full: no room")


def test_a_tracker_that_takes_no_numbers_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(trackers._KINDS, "full", Full)
    begin(tmp_path / "run")
    with MetricLogger(tmp_path / "run", trackers=["tensorboard", "full"]) as logger:
        log_steps(logger, range(3), 10)
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2]
    assert [len(curve) for curve in [tensorboard_curves(tmp_path / "run")["reward/mean"]]] == [3]
    assert caplog.text.count("metrics cannot be written: full: no room") == 1  # told once


def test_a_tracker_that_is_not_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(trackers._PACKAGES, "mlflow", ("no_such_package",))
    monkeypatch.setitem(trackers._PACKAGES, "trackio", ("folder_of_that_name",))
    (tmp_path / "folder_of_that_name").mkdir()  # as a client makes one where it is started
    monkeypatch.syspath_prepend(tmp_path)
    check_trackers(["tensorboard"])
    with pytest.raises(ConfigError, match="trackio: the package folder_of_that_name is not"):
        check_trackers(["tensorboard", "trackio"])
    recipe = tmp_path / "recipe.yaml"
    for stage, command in (("sft", "sft"), ("grpo", "train")):
        write_lines(recipe, [f"stage: {stage}", f"runs_dir: {tmp_path / 'runs'}"])
        assert main([command, str(recipe), "--set", "run.trackers=[tensorboard,mlflow]"]) == 2
        told = capsys.readouterr().err
        assert told == (
            "actrep: error: run.trackers=mlflow: the package no_such_package is not installed "
            "here; install the extra `mlflow`, or leave mlflow out of run.trackers\n"
        )
    assert not (tmp_path / "runs").exists()
    assert main(["train", str(recipe), "--set", "run.trackers=[tensorbord]"]) == 2
    assert "run.trackers" in capsys.readouterr().err


if __name__ == "__main__":
    killed = MetricLogger(sys.argv[2], purge_after_step=-1, trackers=[sys.argv[1]])
    log_steps(killed, range(6), 10)
    os.kill(os.getpid(), signal.SIGKILL)

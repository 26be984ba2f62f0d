"""`actrep train` as a process: it is killed, goes on, and is interrupted; nothing stays behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.run.checkpoint import CheckpointStore
from actrep_ray.run.metrics import read_metrics
from actrep_ray.run.program import program
from data_prep.synthetic.dataset import write_dataset

START_S = 300.0  # a start of all workers takes 20-60 s
END_S = 240.0  # Ray's workers notice a killed driver late on a busy machine

RECIPE = """
stage: grpo
name: killed
runs_dir: {folder}
model: {{path: {folder}/model, dtype: float32}}
data: {{path: {folder}/data/clips.jsonl}}
video: {{max_pixels: 1024, cache_dir: {folder}/frames}}
rollout: {{engine: hf, max_model_len: 512, max_response_tokens: 8}}
reward: {{weights: {{format: 1.0}}}}
train: {{num_steps: 1000, prompts_per_step: 2, group_size: 2, on_untrained: log}}
checkpoint: {{every: 1}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    sizes = {"train": 6, "test": 2}
    write_dataset(folder / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    write_tiny_model(folder / "model")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder))
    return path


@dataclass
class Run:
    """A started command whose processes can all be told by a mark in their environment."""

    process: subprocess.Popen[str]
    mark: str

    def wait_for(self, what: str, is_there: Callable[[], bool], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not is_there():
            assert self.process.poll() is None, f"ended before {what}: {self.output()}"
            assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
            time.sleep(0.05)

    def left_behind(self) -> list[int]:
        """Processes of this run that are still there."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # gone, or of another user
                if self.mark.encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def assert_ends(self) -> None:
        deadline = time.monotonic() + END_S
        while left := self.left_behind():
            assert time.monotonic() < deadline, f"still there after {END_S} s: {left}"
            time.sleep(0.05)

    def output(self) -> str:
        return self.process.communicate(timeout=END_S)[0]


@contextlib.contextmanager
def train(recipe: Path, *arguments: str) -> Iterator[Run]:
    mark = f"ACTREP_TEST_MARK={uuid.uuid4()}"
    name, value = mark.split("=")
    # A shell lets its background jobs ignore ctrl-C, and their children inherit that.
    heeding = ["env", "--default-signal=INT"]
    command = [*heeding, sys.executable, "-m", "actrep_ray", "train", str(recipe), *arguments]
    with subprocess.Popen(
        command,
        env=os.environ | {name: value},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        run = Run(process, mark)
        try:
            yield run
        finally:
            for pid in run.left_behind():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def steps_in(recipe: Path) -> list[int]:
    path = recipe.parent / "killed" / "metrics.jsonl"
    return [row["step"] for row in read_metrics(path)] if path.is_file() else []


def test_a_killed_run_goes_on_and_an_interrupted_one_leaves_nothing(recipe: Path) -> None:
    store = CheckpointStore(recipe.parent / "killed", keep=2)
    with train(recipe) as run:
        run.wait_for("two checkpoints", lambda: len(steps_in(recipe)) >= 3, START_S)
        run.process.kill()
        run.assert_ends()
        killed_pid = run.process.pid
    killed_at = store.newest()
    assert killed_at is not None

    end = killed_at.step + 2
    with train(recipe, "--resume", "--set", f"train.num_steps={end}") as run:
        assert run.process.wait(timeout=START_S) == 0, run.output()
        run.assert_ends()
        told = run.output()
        assert f"goes on from step {killed_at.step}: " in told
        assert f"taken over from actrep train, process {killed_pid} on " in told
    assert steps_in(recipe) == list(range(end + 1))
    newest = store.newest()
    assert newest is not None
    assert newest.step == end
    assert newest.driver_state()["sampler"]["num_drawn"] == 2 * end
    state = json.loads((newest.learner_folder / "learner.json").read_text())
    assert state["num_optimizer_steps"] <= end

    with train(recipe, "--resume") as run:
        run.wait_for("a further step", lambda: max(steps_in(recipe)) > end, START_S)
        os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
        assert run.process.wait(timeout=END_S) == 130
        run.assert_ends()
        told = run.output().splitlines()[-1]
        assert told.startswith("actrep: stopped by ctrl-C; step ")
        actrep = program("actrep")
        assert told.endswith(f"is saved; go on with: {actrep} train {recipe} --resume")

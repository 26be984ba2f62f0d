"""Runs that are killed and go on end as if nothing had happened: weights, prompts and tokens.

The first test has workers in threads, of a process that kills itself; the slow ones have all of
Ray's processes, vLLM, and are killed in the midst of each phase.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from actrep_ray.config import Recipe, load_recipe
from actrep_ray.driver.job import GrpoJob, prepare_grpo
from actrep_ray.driver.phases import prompt_name
from actrep_ray.driver.strata import make_sampler
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.tiny import base_model_folder
from actrep_ray.records import LearnerRow
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.run.checkpoint import CheckpointStore
from actrep_ray.run.faults import read_faults
from actrep_ray.run.metrics import read_metrics
from actrep_ray.tasks.loading import load_clips
from actrep_ray.weights.sync import WeightSync
from data_prep.synthetic.dataset import write_dataset
from tests.ray_local.conftest import free_port
from tests.ray_local.test_asynchronous import Colleagues, OneRank, RealHandle, Threads

NUM_STEPS = 6
LIMIT_S = 600.0
SCRIPT = Path(__file__).with_name("noted_run.py")
OWN_REWARDS = Path(__file__).parents[1] / "own_rewards"

LEARNS = """
algorithm: {{kl_coef: 0.05, kl_target: 0.01, rollout_correction: token_truncate}}
learner: {{lr: 1.0e-4, schedule: cosine, warmup_steps: 2, ema_decay: 0.9}}
"""  # as much as there is to remember

RECIPE = """
stage: grpo
name: run
runs_dir: {folder}
device: cpu
model: {{path: {model}, dtype: float32}}
data: {{path: {folder}/data/clips.jsonl, check_videos: false}}
video: {{max_pixels: 1024, cache_dir: {folder}/frames}}
rollout: {{max_model_len: 512, max_response_tokens: 48, max_num_seqs: 64, kv_cache_gib: 0.25}}
reward: {{weights: {{"letters:letters": 1.0}}}}
train: {{num_steps: {steps}, prompts_per_step: 6, group_size: 4, mini_batch_size: 12,
        max_refill_factor: 1.0, max_log_prob_gap: 0.1}}
checkpoint: {{every: 2}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_dataset(folder / "data", level="easy", num_clips={"train": 12}, seed=0, num_processes=1)
    recipe = (RECIPE + LEARNS).format(folder=folder, model=base_model_folder(), steps=NUM_STEPS)
    (folder / "recipe.yaml").write_text(recipe)
    return folder


class Learner(OneRank):
    """The learner of a job, in a thread; it ends this process when it is to learn at `kill_at`."""

    def __init__(self, job: GrpoJob, kill_at: int | None) -> None:
        Colleagues.__init__(self)
        self.kill_at = kill_at
        self.thread = ThreadPoolExecutor(1)
        steps = job.recipe.train.num_steps
        self.worker = LearnerWorker(job.recipe, str(job.model), 0, 1, steps, str(job.base))
        self.call(self.worker.setup, "127.0.0.1", free_port())

    def update(self, rows: Sequence[LearnerRow], step: int) -> dict[str, float]:
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update(rows, step)

    def load_state(self, folder: Path) -> None:
        self.call(self.worker.load_state, folder)


def train_in_threads(recipe: Path, name: str, kill_at: int | None, resumed_at: int = 0) -> Path:
    """Three steps with one real engine and one real learner; returns the run's folder."""
    settings = [
        f"name={name}",
        "rollout.engine=hf",
        "reward.weights={format: 1}",  # what is learned from is `Colleagues.score`
        "train.num_steps=3",
        "train.prompts_per_step=3",
        "checkpoint.in_background=false",
    ]
    job = prepare_grpo(load_recipe(recipe, settings), resume=resumed_at > 0)
    assert (job.start.step if job.start else 0) == resumed_at
    learner = Learner(job, kill_at)
    started = job.recipe.model_copy(
        update={"model": job.recipe.model.model_copy(update={"path": str(job.model)})}
    )
    pool = RolloutPool(job.recipe, lambda _: RealHandle(started))
    pool.add_workers()
    pool.wait_ready()
    try:
        job.run(Threads(pool, learner, learner, WeightSync(learner, pool)))  # type: ignore[arg-type]
    finally:
        learner.shutdown()
    return job.recipe.run_dir


def test_a_killed_process_goes_on_as_if_it_had_not_been(folder: Path) -> None:
    recipe = folder / "recipe.yaml"
    line = f"from {__name__} import *; train_in_threads(Path({str(recipe)!r}), 'cut', 3)"
    cut = subprocess.run(
        [sys.executable, "-c", line], cwd=Path(__file__).parents[2], check=False, timeout=LIMIT_S
    )
    assert cut.returncode == -signal.SIGKILL
    end = state_of(train_in_threads(recipe, "cut", None, resumed_at=2), 3)
    whole = state_of(train_in_threads(recipe, "whole", None), 3)
    assert differences(end, whole) == []


def state_of(run_dir: Path, step: int) -> dict[str, Any]:
    """The bytes of all tensors of the last checkpoint by file and name, and the driver's state."""
    newest = CheckpointStore(run_dir, keep=2).newest()
    assert newest is not None
    assert newest.step == step
    files = sorted(newest.folder.rglob("*.safetensors"))
    assert len(files) >= 3  # weights, their average, the optimiser
    state: dict[str, Any] = {"driver": newest.driver_state()}
    for path in files:
        name = str(path.relative_to(newest.folder))
        state |= {f"{name}:{key}": t.numpy().tobytes() for key, t in load_file(path).items()}
    return state


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Names of what two runs left behind otherwise."""
    assert one.keys() == two.keys()
    return [name for name in one if one[name] != two[name]]


class Run:
    """A run of its own name, of which processes are started."""

    def __init__(self, folder: Path, name: str, *settings: str) -> None:
        self.folder, self.notes = folder / name, folder / f"{name}.jsonl"
        arguments = ["train", str(folder / "recipe.yaml")]
        for setting in (f"name={name}", *settings):
            arguments += ["--set", setting]
        self.arguments = arguments

    def process(self, kill: str = "nobody", *more: str) -> tuple[int, str]:
        """Exit code and output of one process of the run."""
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(self.notes), kill, *self.arguments, *more],
            env=os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{OWN_REWARDS}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        return done.returncode, done.stdout

    def finish(self, *more: str) -> str:
        code, output = self.process("nobody", *more)
        assert code == 0, output
        return output

    def trained(self) -> list[dict[str, Any]]:
        """What the learner was given, call by call."""
        return [json.loads(line) for line in self.notes.read_text().splitlines()]

    def state(self) -> dict[str, Any]:
        """What the last step left; see `state_of`."""
        return state_of(self.folder, NUM_STEPS)


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Run:
    run = Run(folder, "undisturbed")
    run.finish()
    steps = run.trained()
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert all(step["rows"] for step in steps)
    return run


def by_step(run: Run) -> dict[int, list[Any]]:
    """Rows by step; a step that was done twice must have had the same both times."""
    found: dict[int, list[Any]] = {}
    for call in run.trained():
        assert found.setdefault(call["step"], call["rows"]) == call["rows"], call["step"]
    return found


MOMENTS = ("1:generate", "2:update", "3:score", "4:save", "5:push", "6:update")


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_killed_at_every_step_it_ends_as_if_it_had_not_been(folder: Path, undisturbed: Run) -> None:
    """One run whose every process is killed at a later step, but for the last."""
    run = Run(folder, "killed")
    for number, moment in enumerate(MOMENTS):
        code, output = run.process(f"driver@{moment}", *(["--resume"] if number else []))
        assert code == -signal.SIGKILL, output
    assert "goes on from step 4" in run.finish("--resume")
    assert by_step(run) == by_step(undisturbed)
    assert len(run.trained()) > NUM_STEPS + 3  # some steps were done again
    assert differences(run.state(), undisturbed.state()) == []


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_a_killed_engine_changes_no_token(folder: Path, undisturbed: Run) -> None:
    """Without rollout correction nothing else of the engine reaches the weights: bitwise equal."""
    off = "algorithm.rollout_correction=off"
    alone, killed = Run(folder, "alone", off), Run(folder, "killed-engine", off)
    alone.finish()
    code, output = killed.process("engine@3:generate")
    assert code == 0, output
    first, second = by_step(alone), by_step(killed)
    assert any(row["attempt"] for row in second[3]), "the engine was not at work when it was killed"
    for rows in (*first.values(), *second.values()):
        for row in rows:
            del row["attempt"], row["log_probs"]
    assert first == second
    assert differences(killed.state(), alone.state()) == []


def prompts_of(run: Run) -> Counter[str]:
    """Ids of what the final weights were trained on: of each step, as it was done last."""
    last = {call["step"]: call["rows"] for call in run.trained()}
    assert sorted(last) == list(range(1, NUM_STEPS + 1))
    return Counter(row["id"] for rows in last.values() for row in rows)


def prompts_drawn(recipe: Recipe) -> Counter[str]:
    """Ids of what a run asks, drawn by its sampler alone."""
    sampler = make_sampler(load_clips(recipe, "train"), recipe)
    return Counter(
        f"{prompt_name(step, i)}-{drawn.clip.id}"
        for step in range(1, NUM_STEPS + 1)
        for i, drawn in enumerate(sampler.take(recipe.train.prompts_per_step))
    )


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_with_more_workers_and_staleness_the_same_prompts_are_trained(folder: Path) -> None:
    """The driver is killed, and in its continuation an engine: no prompt is lost or done twice.

    Who answers beside whom depends on time, and with it the last bits of the weights and now and
    then a token: a group may be flat in one of the runs alone, and is dropped there.
    """
    two = [f"{role}.num_workers=2" for role in ("rollout", "reward", "learner")]
    more = ("train.max_staleness=1", "train.mini_batch_size=24", "train.max_refill_factor=0")
    whole, cut = Run(folder, "whole-of-more", *two, *more), Run(folder, "cut-of-more", *two, *more)
    whole.finish()
    code, output = cut.process("driver@3:update")
    assert code == -signal.SIGKILL, output
    code, output = cut.process("engine@5:update", "--resume")
    assert code == 0, output
    assert read_faults(folder / "cut-of-more").lost["rollout"] == 1
    assert len(cut.trained()) > NUM_STEPS  # some steps were done again
    drawn = prompts_drawn(load_recipe(folder / "recipe.yaml"))
    assert drawn.total() == len(drawn) == 6 * NUM_STEPS
    for run in (whole, cut):
        rows = read_metrics(run.folder / "metrics.jsonl")
        num_dropped = sum(row.get("dropped/groups", 0) for row in rows)
        assert num_dropped <= 3
        assert (drawn - prompts_of(run)).total() == num_dropped
        assert prompts_of(run) <= drawn  # each at most once, and no other

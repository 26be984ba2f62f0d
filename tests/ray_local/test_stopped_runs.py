"""Commands that are asked to stop: they save, end in time, and go on as if nothing had happened."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.run.checkpoint import CheckpointStore
from actrep_ray.run.metrics import read_metrics
from data_prep.files import read_jsonl
from data_prep.synthetic.dataset import write_dataset

START_S = 300.0
NUM_STEPS = 5
RECIPE = """
stage: {stage}
name: {name}
runs_dir: {folder}
model: {{path: {folder}/model, dtype: float32}}
data: {{path: {folder}/data/clips.jsonl}}
video: {{max_pixels: 1024, cache_dir: {folder}/frames}}
rollout: {{engine: hf, max_model_len: 512, max_response_tokens: 48}}
reward: {{weights: {{"letters:letters": 1.0}}}}
learner: {{lr: 1.0e-3}}
train: {{num_steps: {steps}, prompts_per_step: 4, group_size: 2, max_staleness: {staleness}}}
sft: {{num_steps: {steps}, clips_per_step: 2, validate_every: 90, num_validation_clips: 1}}
checkpoint: {{every: 0}}
run: {{preemption_notice: {folder}/notice}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    sizes = {"train": 12, "validation": 1}
    write_dataset(folder / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    write_tiny_model(folder / "model")
    return folder


def write_recipe(
    folder: Path, name: str, *, stage: str = "grpo", staleness: str = "null", steps: int = NUM_STEPS
) -> Path:
    path = folder / f"{name}.yaml"
    values = {"name": name, "folder": folder, "stage": stage, "staleness": staleness}
    path.write_text(RECIPE.format(**values, steps=steps))
    return path


def start(recipe: Path, *arguments: str, stage: str = "train") -> subprocess.Popen[str]:
    command = ["env", "--default-signal=INT", sys.executable, "-m", "actrep_ray"]
    own = Path(__file__).parents[1] / "own_rewards"
    return subprocess.Popen(
        [*command, stage, str(recipe), *arguments],
        env=os.environ | {"PYTHONPATH": f"{own}:{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def steps_in(run_dir: Path) -> list[int]:
    path = run_dir / "metrics.jsonl"
    return [row["step"] for row in read_metrics(path)] if path.is_file() else []


def wait_for_step(process: "subprocess.Popen[str]", run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + START_S
    while max(steps_in(run_dir), default=0) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"waited {START_S} s for step {step}"
        time.sleep(0.01)


def stop(process: "subprocess.Popen[str]", number: int, code: int) -> tuple[str, int]:
    """The last line of a command that is asked to stop, and the step that it names."""
    began = time.monotonic()
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    assert time.monotonic() - began < 30, output
    assert process.returncode == code, output
    told = output.strip().splitlines()[-1]
    found = re.search(
        r"; step (\d+) is saved; go on with: (?:\S*/)?actrep (train|sft) .* --resume$", told
    )
    assert found is not None, output
    return told, int(found[1])


def finish(process: "subprocess.Popen[str]") -> None:
    output = process.communicate(timeout=START_S)[0]
    assert process.returncode == 0, output


def weights_of(run_dir: Path, steps: int = NUM_STEPS) -> bytes:
    newest = CheckpointStore(run_dir, keep=9).newest()
    assert newest is not None
    assert newest.step == steps
    return (newest.folder / "model.safetensors").read_bytes()


def answers_of(run_dir: Path) -> list[tuple[object, ...]]:
    """Step, key and text of the answers that were written down, in order."""
    rows = read_jsonl(run_dir / "texts.jsonl", "texts")
    return [tuple(row.values[key] for key in ("step", "key", "text")) for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(folder: Path) -> None:
    whole = write_recipe(folder, "whole")
    finish(start(whole))
    recipe = write_recipe(folder, "cut")
    process = start(recipe)
    wait_for_step(process, folder / "cut", 2)
    told, step = stop(process, signal.SIGTERM, 143)
    assert told.startswith("actrep: stopped by SIGTERM; step ")
    assert 2 <= step < NUM_STEPS
    store = CheckpointStore(folder / "cut", keep=9)
    newest = store.newest()
    assert newest is not None
    assert newest.step == step
    assert newest.driver_state()["sampler"]["num_drawn"] == 4 * step  # the given up are drawn again
    finish(start(recipe, "--resume"))
    assert steps_in(folder / "cut") == list(range(NUM_STEPS + 1))
    assert answers_of(folder / "cut") == answers_of(folder / "whole")
    assert weights_of(folder / "cut") == weights_of(folder / "whole")
    assert weights_of(folder / "cut") != (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_asynchronous_run_asks_each_slot_once(folder: Path) -> None:
    recipe = write_recipe(folder, "ahead", staleness="1")
    process = start(recipe)
    wait_for_step(process, folder / "ahead", 2)
    _, step = stop(process, signal.SIGUSR1, 138)
    newest = CheckpointStore(folder / "ahead", keep=9).newest()
    assert newest is not None
    state = newest.driver_state()["pipeline"]
    numbers = [place["number"] for place in state["places"]]
    assert state["trained"] + sum(state["dropped"].values()) == 4 * step
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 4 * state["num_batches"] - 4 * step
    finish(start(recipe, "--resume"))
    assert steps_in(folder / "ahead") == list(range(NUM_STEPS + 1))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_sft_ends_with_the_weights_of_one_that_was_not(folder: Path) -> None:
    finish(start(write_recipe(folder, "sft-whole", stage="sft", steps=80), stage="sft"))
    recipe = write_recipe(folder, "sft-cut", stage="sft", steps=80)
    process = start(recipe, stage="sft")
    wait_for_step(process, folder / "sft-cut", 1)
    (folder / "notice").write_text("soon")
    told, step = stop(process, signal.SIGCONT, 143)  # the file is what ends it
    assert 1 <= step < 80
    assert f"the notice {folder / 'notice'}" in told
    finish(start(recipe, "--resume", stage="sft"))
    assert weights_of(folder / "sft-cut", 80) == weights_of(folder / "sft-whole", 80)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_second_ctrl_c_leaves_at_once_and_the_run_goes_on_from_nothing(folder: Path) -> None:
    recipe = write_recipe(folder, "twice", steps=1000)
    process = start(recipe)
    wait_for_step(process, folder / "twice", 1)
    process.send_signal(signal.SIGSTOP)  # both are there before anything is saved
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode in (130, 143), output
    assert re.search(r"nothing new was saved|step \d+ is saved", output.splitlines()[-1])


# ---------------------------------------------------------------- workers that stand still


def process_of(run: "subprocess.Popen[str]", worker: str) -> psutil.Process | None:
    """A run's process of a class of workers."""
    for child in psutil.Process(run.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(child.cmdline()).startswith(f"ray::{worker}"):
                return child
    return None


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stopped_workers_of_each_kind_are_replaced(folder: Path) -> None:
    recipe = write_recipe(folder, "frozen", steps=1000)
    asked = {
        "checkpoint.every": "1",
        "run.silence_s": "5",
        "rollout.max_restarts": "3",
        "learner.max_restarts": "3",
        "reward.max_restarts": "3",
    }
    process = start(recipe, *(f"--set={key}={value}" for key, value in asked.items()))
    for worker in ("RolloutWorker", "RewardWorker", "_Rank"):
        wait_for_step(process, folder / "frozen", max(steps_in(folder / "frozen"), default=0) + 2)
        found = process_of(process, worker)
        assert found is not None, worker
        found.send_signal(signal.SIGSTOP)
        before, began = max(steps_in(folder / "frozen")), time.monotonic()
        wait_for_step(process, folder / "frozen", before + 2)
        print(f"{worker}: two steps further after {time.monotonic() - began:.0f} s")
        assert not found.is_running()
    names = " ".join(path.name for path in (folder / "frozen" / "stacks").iterdir())
    for name in ("rollout-worker-0", "reward-worker-0", "learner-rank-0"):
        assert name in names
    _, step = stop(process, signal.SIGTERM, 143)
    rows = steps_in(folder / "frozen")
    assert rows == list(range(step + 1))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_pretraining_leaves_what_it_learned(folder: Path) -> None:
    out = folder / "pretrained"
    command = [sys.executable, "-m", "actrep_ray.pretrain", "--data", str(folder / "data")]
    command += ["--out", str(out), "--steps", "100000", "--every", "100000", "--batch-size", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while " parameters" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(5)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 143, told
    assert time.monotonic() - began < 30
    assert f"stopped by SIGTERM; what was learned is in {out}" in told
    rows = read_jsonl(out / "pretraining.jsonl", "rows")
    steps = [row.values["step"] for row in rows]
    assert steps == list(range(1, len(steps) + 1))
    assert (out / "model.safetensors").read_bytes() != (
        folder / "model" / "model.safetensors"
    ).read_bytes()

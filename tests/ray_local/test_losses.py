"""One worker of each pool, killed: every pool tells the same loss, by the same type of error."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actrep_ray.cluster.supervision import Loss, LossKind, WorkerLostError
from actrep_ray.config import Recipe, load_recipe
from actrep_ray.driver.restarts import run_with_restarts
from actrep_ray.learner.pool import LearnerPool
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import LearnerRow, Prompt, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings, make_rollout
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.run.checkpoint import Checkpoint
from actrep_ray.run.faults import FaultLog
from actrep_ray.scoring.pool import RewardPool
from data_prep.schema import Clip
from data_prep.video import FramePlan
from data_prep.video_writer import encode_mp4
from rewards.grammar.write import Response, render
from rewards.reference import Reference

TEXT = render(Response("A ball moves.", "there and back", ((0.0, 1.0),), "even", 1, 1))


@dataclass
class Started:
    """A pool, its name among the roles, and a call that all of its workers take part in."""

    role: str
    pool: Any
    work: Callable[[], Any]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("losses")
    settings = {
        "stage": "grpo",
        "device": "cpu",
        "model.dtype": "float32",
        "runs_dir": folder,
        "video.max_pixels": 1024,
        "video.cache_dir": folder / "frames",
        "rollout.engine": "hf",
        "rollout.max_model_len": 512,
        "rollout.max_restarts": 0,
        "reward.num_cpus": 0.1,
        "reward.max_restarts": 0,
        "learner.max_restarts": 1,
    }
    write_tiny_model(folder / "model")
    return load_recipe(None, [f"{key}={value}" for key, value in settings.items()])


@pytest.fixture(scope="module")
def plan(recipe: Recipe) -> FramePlan:
    path = Path(recipe.runs_dir) / "noise.mp4"
    encode_mp4(path, np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8), 4)
    clip = Clip("c", "noise", "train", str(path), 0.0, 2.0, 4.0, 8, 32, 32, "unknown", 0)
    return QwenVLInputs(Path(recipe.runs_dir) / "model").plan(clip, recipe.video)


@pytest.fixture(params=["rollout", "reward", "learner"])
def started(
    request: pytest.FixtureRequest, ray_session: Any, recipe: Recipe, plan: FramePlan
) -> Iterator[Started]:
    model, prompt = Path(recipe.runs_dir) / "model", Prompt("p", "c", "How many?", plan)
    if request.param == "rollout":
        rollouts = RolloutPool.start(recipe, model)
        settings = SamplingSettings(max_tokens=4, group_size=2)
        found = Started("rollout", rollouts, lambda: rollouts.generate([prompt], settings))
    elif request.param == "reward":
        rewards = RewardPool.start(recipe)
        answer = make_rollout(
            prompt, 0, token_ids=[1], log_probs=[0.0], text=TEXT, is_stopped=True, policy_version=0
        )
        groups, labels = (
            [RolloutGroup(prompt, (answer,), 1)],
            {"c": Reference(1, None, 2.0, "push")},
        )
        found = Started("reward", rewards, lambda: rewards.score(groups, labels))
    else:
        learners = LearnerPool.start(recipe, model, 10)
        row = LearnerRow(
            "r", "How many?", plan, 0, (np.array([7, 8], np.int32),), np.ones(1, np.float32)
        )
        found = Started("learner", learners, lambda: learners.log_probs([row]))
    try:
        yield found
    finally:
        found.pool.shutdown()


def kill(worker: Any, ray: Any) -> None:
    """End an actor's process as the operating system would."""
    pid = ray.get(worker.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)


def test_a_killed_worker_is_the_same_loss_in_every_pool(ray_session: Any, started: Started) -> None:
    assert started.work()  # it works until then
    [worker] = started.pool.workers
    kill(worker, ray_session)
    with pytest.raises(WorkerLostError, match=f"{started.role} .*0 died") as caught:
        started.work()
    loss = caught.value.loss
    assert (loss.role, loss.worker, loss.kind) == (started.role, 0, LossKind.PROCESS)
    assert caught.value.__cause__ is loss.error


# --- starting again


def lost(role: str, kind: LossKind) -> WorkerLostError:
    loss = Loss(role, 0, kind, "update", RuntimeError("killed"))
    return WorkerLostError(str(loss), loss)


@pytest.mark.parametrize("kind", [LossKind.PROCESS, LossKind.NODE, LossKind.OBJECT])
@pytest.mark.usefixtures("ray_session")
def test_a_run_starts_again_when_a_rank_was_lost(recipe: Recipe, kind: LossKind) -> None:
    attempts: list[Checkpoint | None] = []

    def attempt(start: Checkpoint | None, _: FaultLog) -> str:
        attempts.append(start)
        if len(attempts) == 1:
            raise lost("learner", kind)
        return "done"

    assert run_with_restarts(recipe, attempt, None) == "done"
    assert attempts == [None, None]  # there is no checkpoint to go on from

    def fail(start: Checkpoint | None, _: FaultLog) -> str:
        attempts.append(start)
        raise lost("learner", kind)

    with pytest.raises(WorkerLostError, match="learner rank 0 died in `update`: killed"):
        run_with_restarts(recipe, fail, None)
    assert len(attempts) == 4  # learner.max_restarts is 1


@pytest.mark.parametrize("role", ["rollout", "reward"])
def test_a_run_stops_when_another_pool_could_not_go_on(recipe: Recipe, role: str) -> None:
    attempts: list[None] = []

    def attempt(start: Checkpoint | None, _: FaultLog) -> None:
        attempts.append(None)
        raise lost(role, LossKind.PROCESS)

    with pytest.raises(WorkerLostError):
        run_with_restarts(recipe, attempt, None)
    assert len(attempts) == 1

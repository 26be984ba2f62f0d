"""Going on after a lost rank: how often, after which pauses, and when not; without a cluster."""

from pathlib import Path

import pytest
from ray import exceptions

from actrep_ray.cluster.supervision import Loss, LossKind, WorkerLostError
from actrep_ray.config import Recipe, load_recipe
from actrep_ray.driver.restarts import run_with_restarts
from actrep_ray.run.checkpoint import Checkpoint
from actrep_ray.run.faults import FaultLog


def lost(role: str, error: Exception) -> WorkerLostError:
    loss = Loss(role, 0, LossKind.PROCESS, "update", error)
    return WorkerLostError(str(loss), loss)


KILLED = exceptions.ActorDiedError()
RAISED = exceptions.ActorDiedError(
    exceptions.RayTaskError("__init__", "ConfigError: m: no model", RuntimeError())
)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(None, [f"runs_dir={tmp_path}"])


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("actrep_ray.driver.restarts.time.sleep", slept.append)
    monkeypatch.setattr("actrep_ray.driver.restarts.wait_for_room", lambda recipe, wait_s: None)
    return slept


@pytest.mark.parametrize("num_losses", [0, 1, 3])
def test_by_default_a_run_bears_three_lost_ranks_in_an_hour(
    recipe: Recipe, pauses: list[float], num_losses: int
) -> None:
    attempts: list[Checkpoint | None] = []

    def attempt(start: Checkpoint | None, _: FaultLog) -> str:
        attempts.append(start)
        if len(attempts) <= num_losses:
            raise lost("learner", KILLED)
        return "done"

    assert run_with_restarts(recipe, attempt, None) == "done"
    assert attempts == [None] * (num_losses + 1)  # there is no checkpoint to go on from
    assert pauses == [0.0, 1.0, 2.0][:num_losses]


@pytest.mark.parametrize(
    ("error", "num_attempts"),
    [
        (lost("learner", KILLED), 4),
        (lost("learner", RAISED), 1),  # it would raise again
        (lost("rollout", KILLED), 1),  # its pool has replaced what it may
        (lost("reward", KILLED), 1),
        (ZeroDivisionError(), 1),
    ],
    ids=["killed", "raised as it started", "engine", "reward worker", "defect"],
)
@pytest.mark.usefixtures("pauses")
def test_a_run_ends_at_once_where_another_start_is_no_help(
    recipe: Recipe, error: Exception, num_attempts: int
) -> None:
    attempts: list[None] = []

    def attempt(start: Checkpoint | None, _: FaultLog) -> None:
        attempts.append(None)
        raise error

    with pytest.raises(type(error)) as caught:
        run_with_restarts(recipe, attempt, None)
    assert caught.value is error
    assert len(attempts) == num_attempts


@pytest.mark.usefixtures("pauses")
def test_a_rank_may_be_lost_before_the_first_step_is_finished(recipe: Recipe) -> None:
    """The file of the metrics is there by then, without a row."""

    def attempt(start: Checkpoint | None, faults: FaultLog) -> float:
        if not faults.sums.lost:
            recipe.run_dir.mkdir(parents=True)
            (recipe.run_dir / "metrics.jsonl").touch()
            raise lost("learner", KILLED)
        return faults.sums.metrics()["faults/given_again"]

    assert run_with_restarts(recipe, attempt, None) == 0.0

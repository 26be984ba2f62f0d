"""Waits that end: for room, and for workers that stand still."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from actrep_ray.cluster import presence
from actrep_ray.cluster.actors import as_actor
from actrep_ray.cluster.bundles import reserve
from actrep_ray.cluster.mailbox import Mailbox
from actrep_ray.cluster.placement import PlacementError
from actrep_ray.cluster.supervision import Call, Loss, LossKind, follow
from actrep_ray.cluster.watchdog import watched
from actrep_ray.config import Recipe, load_recipe


@pytest.fixture(scope="module", autouse=True)
def _cluster(ray_session: Any) -> None:
    """All of these need one."""


def test_room_that_others_take_up_is_waited_for_with_words_and_not_for_ever(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actrep_ray.cluster.bundles._SAY_EVERY_S", 0.5)
    there = int(ray.cluster_resources()["CPU"])
    settings = ("device=cpu", f"learner.num_cpus={there}", "learner.num_workers=2")
    began = time.monotonic()
    with pytest.raises(PlacementError, match=r"waited 2 s \(placement\.busy_s\) for room for 2 le"):
        reserve(load_recipe(None, [*settings, "placement.busy_s=2"]))
    assert 2 <= time.monotonic() - began < 10
    assert "more for room for 2 learner workers" in caplog.text
    assert ray.util.placement_group_table() == {} or all(
        one["state"] == "REMOVED" for one in ray.util.placement_group_table().values()
    )


# ---------------------------------------------------------------- workers that stand still


class Sleeper:
    """A worker whose turns take as long as it is told."""

    def pid(self) -> int:
        return os.getpid()

    def update(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


@dataclass
class Watched:
    """A watched actor, and what became of its calls."""

    mailbox: Mailbox
    actor: Any
    pid: int
    done: list[float]
    losses: list[Loss]

    def update(self, seconds: float) -> None:
        call = Call("learner", 7, "update", self.actor.update.remote(seconds))
        follow(
            self.mailbox,
            call,
            then=self.done.append,
            on_loss=self.losses.append,
            on_error=lambda error: pytest.fail(str(error)),
        )

    def wait(self, limit_s: float) -> None:
        num = len(self.done) + len(self.losses)
        is_more = lambda: len(self.done) + len(self.losses) > num  # noqa: E731
        self.mailbox.wait(is_more, limit_s, lambda: f"waited {limit_s} s")


@pytest.fixture
def sleeper() -> Iterator[Watched]:
    actor = as_actor(Sleeper, {"num_cpus": 0}).remote()
    yield Watched(Mailbox(), actor, ray.get(actor.pid.remote()), [], [])
    ray.kill(actor)


def settings(**run: float) -> Recipe:
    return load_recipe(None, [f"run.{key}={value}" for key, value in run.items()])


@pytest.mark.parametrize("is_here", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_stopped_worker_is_ended_with_its_stacks_and_is_a_loss(
    is_here: bool,
    sleeper: Watched,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not is_here:  # it is looked at, and ended, by tasks on its node
        monkeypatch.setattr("actrep_ray.cluster.processes.this_node", lambda: "another")
    with watched(settings(silence_s=2.0), tmp_path / "stacks"):
        sleeper.update(0.01)
        sleeper.wait(30)
        os.kill(sleeper.pid, signal.SIGSTOP)
        began = time.monotonic()
        sleeper.update(0.01)
        sleeper.wait(60)
        assert 2.0 <= time.monotonic() - began < 20
    [loss] = sleeper.losses
    assert loss.kind is LossKind.PROCESS
    deadline = time.monotonic() + 10
    while presence.look(sleeper.pid).status not in ("gone", "zombie"):
        assert time.monotonic() < deadline, "its process is still there"
        time.sleep(0.1)
    [path] = (tmp_path / "stacks").iterdir()
    assert path.name.endswith("-learner-rank-7.txt")
    assert f"process {sleeper.pid}: stopped" in path.read_text()
    assert "learner rank 7 shows no sign of life" in caplog.text
    assert "it is stopped in `update`: ended" in caplog.text


def test_a_worker_that_lives_is_ended_when_a_turn_takes_many_times_longer_than_before(
    sleeper: Watched, tmp_path: Path
) -> None:
    recipe = settings(silence_s=2.0, turn_factor=2.0, turn_floor_s=4.0)
    with watched(recipe, tmp_path / "stacks"):
        for seconds in (0.1, 0.1, 0.1, 3.0):  # the last is longer than the silence: it lives
            sleeper.update(seconds)
            sleeper.wait(30)
        assert (sleeper.losses, len(sleeper.done)) == ([], 4)
        sleeper.update(600.0)
        began = time.monotonic()
        sleeper.wait(60)
        assert 4.0 <= time.monotonic() - began < 25
    [_] = sleeper.losses
    [path] = (tmp_path / "stacks").iterdir()
    assert "in update" in path.read_text()  # where it was


def test_what_is_waited_for_long_is_said_with_stacks(
    sleeper: Watched,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actrep_ray.cluster.watchdog._SAY_FIRST_S", 1.0)
    with watched(settings(silence_s=3.0), tmp_path / "stacks"):
        sleeper.update(4.0)
        sleeper.wait(30)
    assert sleeper.done == [4.0]
    said = [r.message for r in caplog.records if "waiting for learner rank 7" in r.message]
    assert 1 <= len(said) <= 2  # after 1 and 2 s at the earliest
    assert "`update` for " in said[0]
    assert "in update" in next((tmp_path / "stacks").iterdir()).read_text()

"""Calls under way and what they may take; a process's signs of life, stopped and not."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actrep_ray.cluster import presence
from actrep_ray.cluster.calls import CallLog, limit_of
from actrep_ray.cluster.processes import Host
from actrep_ray.cluster.watchdog import Silence, Watchdog
from actrep_ray.config import ConfigError, load_recipe

pytestmark = pytest.mark.lengthy


@dataclass(frozen=True)
class Ref:
    """An object that a call will return, as far as the log asks it whose it is."""

    actor: str

    def task_id(self) -> "Ref":
        return self

    def actor_id(self) -> "Ref":
        return self

    def hex(self) -> str:
        return self.actor


@dataclass(frozen=True)
class Call:
    role: str
    worker: int
    method: str
    ref: Ref


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("actrep_ray.cluster.calls.time", clock)
    return clock


@pytest.fixture
def log() -> CallLog:
    log = CallLog()
    log.is_on = True
    return log


def send(log: CallLog, actor: str, method: str = "advance", role: str = "rollout") -> "Future[Any]":
    future: Future[Any] = Future()
    log.note(Call(role, 0, method, Ref(actor)), future)
    return future


def test_a_worker_is_at_its_oldest_call_since_the_one_before_returned(
    log: CallLog, clock: Clock
) -> None:
    first, second = send(log, "a"), send(log, "a", "load_weights")
    send(log, "b")
    clock.now += 5
    assert [(h.actor, h.call.method, h.seconds) for h in log.heads()] == [
        ("a", "advance", 5), ("b", "advance", 5),
    ]  # fmt: skip
    first.set_result(None)
    clock.now += 2
    heads = {head.actor: (head.call.method, head.seconds) for head in log.heads()}
    assert heads == {"a": ("load_weights", 2), "b": ("advance", 7)}
    second.set_result(None)
    assert log.seconds_of("rollout", "advance") == (5,)
    assert log.seconds_of("rollout", "load_weights") == (2,)  # not 7: it waited for its turn
    assert [head.actor for head in log.heads()] == ["b"]


def test_a_call_that_failed_is_no_measure_and_a_second_thread_no_sign(
    log: CallLog, clock: Clock
) -> None:
    send(log, "a", "score", "reward")
    clock.now += 5
    send(log, "a", "status", "reward").set_result(None)
    [head] = log.heads()
    assert (head.call.method, head.seconds) == ("score", 5)
    send(log, "b").set_exception(ValueError("no"))
    assert log.seconds_of("rollout", "advance") == ()
    assert len(log.heads()) == 1


def test_what_returns_after_the_end_is_no_news(log: CallLog) -> None:
    late = send(log, "a")
    log.clear()
    late.set_result(None)
    assert log.heads() == []
    assert log.seconds_of("rollout", "advance") == ()
    log.is_on = False
    send(log, "a")
    assert log.heads() == []


def test_a_turn_may_take_ten_times_the_median_of_those_before() -> None:
    settings = {"factor": 10.0, "floor_s": 5.0, "ceiling_s": 600.0}
    assert limit_of([2.0, 3.0, 40.0], **settings) == 30.0  # by hand: the median is 3
    assert limit_of([2.0, 4.0, 6.0, 40.0], **settings) == 50.0  # (4 + 6) / 2
    assert limit_of([0.1] * 3, **settings) == 5.0
    assert limit_of([100.0] * 3, **settings) == 600.0
    assert limit_of([0.1, 0.1], **settings) == 600.0  # two say nothing


@given(
    st.lists(st.floats(0, 1e4), max_size=30), st.floats(2, 100), st.floats(1, 100),
    st.floats(100, 1e4),
)  # fmt: skip
def test_no_limit_is_outside_of_its_bounds(
    seconds: list[float], factor: float, floor_s: float, ceiling_s: float
) -> None:
    limit = limit_of(seconds, factor=factor, floor_s=floor_s, ceiling_s=ceiling_s)
    assert floor_s <= limit <= ceiling_s


@pytest.mark.parametrize(
    ("role", "method", "limit_s"), [("rollout", "advance", 360.0), ("learner", "update", 120.0)]
)
def test_an_engine_is_given_the_time_to_refuse_a_clip(
    role: str, method: str, limit_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its video may take `video.decode_timeout_s`, after another process's that took as long."""
    log = CallLog()
    log.is_on = True
    monkeypatch.setattr("actrep_ray.cluster.watchdog.CALLS", log)
    for _ in range(3):
        send(log, "a", method, role).set_result(None)  # in no time
    watchdog = Watchdog(load_recipe(None, ["video.decode_timeout_s=120"]), tmp_path)
    send(log, "a", method, role)
    [head] = log.heads()
    assert watchdog.limit_s(head) == limit_s


def test_bounds_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"run\.turn_floor_s=700: expected at most"):
        load_recipe(None, ["run.turn_floor_s=700", "run.turn_ceiling_s=600"])


# ---------------------------------------------------------------- signs of a real process

WORKER = """
import sys, time
from actrep_ray.cluster import presence
presence.begin()
print("there", flush=True)
def at_work_on_this():
    time.sleep(600)
at_work_on_this()
"""


@pytest.fixture
def worker() -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        deadline = time.monotonic() + 30
        while not presence.look(process.pid).beat:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
        process.kill()


def test_a_living_process_beats_and_tells_its_stacks(worker: "subprocess.Popen[str]") -> None:
    first = presence.look(worker.pid)
    time.sleep(2.5)
    later = presence.look(worker.pid)
    assert float(later.beat) >= float(first.beat) + 1
    for _ in range(2):  # the second has nothing of the first
        told = presence.stacks_of(worker.pid)
        assert told.count("in at_work_on_this") == 1
        assert "in _beat" in told
        assert f"process {worker.pid}: " in told
    assert worker.poll() is None


def test_a_stopped_process_shows_no_sign_and_can_be_ended(worker: "subprocess.Popen[str]") -> None:
    worker.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    first = presence.look(worker.pid)
    time.sleep(2.5)
    assert presence.look(worker.pid) == first
    assert first.status == "stopped"
    assert "it tells no stacks, which a stopped process cannot" in presence.stacks_of(worker.pid)
    presence.kill(worker.pid)
    assert worker.wait(timeout=10) == -signal.SIGKILL
    assert presence.look(worker.pid).status == "gone"
    presence.kill(worker.pid)  # is no harm


@pytest.mark.parametrize(
    ("status", "beat", "is_held_up"),
    [
        ("sleeping", "12.0", True),  # frozen, or its Python does not get on
        ("disk-sleep", "12.0", True),
        ("running", "12.0", False),  # waits for a CPU
        ("stopped", "12.0", True),
        ("sleeping", "", False),  # starts: reads files, maybe from afar
        ("disk-sleep", "", False),
        ("running", "", False),
        ("stopped", "", True),
    ],
)
def test_who_is_held_up(status: str, beat: str, is_held_up: bool) -> None:
    silence = Silence(presence.Signs(status, beat, 1.0), since=0.0)
    assert silence.is_held_up(30.0, 30.0) == is_held_up
    assert not silence.is_held_up(29.0, 30.0)


class Node:
    """Where all workers are; it does not hear the first wishes to end one."""

    def __init__(self, pid: int, monkeypatch: pytest.MonkeyPatch, num_deaf: int = 0) -> None:
        self.pid, self.num_deaf = pid, num_deaf
        monkeypatch.setattr("actrep_ray.cluster.watchdog.host_of", lambda _: Host("n", self.pid))
        monkeypatch.setattr("actrep_ray.cluster.watchdog.on_node", self.call)

    def call(self, _: str, function: Any) -> Any:
        if function.func is presence.kill and self.num_deaf:
            self.num_deaf -= 1
            return None
        return function()


def look_for(watchdog: Watchdog, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        watchdog._look_at_all()
        time.sleep(0.1)


@pytest.fixture
def watchdog(tmp_path: Path, log: CallLog, monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    """Of a pool whose worker has been at a call for a while."""
    monkeypatch.setattr("actrep_ray.cluster.watchdog.CALLS", log)
    send(log, "a", "ready")
    return Watchdog(load_recipe(None, ["run.silence_s=1"]), tmp_path)


def test_a_worker_is_ended_again_if_its_node_did_not_hear(
    worker: "subprocess.Popen[str]", watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(worker.pid, monkeypatch, num_deaf=2)
    worker.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while worker.poll() is None:
        assert time.monotonic() < deadline
        look_for(watchdog, 0.5)
    assert worker.returncode == -signal.SIGKILL
    assert node.num_deaf == 0


def test_a_starting_process_is_given_the_time_of_its_call_unless_it_is_stopped(
    watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(command) as process:
        Node(process.pid, monkeypatch)
        look_for(watchdog, 4.0)
        assert process.poll() is None
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while process.poll() is None:
            assert time.monotonic() < deadline
            look_for(watchdog, 0.5)

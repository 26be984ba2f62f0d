"""The lock of a folder: one winner of many real processes, and taken from the dead alone."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.run import lock
from actrep_ray.run.lock import FolderLock, HeldError, Holder, LockLostError, check_holder
from data_prep.processes import process_start

pytestmark = pytest.mark.lengthy

NUM_ROUNDS, NUM_PROCESSES = 100, 4

HOLD = """
import sys, time
from pathlib import Path
from actrep_ray.run.lock import FolderLock
held = FolderLock.acquire(Path(sys.argv[1]), "actrep train")
print("held", flush=True)
time.sleep(600)
"""


def holder(**changes: Any) -> Holder:
    """This process, or what is said of another."""
    known: dict[str, Any] = {
        "host": os.uname().nodename,
        "machine": lock._machine(),
        "pid": os.getpid(),
        "start": process_start(os.getpid()),
        "what": "actrep train",
    }
    return Holder(**(known | changes))


def leave(folder: Path, left: Holder, *, number: int = 1, age_s: float = 0.0) -> Path:
    """What a process left in a folder, and touched last so many seconds ago."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".lock-{number:06d}"
    path.write_text(json.dumps(asdict(left)))
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- many at once


def contend(root: Path, number: int, barrier: Any, results: Any) -> None:
    """Try for the lock of each round's folder at the same time as the others; hold it meanwhile."""
    won = []
    for round_ in range(NUM_ROUNDS):
        barrier.wait(60)
        try:
            held = FolderLock.acquire(root / str(round_), f"process {number}")
        except HeldError:
            held = None
        barrier.wait(60)
        if held is not None:
            won.append(round_)
            held.release()
    results.put(won)


@pytest.mark.parametrize("left", ["nothing", "dead", "released", "elsewhere"])
def test_one_of_many_processes_wins_100_times_of_100(tmp_path: Path, left: str) -> None:
    found = {
        "nothing": None,
        "dead": holder(pid=2**22 + 1),
        "released": holder(is_released=True),
        "elsewhere": holder(machine="other"),
    }[left]
    for round_ in range(NUM_ROUNDS):
        if found is not None:
            leave(tmp_path / str(round_), found, number=7, age_s=lock.STALE_AFTER_S + 1)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(NUM_PROCESSES), context.SimpleQueue()
    processes = [
        context.Process(target=contend, args=(tmp_path, i, barrier, results))
        for i in range(NUM_PROCESSES)
    ]
    for process in processes:
        process.start()
    won = [results.get() for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(round_ for rounds in won for round_ in rounds) == list(range(NUM_ROUNDS))
    number = 1 if found is None else 8
    assert {tuple(names(tmp_path / str(i))) for i in range(NUM_ROUNDS)} == {
        (f".lock-{number:06d}",)
    }


# --- one after the other


def test_a_file_system_without_links_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    with FolderLock.acquire(tmp_path, "actrep train"), pytest.raises(HeldError):
        FolderLock.acquire(tmp_path, "actrep train")


def test_a_second_run_is_refused_in_one_line_that_names_the_first(tmp_path: Path) -> None:
    with FolderLock.acquire(tmp_path, "actrep train") as held:
        with pytest.raises(HeldError) as caught:
            FolderLock.acquire(tmp_path, "actrep train")
        host = os.uname().nodename
        assert str(caught.value) == (
            f"{tmp_path}: held by actrep train, process {os.getpid()} on {host}"
        )
        check_holder(tmp_path)
    held.release()  # once more is no harm
    FolderLock.acquire(tmp_path, "actrep train").release()
    assert names(tmp_path) == [".lock-000002"]


def test_a_lock_that_nobody_refers_to_is_let_go(tmp_path: Path) -> None:
    held = FolderLock.acquire(tmp_path, "actrep train")
    del held
    FolderLock.acquire(tmp_path, "actrep train").release()


@pytest.mark.parametrize("is_reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over_with_a_message(
    tmp_path: Path, is_reaped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(HeldError, match=f"process {process.pid} on"):
        FolderLock.acquire(tmp_path, "actrep train")
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(HeldError):  # stopped is not dead
        FolderLock.acquire(tmp_path, "actrep train")
    process.kill()
    if is_reaped:
        process.wait()
    else:  # a zombie still has its number
        wait_until(lambda: process_start(process.pid) is None)
    with FolderLock.acquire(tmp_path, "actrep train"):
        assert f"taken over from actrep train, process {process.pid} on" in caplog.text
    process.wait()
    process.stdout.close()


def test_a_number_that_was_given_to_another_process_is_no_holder(tmp_path: Path) -> None:
    leave(tmp_path, holder(start="12"))
    FolderLock.acquire(tmp_path, "actrep train").release()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent holder elsewhere is dead after a second."""
    monkeypatch.setattr(lock, "TOUCH_EVERY_S", 0.2)
    monkeypatch.setattr(lock, "STALE_AFTER_S", 1.0)
    monkeypatch.setattr(lock, "_LOOK_EVERY_S", 0.05)


@pytest.mark.parametrize("age_s", [0.5, 100])
@pytest.mark.usefixtures("quick")
def test_a_holder_elsewhere_that_gives_no_sign_is_taken_over(
    tmp_path: Path, age_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    leave(tmp_path, holder(host="node7", machine="node7 boot", pid=1), age_s=age_s)
    began = time.monotonic()
    with FolderLock.acquire(tmp_path, "actrep train"):
        assert time.monotonic() - began > 0.9 - age_s
        assert "taken over from actrep train, process 1 on node7, which is gone" in caplog.text
    assert ("waiting for a sign of actrep train" in caplog.text) == (age_s < 1)


@pytest.mark.parametrize("age_s", [0.0, 0.5])
@pytest.mark.usefixtures("quick")
def test_a_holder_elsewhere_that_gives_signs_is_not(tmp_path: Path, age_s: float) -> None:
    path = leave(tmp_path, holder(host="node7", machine="node7 boot", pid=1), age_s=age_s)
    threading.Timer(0.2, os.utime, (path,)).start()
    with pytest.raises(HeldError, match=r"process 1 on node7, which gave a sign just now"):
        FolderLock.acquire(tmp_path, "actrep train")


@pytest.mark.usefixtures("quick")
def test_a_holder_elsewhere_that_lets_go_is_not_waited_for_longer(tmp_path: Path) -> None:
    there = holder(host="node7", machine="node7 boot", pid=1)
    leave(tmp_path, there, age_s=0.3)

    def let_go() -> None:
        leave(tmp_path, replace(there, is_released=True), age_s=0.3)

    threading.Timer(0.2, let_go).start()
    FolderLock.acquire(tmp_path, "actrep train").release()
    assert names(tmp_path) == [".lock-000002"]


def test_a_holder_gives_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TOUCH_EVERY_S", 0.02)
    with FolderLock.acquire(tmp_path, "actrep train") as held:
        os.utime(held.path, (1, 1))
        wait_until(lambda: held.path.stat().st_mtime > 1)
    os.utime(tmp_path / ".lock-000001", (1, 1))
    time.sleep(0.2)
    assert (tmp_path / ".lock-000001").stat().st_mtime == 1  # it let go


def test_a_holder_that_was_given_up_for_dead_writes_no_more(tmp_path: Path) -> None:
    with FolderLock.acquire(tmp_path, "actrep train"):
        check_holder(tmp_path)
        leave(tmp_path, holder(host="node7", machine="other", pid=5), number=2)
        with pytest.raises(LockLostError, match="process 5 on node7 has taken over"):
            check_holder(tmp_path)
    assert names(tmp_path) == [".lock-000001", ".lock-000002"]  # the other one's is left alone
    check_holder(tmp_path / "no lock")


@pytest.mark.usefixtures("quick")
def test_a_lock_that_cannot_be_read_is_no_free_one(tmp_path: Path) -> None:
    path = leave(tmp_path, holder())
    path.write_text("")  # as a loss of power leaves it
    threading.Timer(0.2, os.utime, (path,)).start()
    with pytest.raises(HeldError, match=r"\.lock-000001, which cannot be read"):
        FolderLock.acquire(tmp_path, "actrep train")
    FolderLock.acquire(tmp_path, "actrep train").release()  # no sign any more


def test_a_folder_that_was_read_late_gives_no_second_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system may list what was there before: the number is free again, but low."""
    leave(tmp_path, holder(what="actrep sft"), number=9)
    listed, calls = lock._newest, []

    def late(folder: Path) -> Path | None:
        calls.append(folder)
        return None if len(calls) == 1 else listed(folder)

    monkeypatch.setattr(lock, "_newest", late)
    with pytest.raises(HeldError, match="held by actrep sft"):
        FolderLock.acquire(tmp_path, "actrep train")
    assert names(tmp_path) == [".lock-000009"]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)

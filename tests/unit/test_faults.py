"""What a run loses is written down, counted over processes, and reported."""

import json
from pathlib import Path

import pytest

from actrep_ray.cluster.supervision import Loss, LossKind
from actrep_ray.evaluation.tables import faults_table
from actrep_ray.run.faults import FAULTS, FaultLog, read_faults
from data_prep.files import DataError


def loss(role: str, kind: LossKind = LossKind.PROCESS) -> Loss:
    return Loss(role, 1, kind, "advance", RuntimeError("it was killed"))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_losses_are_matched_with_what_replaces_them_and_counted_on_by_the_next_process(
    tmp_path: Path,
) -> None:
    clock = Clock()
    log = FaultLog(tmp_path, clock)
    log.replaced("rollout")  # a worker that starts in nobody's place
    log.lost(loss("rollout"), 3)
    clock.now = 104.0
    log.lost(loss("rollout", LossKind.HANG), 2)
    log.lost(loss("reward"), 1)
    clock.now = 110.0
    log.replaced("rollout")  # 10 s
    clock.now = 111.0
    log.replaced("rollout")  # 7 s
    log.replaced("rollout")
    events = [json.loads(line) for line in (tmp_path / FAULTS).read_text().splitlines()]
    assert [one["event"] for one in events] == ["lost"] * 3 + ["replaced"] * 2
    assert events[0].items() >= {
        ("role", "rollout"), ("worker", 1), ("kind", "process"), ("method", "advance"),
        ("cause", "it was killed"), ("given_again", 3),
    }  # fmt: skip
    assert [one["lost_s"] for one in events[3:]] == [10.0, 7.0]

    resumed = FaultLog(tmp_path, clock)
    resumed.lost(loss("learner"), 4)
    assert resumed.sums.metrics() == {
        "faults/lost_rollout": 2.0,
        "faults/lost_reward": 1.0,
        "faults/lost_learner": 1.0,
        "faults/given_again": 10.0,
        "faults/lost_s": 17.0,
    }
    assert resumed.sums.describe() == (
        "4 workers were lost (rollout 2, reward 1, learner 1; hang 1, process 3): 6 prompts and "
        "groups given to others, 4 steps done again, one worker less for rollout 17 s"
    )
    assert read_faults(tmp_path) == resumed.sums
    table = faults_table("GRPO", resumed.sums)
    assert table.rows == (
        ("rollout", "2", "hang 1, process 1", "5 prompts", "17"),
        ("reward", "1", "process 1", "1 groups", "0"),
        ("learner", "1", "process 1", "4 steps", "0"),
    )


def test_a_rank_that_is_lost_while_ranks_start_anew_adds_no_time(tmp_path: Path) -> None:
    clock = Clock()
    log = FaultLog(tmp_path, clock)
    log.lost(loss("learner"), 2)
    clock.now = 110.0
    log.lost(loss("learner"), 2)  # of those that were started in their place
    clock.now = 120.0
    log.replaced("learner")  # the run stood still for 20 s
    clock.now = 500.0
    log.lost(loss("learner"), 1)
    clock.now = 505.0
    log.replaced("learner")  # and for 5 s
    assert log.sums.lost["learner"] == 3
    assert log.sums.lost_s == {"learner": 25.0} == read_faults(tmp_path).lost_s


def test_a_line_that_a_killed_run_cut_off_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    FaultLog(tmp_path).lost(loss("rollout"), 3)
    with (tmp_path / FAULTS).open("a") as file:
        file.write('{"at": "2026-01-01T00:00')
    log = FaultLog(tmp_path)
    assert "cut short" in caplog.text
    log.lost(loss("rollout"), 2)
    assert read_faults(tmp_path).given_again == {"rollout": 5}


def test_without_a_loss_nothing_is_written(tmp_path: Path) -> None:
    log = FaultLog(tmp_path)
    log.replaced("learner")
    assert log.sums.describe() is None
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_line_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FAULTS).mkdir()
    (tmp_path / FAULTS / "x").write_text("")
    log = FaultLog()
    log._path = tmp_path / FAULTS
    log.lost(loss("reward"), 0)
    assert log.sums.lost["reward"] == 1
    assert "the run goes on" in caplog.text


def test_a_line_that_is_no_event_is_named(tmp_path: Path) -> None:
    (tmp_path / FAULTS).write_text('{"event": "lost", "role": "rollout"}\n')
    with pytest.raises(DataError, match=r"faults\.jsonl:1: .*expected an event of faults"):
        read_faults(tmp_path)

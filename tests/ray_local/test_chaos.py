"""Workers of every kind are killed and stopped, and videos break, at moments that a seed draws."""

from pathlib import Path

import pytest

from actrep_ray.run.faults import read_faults
from tests.ray_local.chaos import SIZE, Chaos


def check(chaos: Chaos, code: int, told: str) -> None:
    """What holds of any run, whatever was done to it."""
    assert code == 0, told[-6000:]
    assert len(chaos.done) == chaos.num_faults, "the run was over before all faults were done"
    rows, history = chaos.rows(), chaos.history()
    assert [row["step"] for row in rows] == list(range(1, chaos.num_steps + 1))
    # Conservation: what was issued was trained on, or dropped for a reason that was counted.
    # Of a video that an engine refused there is no group; of one that a rank could not read, one.
    for row, trained in zip(rows, history, strict=True):
        groups = sum(row.get(f"sampling/{stratum}", 0) for stratum in ("0-3", "4+"))
        reasons = [key for key in row if key.startswith("dropped/") and key != "dropped/groups"]
        assert row["dropped/groups"] == sum(row[key] for key in reasons)
        num_refused = len(trained) + row["dropped/groups"] - groups
        assert 0 <= num_refused <= row.get("dropped/unreadable_video", 0)
    assert sum(row.get("dropped/unreadable_video", 0) for row in rows) == len(chaos.broken)
    # Nothing is in the history of the final weights twice.
    ids = [one["id"] for step in history for one in step]
    assert len(ids) == len(set(ids))
    strata = ("trained/0-3", "trained/4+")
    assert sum(row.get(key, 0) for row in rows for key in strata) == len(ids)
    assert len(ids) >= 0.9 * SIZE * chaos.num_steps
    # What cannot be used is listed, and nothing else.
    assert chaos.quarantined() == set(chaos.broken) != set()
    # What was lost is counted: each fault, but for those that hit a worker as it was replaced.
    sums = read_faults(chaos.run_dir)
    assert all(sums.lost[role] for role in ("rollout", "reward", "learner"))
    assert f"{sums.lost.total()} workers were lost (" in told


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("staleness", ["null", "1"])
def test_a_run_survives_what_is_done_to_it(tmp_path: Path, staleness: str) -> None:
    chaos = Chaos(tmp_path, seed=0, staleness=staleness)
    chaos.prepare()
    code, told = chaos.train(limit_s=2000)
    check(chaos, code, told)
    figures = chaos.describe()
    assert figures["reward_last"] > figures["reward_first"]


@pytest.mark.lengthy
@pytest.mark.timeout(600)
def test_a_short_run_survives_a_fault_of_each_kind(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=1, num_steps=16, num_faults=3, num_clips=40)
    chaos.prepare()
    code, told = chaos.train(limit_s=500)
    check(chaos, code, told)

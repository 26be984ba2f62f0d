"""Workers of every kind are killed and stopped, and videos break, at moments that a seed draws."""

from pathlib import Path

import pytest

from tests.ray_local.chaos import Chaos, check


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

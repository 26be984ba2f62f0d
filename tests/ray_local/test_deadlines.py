"""Waits that end: for room, and for workers that stand still."""

import time
from typing import Any

import pytest
import ray

from actrep_ray.cluster.bundles import reserve
from actrep_ray.cluster.placement import PlacementError
from actrep_ray.config import load_recipe


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

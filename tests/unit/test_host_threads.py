"""Threads of processes beside a GPU: a share of the machine's cores, not the one that Ray gives."""

import os
from pathlib import Path

import pytest

from actrep_ray.cluster.actors import cpu_threads
from actrep_ray.models.torch_names import host_threads


def test_gpus_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(100)), raising=False)
    assert host_threads(gpus=tmp_path / "none") == 100
    for number in range(8):
        (tmp_path / f"0000:{number}").mkdir()
    assert host_threads(gpus=tmp_path) == 12
    assert host_threads(2, gpus=tmp_path) == 25
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert host_threads(gpus=tmp_path) == 1


def test_only_actors_on_a_cpu_are_given_a_number_of_threads() -> None:
    assert cpu_threads("cpu", 3) == {"OMP_NUM_THREADS": "3"}
    assert cpu_threads("cuda", 3) == {}

"""The node's frame cache: one decode, whole files, a bounded folder, any number of processes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actrep_ray.media.frame_cache import FrameCache
from data_prep.video import FramePlan, VideoError, read_frames
from tests.unit.test_frame_cache_trust import make_video, plan_of

GIB = 2**30


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> FramePlan:
    return plan_of(make_video(tmp_path_factory.mktemp("videos") / "noise.mp4"))


def shorter(plan: FramePlan, num_frames: int) -> FramePlan:
    return replace(plan, times_s=plan.times_s[:num_frames])


def shape_of(plan: FramePlan) -> list[int]:
    return [plan.num_frames, plan.height, plan.width, 3]


def headers(folder: Path) -> dict[Path, dict[str, Any]]:
    """What the headers of cached files say, read independently of the product."""
    found = {}
    for path in folder.glob("*.frames"):
        title, values = path.read_bytes()[:4096].rstrip(b"\0").split(b"\n")
        assert title == b"actrep frames 1"
        found[path] = json.loads(values)
    return found


def shapes(folder: Path) -> list[list[int]]:
    return sorted(values["shape"] for values in headers(folder).values())


def file_of(folder: Path, plan: FramePlan) -> Path:
    """The only cached file with the shape of a plan."""
    paths = [p for p, values in headers(folder).items() if values["shape"] == shape_of(plan)]
    assert len(paths) == 1
    return paths[0]


def names(folder: Path, suffix: str = ".frames") -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix == suffix}


def test_a_clip_is_decoded_once(plan: FramePlan, tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache", GIB)
    first, second = cache.get(plan), cache.get(plan)
    assert np.array_equal(first, read_frames(plan))
    assert np.array_equal(first, second)
    assert (cache.num_decoded, cache.num_hits) == (1, 1)
    second[:] = 0  # a reader's own pages; nobody else sees it
    other = FrameCache(tmp_path / "cache", GIB)
    assert np.array_equal(other.get(plan), first)
    assert (other.num_decoded, other.num_hits) == (0, 1)


def test_the_folder_is_bounded_and_the_oldest_goes_first(plan: FramePlan, tmp_path: Path) -> None:
    plans = [shorter(plan, n) for n in (4, 5, 6)]
    size = 4096 + 6 * 32 * 32 * 3
    cache = FrameCache(tmp_path, int(2.5 * size))
    for i, one in enumerate(plans[:2]):
        cache.get(one)
        os.utime(file_of(tmp_path, one), (i, i))
    mapped = cache.get(plans[0])  # read again: the second is now the oldest
    cache.get(plans[2])
    assert shapes(tmp_path) == [shape_of(plans[0]), shape_of(plans[2])]
    FrameCache(tmp_path, 1).get(plan)  # a cache that holds nothing but the newest
    assert shapes(tmp_path) == [shape_of(plan)]
    assert np.array_equal(mapped, read_frames(plans[0]))  # a mapped file outlives its name


def test_a_clip_that_cannot_be_decoded_leaves_nothing(plan: FramePlan, tmp_path: Path) -> None:
    bad = replace(plan, times_s=(0.0, 10_000.0))
    cache = FrameCache(tmp_path, GIB)
    with pytest.raises(VideoError):
        cache.get(bad)
    assert names(tmp_path) == set()
    assert names(tmp_path, ".partial") == set()


DECODE_MANY = """
cache = FrameCache(folder, 2**30)
sums = [int(cache.get(plan).sum()) for plan in plans]
print(json.dumps([cache.num_decoded, sums]))
"""

DIE_IN_MID_WRITE = """
from actrep_ray.media import frame_cache

def half(out, frames, key):
    out.write(b"half")
    out.flush()
    os.kill(os.getpid(), signal.SIGKILL)

frame_cache.write_frames = half
FrameCache(folder, 2**30).get(plans[0])
"""


def start_process(code: str, folder: Path, plans: list[FramePlan]) -> subprocess.Popen[str]:
    """Run code that finds a `folder` and `plans` in a process of its own."""
    head = (
        "import json, os, signal, sys\n"
        "import numpy as np\n"
        "from actrep_ray.media.frame_cache import FrameCache\n"
        "from data_prep.video import FramePlan\n"
        "folder = sys.argv[1]\n"
        "rows = json.loads(sys.argv[2])\n"
        "plans = [FramePlan(**row | {'times_s': tuple(row['times_s'])}) for row in rows]\n"
    )
    rows = json.dumps([asdict(plan) for plan in plans])
    return subprocess.Popen(
        [sys.executable, "-c", head + code, str(folder), rows], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.lengthy
def test_processes_share_the_work(plan: FramePlan, tmp_path: Path) -> None:
    plans = [shorter(plan, n) for n in (4, 5, 6, 7)]
    workers = [start_process(DECODE_MANY, tmp_path, plans) for _ in range(3)]
    seen = [json.loads(worker.communicate(timeout=120)[0]) for worker in workers]
    assert sum(num_decoded for num_decoded, _ in seen) == len(plans)
    assert [sums for _, sums in seen] == [[int(read_frames(one).sum()) for one in plans]] * 3


@pytest.mark.lengthy
def test_a_kill_in_mid_write_blocks_nobody_and_is_cleaned_up(
    plan: FramePlan, tmp_path: Path
) -> None:
    with start_process(DIE_IN_MID_WRITE, tmp_path, [plan]) as writer:
        assert writer.wait(timeout=120) == -signal.SIGKILL
    assert names(tmp_path) == set()
    assert len(names(tmp_path, ".partial")) == 1
    frames = FrameCache(tmp_path, 1).get(plan)  # also removes what the dead left behind
    assert np.array_equal(frames, read_frames(plan))
    assert names(tmp_path, ".partial") == set()


def test_a_clip_that_takes_too_long_is_an_error_and_leaves_nothing(
    plan: FramePlan, tmp_path: Path
) -> None:
    with pytest.raises(VideoError, match=r"not decoded within the deadline of 0\.001 s"):
        FrameCache(tmp_path, GIB, decode_timeout_s=0.001).get(plan)
    assert names(tmp_path) == set()
    assert FrameCache(tmp_path, GIB).get(plan).shape[0] == plan.num_frames

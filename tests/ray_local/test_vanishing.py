"""Videos that are deleted and cut, and workers that are killed, while a run goes on."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from actrep_ray.config import Recipe, load_recipe, override
from actrep_ray.driver.dealing import SampledClip, Sampler
from actrep_ray.driver.job import prepare_grpo
from actrep_ray.driver.strata import make_sampler
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import RolloutGroup
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.run.checkpoint import CheckpointStore
from actrep_ray.run.metrics import read_metrics
from actrep_ray.tasks.loading import load_clips
from actrep_ray.weights.sync import WeightSync
from data_prep.rows import Row
from data_prep.synthetic.dataset import write_dataset
from rewards.reference import Reference
from tests.ray_local.test_asynchronous import OneRank, RealHandle, Threads
from tests.ray_local.test_driver import END_S, START_S, Run, train

NUM_CLIPS, SIZE = 24, 3
RECIPE = """
stage: grpo
name: run
device: cpu
runs_dir: {folder}
model: {{path: {folder}/model, dtype: float32}}
data: {{path: {folder}/data/clips.jsonl, max_quarantined_share: 0.25}}
sampling: {{bins: [3]}}
video: {{max_pixels: 1024, cache_dir: {folder}/frames}}
rollout: {{engine: hf, max_model_len: 512, max_response_tokens: 8}}
reward: {{weights: {{"slow_letters:letters": 1}}}}
train: {{num_steps: 6, prompts_per_step: 3, group_size: 2}}
checkpoint: {{every: 1, keep: 1}}
"""
REWARD = """
import time

def letters(response, reference):
    time.sleep(0.05)
    return len(set(response.text)) / 100
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    sizes = {"train": NUM_CLIPS}
    write_dataset(tmp_path / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    write_tiny_model(tmp_path / "model")
    (tmp_path / "slow_letters.py").write_text(REWARD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    return load_recipe(tmp_path / "recipe.yaml")


def sampler_of(recipe: Recipe) -> Sampler[Row]:
    unchecked = override(recipe, ["data.check_videos=false"])  # some are broken by now
    return make_sampler(load_clips(unchecked, "train"), recipe)


def draws(recipe: Recipe, num_steps: int) -> list[list[SampledClip[Row]]]:
    """What the steps of a run ask about if nothing happens to it."""
    sampler = sampler_of(recipe)
    return [sampler.take(SIZE) for _ in range(num_steps)]


def cut(path: str) -> None:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


def quarantined(recipe: Recipe) -> list[dict[str, Any]]:
    path = recipe.run_dir / "quarantine.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.fixture
def pools(recipe: Recipe) -> Iterator[Threads]:
    """A real engine and a real rank, in threads."""
    rank = OneRank(recipe)
    rollouts = RolloutPool(recipe, lambda _: RealHandle(recipe))
    rollouts.add_workers()
    rollouts.wait_ready()
    try:
        yield Threads(rollouts, rank, rank, WeightSync(rank, rollouts))
    finally:
        rank.shutdown()


def test_videos_that_vanish_are_served_from_the_cache_or_replaced_from_their_stratum(
    recipe: Recipe, pools: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After step 1: one that was shown is deleted, one that was not is deleted, one is cut.

    In step 3, between the answers and the update, the cache is emptied and a video of the step
    deleted: of that the ranks find out.
    """
    steps = draws(recipe, 6)
    shown, third = steps[0][0].clip, steps[2][0].clip
    early = {one.source_id for step in steps[:2] for one in step}  # the second step is prefetched
    late = [one.clip for step in steps[3:] for one in step if one.source_id not in early]
    gone, short = late[0], late[-1]
    assert len({shown.id, third.id, gone.id, short.id}) == 4
    push: Callable[[int], dict[str, float]] = pools.weight_sync.push
    score: Callable[..., list[RolloutGroup]] = pools.rewards.score

    def break_videos(policy_version: int) -> dict[str, float]:
        if policy_version == 1:
            Path(shown.file).unlink()
            Path(gone.file).unlink()
            cut(short.file)
        return push(policy_version)

    def empty_cache(
        groups: Sequence[RolloutGroup], labels: Mapping[str, Reference]
    ) -> list[RolloutGroup]:
        if any(group.prompt.prompt_id.startswith("000003-0000") for group in groups):
            assert groups[0].prompt.row_id == third.id
            Path(third.file).unlink()
            for path in Path(recipe.video.cache_dir).iterdir():
                path.unlink()
        return score(groups, labels)

    monkeypatch.setattr(pools.weight_sync, "push", break_videos)
    monkeypatch.setattr(pools.rewards, "score", empty_cache)
    assert prepare_grpo(recipe).run(pools).step == 6  # type: ignore[arg-type]

    found = quarantined(recipe)
    reasons = {one["row"]: (one["path"], one["reason"]) for one in found}
    assert {gone.id, short.id, third.id} <= set(reasons)
    assert reasons[third.id] == (third.file, "unreadable_video")
    assert next(one["step"] for one in found if one["row"] == third.id) == 3
    assert set(reasons) <= {gone.id, short.id, third.id, shown.id}  # its cache was emptied, too
    rows = read_metrics(recipe.run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(7))
    assert rows[-1]["data/quarantined"] == len(found)
    assert sum(row.get("dropped/unreadable_video", 0) for row in rows) == len(found)
    for row in rows[1:]:  # each is whole, in the strata of its draw
        asked = row.get("sampling/0-3", 0) + row.get("sampling/4+", 0)
        assert asked - row.get("dropped/unreadable_video", 0) <= SIZE <= asked

    sampler, rest = sampler_of(recipe), {one["row"]: one["step"] for one in found}
    for step in range(1, 7):
        drawn = sampler.take(SIZE)
        while bad := [one for one in drawn if rest.get(one.source_id) == step]:
            for one in bad:
                del rest[one.source_id]
                sampler.exclude(one.source_id)
            drawn = [sampler.take_from(one.stratum, 1)[0] for one in bad]
    store = CheckpointStore(recipe.run_dir, keep=1)
    newest = store.newest()
    assert newest is not None
    assert newest.driver_state()["sampler"]["dealt"] == sampler.state_dict()["dealt"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("staleness", ["null", "1"])
def test_a_killed_worker_of_each_kind_and_broken_videos_end_no_run_by_default(
    recipe: Recipe, staleness: str, tmp_path: Path
) -> None:
    settings = ["train.num_steps=8", f"train.max_staleness={staleness}"]
    recipe = override(recipe, settings)
    steps = draws(recipe, 8)
    early = {one.source_id for step in steps[:4] for one in step}
    gone = next(one.clip for step in steps[5:] for one in step if one.source_id not in early)
    arguments = [part for setting in settings for part in ("--set", setting)]
    with train(tmp_path / "recipe.yaml", *arguments) as run:
        wait_for_step(run, recipe, 1)
        Path(gone.file).unlink()
        kill(run, "RewardWorker")
        wait_for_step(run, recipe, 2)
        kill(run, "RolloutWorker")
        wait_for_step(run, recipe, 4)
        kill(run, "_Rank")
        assert run.process.wait(timeout=START_S + END_S) == 0, run.output()
        told = run.output()
        run.assert_ends()
    rows = read_metrics(recipe.run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(9))
    assert [one["row"] for one in quarantined(recipe)] == [gone.id]
    assert rows[-1]["data/quarantined"] == 1
    assert "1 clip was quarantined (unreadable_video 1): " in told
    for key in ("rollout", "reward", "learner"):
        assert f"1 of 3 in an hour ({key}.max_restarts), after 0 s" in told


def wait_for_step(run: Run, recipe: Recipe, step: int) -> None:
    path = recipe.run_dir / "metrics.jsonl"

    def is_there() -> bool:
        return path.is_file() and any(row["step"] >= step for row in read_metrics(path))

    run.wait_for(f"step {step}", is_there, START_S)


def kill(run: Run, worker: str) -> None:
    """SIGKILL a run's worker of a class."""
    deadline = time.monotonic() + 60.0
    while True:
        for child in psutil.Process(run.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended
                if " ".join(child.cmdline()).startswith(f"ray::{worker}"):
                    child.kill()
                    return
        assert time.monotonic() < deadline, f"no process is ray::{worker}"
        time.sleep(0.05)

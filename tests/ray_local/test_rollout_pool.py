"""The rollout pool over real Ray actors with the transformers engine."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from actrep_ray.config import Recipe
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import Prompt, RefusedError, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.pool import RolloutPool, RolloutWorkerError
from actrep_ray.weights.buckets import WeightBucket, pack_weights
from actrep_ray.weights.sync import WeightSync
from data_prep.synthetic.clip import clip_spec
from data_prep.synthetic.render import draw_clip
from data_prep.video_writer import encode_mp4

SETTINGS = SamplingSettings(max_tokens=4, group_size=2)
GREEDY = SamplingSettings(max_tokens=4, temperature=0.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_tiny_model(folder / str(seed), seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe.model_validate(
        {
            "device": "cpu",
            "model": {"dtype": "float32"},
            "video": {"fps": 2, "cache_dir": str(tmp_path_factory.mktemp("frames"))},
            "rollout": {"engine": "hf", "num_workers": 2, "max_num_seqs": 4, "timeout_s": 180},
        }
    )


@pytest.fixture(scope="module")
def prompts(
    models: list[Path], recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> list[Prompt]:
    spec = clip_spec("easy", 3, "train", 0)
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    encode_mp4(path, draw_clip(spec), spec.fps)
    plan = QwenVLInputs(models[0]).plan(replace(spec.clip, video=str(path)), recipe.video)
    return [Prompt(f"p{i}", "clip", f"How many? {i}", plan) for i in range(5)]


@pytest.fixture(scope="module")
def pool(ray_session: Any, recipe: Recipe, models: list[Path]) -> Iterator[RolloutPool]:
    pool = RolloutPool.start(recipe, models[0])
    yield pool
    pool.shutdown()


@dataclass
class Learner:
    """Where a push gets its weights from, with whatever is to happen to them on the way."""

    put: Callable[[Any], Any]
    path: Path
    change: Callable[[WeightBucket], WeightBucket] = lambda bucket: bucket

    def export_weights_refs(self) -> list[Any]:
        weights = load_file(self.path / "model.safetensors")
        return [self.put(self.change(bucket)) for bucket in pack_weights(weights.items(), 2**20)]


def test_groups_come_in_the_order_of_the_prompts(
    pool: RolloutPool, prompts: Sequence[Prompt]
) -> None:
    groups = pool.generate(prompts, SETTINGS)
    assert [group.prompt for group in groups] == prompts
    assert {len(group.rollouts) for group in groups} == {2}
    assert pool.generate([], SETTINGS) == []
    pool.prefetch([prompt.plan for prompt in prompts])


def test_a_push_reaches_every_engine(
    ray_session: Any, pool: RolloutPool, prompts: Sequence[Prompt], models: list[Path]
) -> None:
    before = pool.generate(prompts, GREEDY)
    metrics = WeightSync(Learner(ray_session.put, models[1]), pool).push(7)
    assert metrics["sync/policy_version"] == 7
    assert pool.policy_versions() == [7, 7]
    after = pool.generate(prompts, GREEDY)
    assert {answer.policy_version for group in after for answer in group.rollouts} == {7}
    for old, new in zip(before, after, strict=True):
        gap = old.rollouts[0].rollout_log_probs - new.rollouts[0].rollout_log_probs
        assert np.abs(gap).max() > 1e-3
    WeightSync(Learner(ray_session.put, models[0]), pool).push(8)
    for old, new in zip(before, pool.generate(prompts, GREEDY), strict=True):
        np.testing.assert_array_equal(old.rollouts[0].token_ids, new.rollouts[0].token_ids)


def test_user_errors_keep_their_type(pool: RolloutPool, prompts: Sequence[Prompt]) -> None:
    with pytest.raises(RefusedError, match=r"^clip 'clip'.*exceed rollout.max_model_len") as error:
        pool.generate(prompts[:1], replace(SETTINGS, max_tokens=9000))
    assert len(str(error.value).splitlines()) == 1


def test_a_wait_has_a_deadline(
    pool: RolloutPool, prompts: Sequence[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "timeout_s", 1e-4)
    with pytest.raises(
        TimeoutError, match=r"rollout.timeout_s\) for 5 of 5 groups; .*worker 0 has"
    ):
        pool.generate(prompts, SETTINGS)
    monkeypatch.undo()
    again = [replace(prompt, prompt_id=f"again-{prompt.prompt_id}") for prompt in prompts]
    assert [group.prompt for group in pool.generate(again, SETTINGS)] == again


def test_a_weight_damaged_on_its_way_is_an_error(
    ray_session: Any, pool: RolloutPool, models: list[Path]
) -> None:
    def flip(bucket: WeightBucket) -> WeightBucket:
        first = bucket.data[0].copy()
        first[3] ^= 1
        return replace(bucket, data=(first, *bucket.data[1:]))

    # The last test of this pool: after such an error it is of no use.
    learner = Learner(ray_session.put, models[0], flip)
    with pytest.raises(RuntimeError, match=r"checksum .* after the transfer"):
        WeightSync(learner, pool).push(9)


def with_rollout(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update=changes)})


def test_a_dead_worker_is_named(
    ray_session: Any, recipe: Recipe, models: list[Path], prompts: Sequence[Prompt]
) -> None:
    recipe = with_rollout(recipe, num_workers=1, max_restarts=0)
    pool = RolloutPool.start(recipe, models[0])
    ray_session.kill(pool.workers[0])
    with pytest.raises(RolloutWorkerError, match="rollout worker 0 died in `advance`"):
        pool.generate(prompts, SETTINGS)


def test_workers_die_and_come(
    ray_session: Any,
    recipe: Recipe,
    models: list[Path],
    prompts: Sequence[Prompt],
    tmp_path: Path,
) -> None:
    """A killed worker's groups are answered by others; a new one loads the weights first."""
    recipe = with_rollout(recipe, num_workers=1, max_workers=2, max_restarts=1)
    pool = RolloutPool.start(recipe, models[0])
    try:
        WeightSync(Learner(ray_session.put, models[1]), pool).push(3)
        seen: list[RolloutGroup] = []
        [worker] = pool.workers
        pid = ray_session.get(worker.__ray_call__.remote(lambda _: os.getpid()))
        pool.submit(prompts, SETTINGS, seen.append)
        os.kill(pid, signal.SIGKILL)
        pool.wait(lambda: len(seen) == len(prompts), lambda: "the groups")
        assert pool.restarts.num_spent == 1
        assert sorted(group.prompt.prompt_id for group in seen) == ["p0", "p1", "p2", "p3", "p4"]
        assert any(group.prompt.attempt == 1 for group in seen)
        late = {group.rollouts[0].policy_version for group in seen if group.prompt.attempt}
        assert late == {3}, "the new worker did not load the weights before it took prompts"

        check_growth(pool, prompts, newest=2)  # 0 was killed, 1 replaced it
    finally:
        pool.shutdown()


def check_growth(pool: RolloutPool, prompts: Sequence[Prompt], newest: int) -> None:
    """A worker that comes while others work loads first; nothing is lost or repeated.

    Work goes on, each finished group followed by another, until the new worker has had a part.
    """
    pool.timeline.is_on = True
    asked: list[str] = []
    answered: list[RolloutGroup] = []

    def done_by_new() -> list[str]:
        return [s.what for s in pool.timeline.spans if s.lane == f"engine {newest}"]

    def ask(prompt: Prompt) -> None:
        asked.append(f"q{len(asked)}")
        pool.submit([replace(prompt, prompt_id=asked[-1])], SETTINGS, on_group)

    def on_group(group: RolloutGroup) -> None:
        answered.append(group)
        if "generate" not in done_by_new():
            ask(group.prompt)

    for prompt in prompts:
        ask(prompt)
    assert (pool.grow(), pool.grow()) == (1, 0)  # up to rollout.max_workers
    pool.wait(lambda: "generate" in done_by_new(), lambda: "the new worker to take part")
    assert pool.num_workers == 2
    pool.wait(lambda: len(answered) == len(asked), lambda: "the groups")
    assert sorted(group.prompt.prompt_id for group in answered) == sorted(asked)
    assert {r.policy_version for group in answered for r in group.rollouts} == {3}
    assert done_by_new()[:2] == ["load weights", "generate"]


def test_a_worker_that_cannot_start_says_why(ray_session: Any, recipe: Recipe) -> None:
    with pytest.raises(RolloutWorkerError, match="not a model checkpoint"):
        RolloutPool.start(with_rollout(recipe, num_workers=1), "missing-folder")

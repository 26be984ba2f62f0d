"""Rows that cannot be used: counted, listed, replaced from their stratum, never drawn again."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actrep_ray.cluster.mailbox import Mailbox
from actrep_ray.config import Recipe, load_recipe
from actrep_ray.driver.job import prepare_grpo
from actrep_ray.driver.phases import GrpoData, Phases
from actrep_ray.driver.pools import Pools
from actrep_ray.driver.quarantine import (
    Quarantine,
    QuarantinedRow,
    QuarantineFullError,
)
from actrep_ray.driver.synchronous import SynchronousDriver
from actrep_ray.media.frame_cache import FrameCache
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import LearnerRow, Prompt, Refusal, RefusedError, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings, make_rollout
from actrep_ray.run.metrics import MetricLogger, read_metrics
from actrep_ray.run.profile import Timeline
from actrep_ray.tasks.loading import most_rows
from data_prep.files import DataError
from data_prep.synthetic.dataset import write_dataset
from data_prep.video import FramePlan, VideoError
from rewards.reference import Reference
from tests.unit.saved import SavesConfig

pytestmark = pytest.mark.lengthy

GONE = "unreadable_video"


class Workers(SavesConfig):
    """All pools at once: engines that refuse some rows, a learner that cannot read others."""

    def __init__(self, refuses: Sequence[str] = (), cannot_read: Sequence[str] = ()) -> None:
        self.refuses = refuses
        self.cannot_read = cannot_read
        self.calls: list[list[Prompt]] = []
        self.trained: list[list[str]] = []
        self.plans: list[FramePlan] = []
        self.timeline = Timeline()
        self.mailbox = Mailbox()

    def asleep(self) -> AbstractContextManager[None]:
        return nullcontext()

    def grow(self) -> int:
        return 0

    def prefetch(self, plans: list[FramePlan]) -> None:
        self.plans += plans

    def answer(
        self, prompts: Sequence[Prompt], settings: SamplingSettings
    ) -> tuple[list[RolloutGroup], list[Refusal]]:
        self.calls.append(list(prompts))
        refused = [
            Refusal(prompt, GONE, f"{prompt.plan.video}: no such video")
            for prompt in prompts
            if prompt.row_id in self.refuses
        ]
        asked = [prompt for prompt in prompts if prompt.row_id not in self.refuses]
        return [group_of(prompt, settings.group_size) for prompt in asked], refused

    def generate(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> list[RolloutGroup]:
        groups, refused = self.answer(prompts, settings)
        if refused:
            raise RefusedError(refused)
        return groups

    def score(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Reference]
    ) -> list[RolloutGroup]:
        values = np.array([0.0, 1.0], np.float32)
        return [replace(group, rewards=values, totals=values, readings=(1, 2)) for group in groups]

    def unreadable(self, rows: Sequence[LearnerRow]) -> dict[str, tuple[str, str]]:
        return {
            row.row_id: (GONE, f"{row.plan.video}: cut short")
            for row in rows
            if row.plan is not None
            and any(row.row_id.endswith(f"-{name}") for name in self.cannot_read)
        }

    def update(self, rows: list[LearnerRow], step: int) -> dict[str, float]:
        self.trained.append([row.row_id for row in rows])
        return {"log_prob_gap_mean": 0.0}

    def push(self, policy_version: int) -> dict[str, float]:
        return {}

    def load_state(self, folder: Path) -> None:
        """Nothing is held."""


def group_of(prompt: Prompt, size: int) -> RolloutGroup:
    rollouts = tuple(
        make_rollout(
            prompt, i, token_ids=[1], log_probs=[-1.0], text="", is_stopped=True, policy_version=0
        )
        for i in range(size)
    )
    return RolloutGroup(prompt, rollouts, num_prompt_tokens=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("run")
    sizes = {"train": 24, "validation": 4}
    data = write_dataset(folder / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    write_tiny_model(folder / "model")
    settings = {
        "device": "cpu",
        "model.path": folder / "model",
        "data.path": data,
        "video.cache_dir": folder / "frames",
        "train.num_steps": 3,
        "train.prompts_per_step": 8,
        "train.group_size": 2,
        "sampling.bins": "[2, 5]",
        "checkpoint.every": 1,
        "checkpoint.in_background": "false",
        "data.max_quarantined_share": 0.25,
    }
    return load_recipe(None, [f"{key}={value}" for key, value in settings.items()])


@pytest.fixture
def recipe(base: Recipe, tmp_path: Path) -> Recipe:
    return base.model_copy(update={"runs_dir": str(tmp_path)})


def changed(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def pools_of(workers: Any) -> Pools:
    return Pools(workers, workers, workers, workers)


def drive(recipe: Recipe, workers: Workers, *, resume: bool = False) -> SynchronousDriver:
    driver = prepare_grpo(recipe, resume=resume).driver(pools_of(workers))
    assert isinstance(driver, SynchronousDriver)
    driver.run()
    return driver


def listed(recipe: Recipe) -> list[dict[str, Any]]:
    path = recipe.run_dir / "quarantine.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the list and its limit


def test_a_run_bears_a_share_of_its_clips_and_one_at_least() -> None:
    table = {(0.01, 1000): 10, (0.01, 1099): 10, (0.01, 99): 1, (0.01, 1): 1, (0.29, 100): 29}
    assert {key: most_rows(*key) for key in table} == table
    assert most_rows(0.0, 1000) == 0  # none, where none may be


def row(name: str, step: int = 1) -> QuarantinedRow:
    return QuarantinedRow(name, f"/data/{name}.mp4", step, GONE, f"{name}.mp4: no such video")


def test_one_row_too_many_is_listed_and_ends_the_run(recipe: Recipe) -> None:
    quarantine = Quarantine(changed(recipe, "data", max_quarantined_share=0.02), 100)
    quarantine.add([row("a"), row("b"), row("a", step=2)])
    assert quarantine.metrics() == {"data/quarantined": 2.0}
    told = (
        r"3 of 100 clips cannot be used, more than data\.max_quarantined_share=0\.02 allows "
        r"\(2\): see .*; the last: c\.mp4: no such video"
    )
    with pytest.raises(QuarantineFullError, match=told):
        quarantine.add([row("c", step=7)])
    assert [(one["row"], one["step"]) for one in listed(recipe)] == [("a", 1), ("b", 1), ("c", 7)]
    assert listed(recipe)[0] == {
        "row": "a",
        "path": "/data/a.mp4",
        "step": 1,
        "reason": GONE,
        "message": "a.mp4: no such video",
    }
    assert isinstance(QuarantineFullError(""), DataError)  # one line for the user, exit code 2


def test_none_is_borne_where_the_share_is_none(recipe: Recipe) -> None:
    quarantine = Quarantine(changed(recipe, "data", max_quarantined_share=0.0), 100)
    with pytest.raises(QuarantineFullError, match="1 of 100 clips"):
        quarantine.add([row("a")])


def test_a_list_goes_back_to_that_of_a_checkpoint(recipe: Recipe) -> None:
    quarantine = Quarantine(recipe, 100)
    quarantine.add([row("a")])
    saved = json.loads(json.dumps(quarantine.state()))
    quarantine.add([row("b", step=2)])
    resumed = Quarantine(recipe, 100)
    resumed.load_state(saved)
    assert resumed.state() == saved
    assert [one["row"] for one in listed(recipe)] == ["a"]
    assert resumed.describe() == (
        f"1 clip was quarantined (unreadable_video 1): {recipe.run_dir / 'quarantine.jsonl'}"
    )
    resumed.load_state([])
    assert (listed(recipe), resumed.describe()) == ([], None)


# --- the loop


def rows_of_first_step(recipe: Recipe) -> list[Prompt]:
    """What a run with this seed asks first."""
    data = GrpoData.load(recipe)
    phases = Phases(recipe, pools_of(Workers()), data, QwenVLInputs(recipe.model.path))
    prompts, _ = phases.issue(1)
    return prompts


def test_a_refused_prompt_is_followed_by_one_of_its_stratum_whatever_the_refill_factor(
    recipe: Recipe, tmp_path: Path
) -> None:
    assert recipe.train.max_refill_factor == 0
    first, second, *_ = rows_of_first_step(recipe)
    workers = Workers(refuses=[first.row_id, second.row_id])
    phases = Phases(
        recipe, pools_of(workers), GrpoData.load(recipe), QwenVLInputs(recipe.model.path)
    )
    driver = SynchronousDriver(phases)
    with MetricLogger(tmp_path) as logger:
        groups, labels, _, refused = driver.collect(1, logger)
    asked, again, *_ = workers.calls
    assert refused == {GONE: 2}
    assert [prompt.stratum for prompt in again[:2]] == [first.stratum, second.stratum]
    assert [prompt.num_refills for prompt in again] == [1, 1]
    wanted = Counter(prompt.stratum for prompt in asked)
    assert Counter(group.prompt.stratum for group in groups) == wanted
    ids = [prompt.prompt_id for call in workers.calls for prompt in call]
    assert len(set(ids)) == len(ids)
    assert {group.prompt.clip_id for group in groups} <= set(labels)


def test_a_group_that_the_ranks_cannot_read_is_dropped_and_replaced(
    recipe: Recipe, tmp_path: Path
) -> None:
    first, *_ = rows_of_first_step(recipe)
    workers = Workers(cannot_read=[first.clip_id])
    drive(changed(recipe, "train", num_steps=1), workers)
    [trained] = workers.trained
    assert len(trained) == 8  # in full, though one was dropped
    assert not any(name.endswith(first.clip_id) for name in trained)
    [_, last] = read_metrics(recipe.run_dir / "metrics.jsonl")
    assert (last["dropped/groups"], last[f"dropped/{GONE}"]) == (1, 1)
    assert last["data/quarantined"] == 1
    assert [one["row"] for one in listed(recipe)] == [first.row_id]


def test_rows_in_quarantine_are_not_drawn_again_also_after_a_resume(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = rows_of_first_step(recipe)
    workers = Workers(refuses=[first.row_id])
    drive(changed(recipe, "train", num_steps=6), workers)
    asked = [prompt.row_id for call in workers.calls for prompt in call]
    assert asked.count(first.row_id) == 1
    assert len(asked) == 6 * 8 + 1  # each clip of train came about twice
    assert "1 clip was quarantined (unreadable_video 1): " in capsys.readouterr().out
    rows = read_metrics(recipe.run_dir / "metrics.jsonl")[1:]
    assert [one["data/quarantined"] for one in rows] == [1] * 6

    whole = Workers()  # the video is there again: the row stays where it is
    drive(changed(recipe, "train", num_steps=9), whole, resume=True)
    asked = [prompt.row_id for call in whole.calls for prompt in call]
    assert first.row_id not in asked
    assert len(asked) == 3 * 8


def test_a_resumed_run_finds_again_what_was_found_after_its_checkpoint(recipe: Recipe) -> None:
    longer = changed(changed(recipe, "train", num_steps=4), "checkpoint", every=2)
    bad = [prompt.row_id for prompt in rows_of_first_step(recipe)]
    uninterrupted = Workers(refuses=bad[:1])
    drive(longer, uninterrupted)
    third = uninterrupted.calls[3][0].row_id  # of step 3, after the one refill of step 1

    elsewhere = longer.model_copy(update={"name": "other"})
    whole = Workers(refuses=[bad[0], third])
    drive(elsewhere, whole)
    killed = longer.model_copy(update={"name": "killed"})
    cut = Workers(refuses=[bad[0], third])

    def stop(rows: list[LearnerRow], step: int) -> dict[str, float]:
        if step == 4:
            raise KeyboardInterrupt
        return Workers.update(cut, rows, step)

    cut.update = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        drive(killed, cut)
    assert [one["row"] for one in listed(killed)] == [bad[0], third]
    resumed = Workers(refuses=[bad[0], third])
    drive(killed, resumed, resume=True)
    asked = [[prompt.prompt_id for prompt in call] for call in whole.calls]
    assert [[prompt.prompt_id for prompt in call] for call in resumed.calls] == asked[3:]
    assert listed(killed) == listed(elsewhere)


def test_more_than_the_run_bears_ends_it(recipe: Recipe) -> None:
    bad = [prompt.row_id for prompt in rows_of_first_step(recipe)]
    strict = changed(recipe, "data", max_quarantined_share=0.01)  # of 24 clips: one
    with pytest.raises(QuarantineFullError, match="2 of 24 clips cannot be used"):
        drive(strict, Workers(refuses=bad))


def test_a_resumed_run_counts_rows_of_broken_videos_not_videos(
    recipe: Recipe, tmp_path: Path
) -> None:
    """Three rows are of one video: they are as many as three videos of one row each."""
    source, path = Path(recipe.data.path), tmp_path / "clips.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    for row in rows:
        row["video"] = str((source.parent / row["video"]).resolve())
    train = [row for row in rows if row["split"] == "train"]
    for row in train[:3]:
        row["video"] = str(tmp_path / "gone.mp4")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    there = changed(recipe, "data", path=str(path), allow_outside=[str(source.parent)])
    bears = 3 / len(train)
    GrpoData.load(changed(there, "data", max_quarantined_share=bears), is_resumed=True)
    with pytest.raises(DataError, match=rf"; 3 of {len(train)} rows cannot be used, more than"):
        GrpoData.load(changed(there, "data", max_quarantined_share=bears - 0.01), is_resumed=True)


def test_a_clip_of_the_evaluation_that_cannot_be_read_is_left_out_and_counted(
    recipe: Recipe,
) -> None:
    evaluating = changed(changed(recipe, "eval", every=1), "train", num_steps=1)
    gone = GrpoData.load(evaluating).evaluation[1].id
    drive(evaluating, Workers(refuses=[gone]))
    path = recipe.run_dir / "predictions-000001.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert not any(gone in line for line in lines)
    assert [(one["row"], one["step"]) for one in listed(recipe)] == [(gone, 0)]


def test_a_run_goes_on_without_an_evaluation_where_no_clip_of_it_can_be_read(
    recipe: Recipe,
) -> None:
    evaluating = changed(changed(recipe, "eval", every=1), "train", num_steps=1)
    gone = [clip.id for clip in GrpoData.load(evaluating).evaluation]
    drive(evaluating, Workers(refuses=gone))
    assert sorted(one["row"] for one in listed(recipe)) == sorted(gone)
    assert not (recipe.run_dir / "predictions-000001.jsonl").exists()


# --- videos that vanish or are cut while a run goes on


def test_frames_that_are_cached_are_asked_for_whatever_became_of_their_video(
    recipe: Recipe, tmp_path: Path
) -> None:
    sizes = {"train": 4}
    path = write_dataset(tmp_path / "own", level="easy", num_clips=sizes, seed=1, num_processes=1)
    recipe = changed(recipe, "data", path=str(path))
    data = GrpoData.load(recipe)
    phases = Phases(recipe, pools_of(Workers()), data, QwenVLInputs(recipe.model.path))
    clips = data.train
    before = [phases.plan(clip) for clip in clips]
    cache = FrameCache.of(recipe.video)
    frames = [cache.get(plan).copy() for plan in before[:2]]
    Path(clips[0].file).unlink()
    content = Path(clips[1].file).read_bytes()
    for clip in clips[1:3]:
        Path(clip.file).write_bytes(content[: len(content) // 2])
    Path(clips[3].file).unlink()

    after = [phases.plan(clip) for clip in clips]
    assert after == before  # the driver looks at no file any more
    fresh = FrameCache.of(recipe.video)  # as another process has it
    for plan, expected in zip(after[:2], frames, strict=True):
        assert np.array_equal(fresh.get(plan), expected)
    for plan in after[2:]:
        with pytest.raises(VideoError):
            fresh.get(plan)


def test_a_resumed_run_leaves_as_many_broken_videos_to_be_found_as_it_bears(
    recipe: Recipe, tmp_path: Path
) -> None:
    sizes = {"train": 8}
    path = write_dataset(tmp_path / "own", level="easy", num_clips=sizes, seed=1, num_processes=1)
    recipe = changed(recipe, "data", path=str(path))  # 0.25 of 8 are two
    videos = [Path(clip.file) for clip in GrpoData.load(recipe).train]
    videos[0].unlink()
    with pytest.raises(VideoError, match="no such video"):
        GrpoData.load(recipe)
    assert len(GrpoData.load(recipe, is_resumed=True).train) == 8
    videos[1].write_bytes(b"")
    assert len(GrpoData.load(recipe, is_resumed=True).train) == 8
    videos[2].unlink()
    with pytest.raises(DataError, match=r"no such video .*; 3 of 8 rows cannot be used"):
        GrpoData.load(recipe, is_resumed=True)

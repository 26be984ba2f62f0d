"""The phases of the GRPO loop, each alone, and the loop itself over fakes that keep its books."""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from actrep_ray.cluster.mailbox import Mailbox
from actrep_ray.config import Recipe, load_recipe, override
from actrep_ray.driver.alarms import LearningAlarmError
from actrep_ray.driver.checkpoints import RunCheckpoints
from actrep_ray.driver.contrast import ContrastSource
from actrep_ray.driver.groups import row_of, split_trainable
from actrep_ray.driver.job import prepare_grpo
from actrep_ray.driver.metrics import rollout_metrics
from actrep_ray.driver.phases import (
    GrpoData,
    LogProbGapError,
    Phases,
    check_log_prob_gap,
    source_for,
)
from actrep_ray.driver.pools import Pools
from actrep_ray.driver.synchronous import SynchronousDriver
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import LearnerRow, Prompt, Refusal, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings, make_rollout
from actrep_ray.run.checkpoint import CheckpointStore
from actrep_ray.run.metrics import read_metrics
from actrep_ray.run.profile import Timeline
from actrep_ray.tasks.loading import load_task
from data_prep.synthetic.dataset import write_dataset
from data_prep.video import FramePlan
from rewards.grammar.read import parse
from rewards.reference import Reference
from tests.unit.saved import SavesConfig

TASK = load_task("counting")
PLAN = FramePlan("a.mp4", 1, (0, 1), 4.0, 32, 32)


def prompt(name: str, stratum: str = "1-5") -> Prompt:
    return Prompt(name, f"clip-{name}", "How many?", PLAN, stratum)


def group_of(
    asked: Prompt, texts: list[str], rewards: list[float], *, policy_version: int = 0
) -> RolloutGroup:
    rollouts = tuple(
        make_rollout(
            asked,
            i,
            token_ids=list(range(len(text))),
            log_probs=[-1.0] * len(text),
            text=text,
            is_stopped=not text.endswith("..."),
            policy_version=policy_version,
        )
        for i, text in enumerate(texts)
    )
    values = np.array(rewards, np.float32)
    parts = {"obo": values, "cycles": np.full(len(values), np.nan, np.float32)}
    claims = tuple(TASK.claims(parse(text)) for text in texts)
    readings = tuple(TASK.read(parse(text)) for text in texts)
    advantages = values - values.mean()
    scored = RolloutGroup(asked, rollouts, 10, values, parts, advantages, values)
    return replace(scored, readings=readings, claims=claims)


def test_groups_without_a_gradient_are_dropped_by_reason() -> None:
    groups = [
        group_of(prompt("a"), ["x", "y"], [0.0, 0.0]),
        group_of(prompt("b"), ["x", "y"], [1.0, 1.0]),
        group_of(prompt("c"), ["x", "y"], [0.3, 0.3]),
        group_of(prompt("d"), ["x", "y"], [0.3, 0.4]),
    ]
    not_scored = replace(group_of(prompt("e"), ["x"], [np.nan]), failure="reward_raised")
    trainable, dropped = split_trainable([*groups, not_scored], load_recipe(None))
    assert [group.prompt.prompt_id for group in trainable] == ["d"]
    assert dropped == Counter(all_wrong=1, all_right=1, all_equal=1, reward_raised=1)


def test_the_logged_reward_is_what_answers_earned() -> None:
    group = replace(
        group_of(prompt("a"), ["x", "y"], [0.5, 1.0]), rewards=np.array([-0.7, 0.7], np.float32)
    )
    labels = {"clip-a": Reference(4, None, 5.0, "squat")}
    metrics = rollout_metrics([group], [group], Counter(), labels, 1, load_task("counting"))
    assert metrics["reward/mean"] == pytest.approx(0.75)
    assert metrics["reward/std_in_group"] == pytest.approx(0.25)


def test_metrics_of_a_step_by_hand() -> None:
    groups = [
        group_of(
            prompt("a"), ["<answer>3</answer>", "<answer>5</answer>"], [1.0, 0.0], policy_version=3
        ),
        group_of(prompt("b", "0"), ["<answer>1</answer>", "nothing..."], [0.5, 0.0]),
    ]
    labels = {
        "clip-a": Reference(4, None, 5.0, "squat"),
        "clip-b": Reference(1, None, 5.0, "squat"),
    }
    metrics = rollout_metrics(
        groups, groups[:1], Counter(all_wrong=2), labels, step=4, task=load_task("counting")
    )
    expected = {
        "reward/mean": 0.375,
        "reward/std_in_group": (0.5 + 0.25) / 2,
        "reward/obo": 0.375,
        "train/obo": 3 / 4,  # errors 1, 1, 0, unparsed
        "train/obz": 1 / 4,
        "train/mae": (1 / 4.1 + 1 / 4.1 + 0 + 1 / 1.1) / 4,
        "train/parse_rate": 3 / 4,
        "rollout/response_tokens": (18 + 18 + 18 + 10) / 4,
        "rollout/truncated": 1 / 4,
        "rollout/policy_version_lag": (0 + 0 + 3 + 3) / 4,
        "dropped/groups": 2,
        "dropped/all_wrong": 2,
        "headroom/pass_at_1": (0 + 1 / 2) / 2,
        "headroom/pass_at_k": (0 + 1) / 2,
        "headroom/majority": (0 + 1) / 2,  # 1 against nothing to read
        "headroom/parse_rate": 3 / 4,
        "headroom/flat": 2 / 2,
        "headroom/useful_groups": 1,
        "sampling/1-5": 1,
        "sampling/0": 1,
        "sampling/refilled": 0,
        "trained/1-5": 1,
        "trained/0": 0,
    }
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)
    assert "reward/cycles" not in metrics  # it applied to no answer


def test_a_row_carries_what_the_learner_needs() -> None:
    group = group_of(prompt("a"), ["ab", "cde"], [1.0, 0.0])
    row = row_of(group)
    assert (row.row_id, row.question, row.plan, row.num_prompt_tokens) == (
        "a",
        "How many?",
        PLAN,
        10,
    )
    assert [len(response) for response in row.responses] == [2, 3]
    assert row.advantages.tolist() == [0.5, -0.5]
    assert [len(values) for values in row.rollout_log_probs] == [2, 3]


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 0.01), ("bfloat16", 0.03)])
def test_a_gap_between_rollout_and_learner_stops_a_run(dtype: str, limit: float) -> None:
    recipe = load_recipe(None, [f"model.dtype={dtype}"])
    check_log_prob_gap(0.9 * limit, recipe)
    for gap in (1.1 * limit, float("nan")):
        with pytest.raises(LogProbGapError, match=rf"train.max_log_prob_gap={limit} .*{dtype}"):
            check_log_prob_gap(gap, recipe)
    check_log_prob_gap(1.1 * limit, override(recipe, ["train.on_log_prob_gap=log"]))
    wider = override(recipe, [f"train.max_log_prob_gap={2 * limit}"])
    check_log_prob_gap(1.1 * limit, wider)
    with pytest.raises(LogProbGapError, match=rf"train.max_log_prob_gap={2 * limit}"):
        check_log_prob_gap(2.1 * limit, wider)


class Book(SavesConfig):
    """What happened, in order, and fakes of the pools that write it down.

    The fake policy knows its version only: an answer is right where place + version is even.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.engine_version = -1
        self.learner_step = 0
        self.timeline = Timeline()
        self.mailbox = Mailbox()
        self.prefetched: list[str] = []

    # the rollout pool
    def asleep(self) -> AbstractContextManager[None]:
        return nullcontext()

    def grow(self) -> int:
        return 0

    def prefetch(self, plans: list[FramePlan]) -> None:
        self.prefetched = [plan.hash for plan in plans]

    def answer(
        self, prompts: list[Prompt], settings: SamplingSettings
    ) -> tuple[list[RolloutGroup], list[Refusal]]:
        self.events.append(("generate", self.engine_version))
        if self.prefetched:  # after the first step: the right clips were
            assert self.prefetched == [asked.plan.hash for asked in prompts]
        size = settings.group_size
        texts = [f"<answer>{i}</answer>" for i in range(size)]
        groups = [
            replace(
                group_of(asked, texts, [0.0] * size, policy_version=self.engine_version),
                rewards=np.zeros(0, np.float32),
            )
            for asked in prompts
        ]
        return groups, []

    # the reward pool
    def score(self, groups: list[RolloutGroup], labels: dict[str, Reference]) -> list[RolloutGroup]:
        assert {group.prompt.clip_id for group in groups} <= set(labels)
        self.events.append(("score", len(groups)))
        scored = []
        for i, group in enumerate(groups):
            values = np.arange(len(group.rollouts), dtype=np.float32) * (i > 0)
            parts = {"obo": values}
            scored.append(replace(group, rewards=values, totals=values, reward_parts=parts))
        return scored

    # the learner pool
    def unreadable(self, rows: list[LearnerRow]) -> dict[str, tuple[str, str]]:
        return {}

    def update(self, rows: list[LearnerRow], step: int) -> dict[str, float]:
        for row in rows:
            assert abs(row.advantages.sum()) < 1e-5
        self.events.append(("update", len(rows)))
        self.learner_step = step
        return {"loss": 0.5, "log_prob_gap_mean": 1e-6}

    def begin_save(self, folder: Path) -> int:
        (folder / "training" / "learner.json").write_text(str(self.learner_step))
        return super().begin_save(folder)

    def load_state(self, folder: Path) -> None:
        self.learner_step = int((folder / "learner.json").read_text())
        self.events.append(("load_state", self.learner_step))

    # the weight sync
    def push(self, policy_version: int) -> dict[str, float]:
        assert policy_version == self.learner_step
        self.events.append(("push", policy_version))
        self.engine_version = policy_version
        return {"sync/load_s": 0.0}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("run")
    sizes = {"train": 6, "validation": 2}
    data = write_dataset(folder / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    write_tiny_model(folder / "model")
    settings = {
        "runs_dir": folder,
        "model.path": folder / "model",
        "data.path": data,
        "train.num_steps": 4,
        "train.prompts_per_step": 3,
        "train.group_size": 2,
        "checkpoint.every": 2,
    }
    return load_recipe(None, [f"{key}={value}" for key, value in settings.items()])


def drive(recipe: Recipe, book: Any, *, resume: bool = False) -> SynchronousDriver:
    driver = prepare_grpo(recipe, resume=resume).driver(Pools(book, book, book, book))
    assert isinstance(driver, SynchronousDriver)
    driver.run()
    return driver


def test_the_loop_keeps_its_order_and_goes_on_where_it_was(recipe: Recipe) -> None:
    book = Book()
    drive(recipe, book)
    expected: list[tuple[str, int]] = [("push", 0)]
    for step in range(1, 5):  # the first of three groups has no gradient
        expected += [("generate", step - 1), ("score", 3), ("update", 2), ("push", step)]
    assert book.events == expected
    rows = read_metrics(recipe.run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[1]["learner/loss"] == 0.5
    assert rows[1]["dropped/all_wrong"] == 1
    assert rows[1]["rollout/policy_version_lag"] == 0

    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"num_steps": 5})})
    second = Book()
    driver = drive(longer, second, resume=True)
    assert second.events[:3] == [("load_state", 4), ("push", 4), ("generate", 4)]
    assert [row["step"] for row in read_metrics(recipe.run_dir / "metrics.jsonl")][-1] == 5
    assert driver.phases.sampler.state_dict()["num_drawn"] == 5 * 3
    names = sorted(path.name for path in (recipe.run_dir / "checkpoints").iterdir())
    assert names == ["newest.json", "step-000004", "step-000005"]  # keep=2
    assert CheckpointStore(recipe.run_dir, keep=2).newest().step == 5  # type: ignore[union-attr]


def test_a_step_is_in_the_metrics_before_its_checkpoint_is_begun(
    recipe: Recipe, tmp_path: Path
) -> None:
    """A run that is killed while it saves may go on from that checkpoint, and lacks no row."""

    class Look(Book):
        seen: ClassVar[list[int]] = []

        def begin_save(self, folder: Path) -> int:
            rows = read_metrics(tmp_path / recipe.name / "metrics.jsonl")
            self.seen.append(rows[-1]["step"])
            return super().begin_save(folder)

    drive(override(recipe, [f"runs_dir={tmp_path}"]), Look())
    assert Look.seen == [2, 4]


class Flat(Book):
    """All answers earn the same from a step on, so that nothing is trained any more."""

    def score(self, groups: list[RolloutGroup], labels: dict[str, Reference]) -> list[RolloutGroup]:
        scored = super().score(groups, labels)
        if self.engine_version < 2:
            return scored
        flat = np.zeros(2, np.float32)
        return [replace(g, rewards=flat, totals=flat, reward_parts={"obo": flat}) for g in scored]

    def push(self, policy_version: int) -> dict[str, float]:
        self.engine_version = policy_version
        return {}


def test_a_run_that_learns_nothing_ends_with_a_checkpoint_and_an_error(
    recipe: Recipe, tmp_path: Path
) -> None:
    steps = ["train.num_steps=50", "checkpoint.every=0", "train.max_untrained_steps=3"]
    flat = override(recipe, [f"runs_dir={tmp_path}", *steps])
    with pytest.raises(LearningAlarmError, match=r"steps 3 to 5 .* of 9 all .* \(9 all_wrong\)"):
        drive(flat, Flat())
    assert [row["step"] for row in read_metrics(flat.run_dir / "metrics.jsonl")] == [
        0,
        *range(1, 6),
    ]
    newest = CheckpointStore(flat.run_dir, keep=2).newest()
    assert newest is not None
    assert newest.step == 5
    # Settings of the alarm may change; told to go on, the same run does.
    longer = override(flat, ["train.num_steps=7", "train.on_untrained=log"])
    drive(longer, Flat(), resume=True)
    assert CheckpointStore(flat.run_dir, keep=2).newest().step == 7  # type: ignore[union-attr]


def test_advantages_are_whitened_over_exactly_the_groups_that_are_trained(
    recipe: Recipe, tmp_path: Path
) -> None:
    """One of three groups is flat: it is dropped before the mean and deviation are taken."""
    settings = ["algorithm.advantage=reinforce_plus_plus_baseline", f"runs_dir={tmp_path}"]

    class Rows(Book):
        def update(self, rows: list[LearnerRow], step: int) -> dict[str, float]:
            self.rows = rows
            return super().update(rows, step)

    book = Rows()
    drive(override(recipe, [*settings, "train.num_steps=1"]), book)
    assert [event for event in book.events if event[0] == "update"] == [("update", 2)]
    found = np.concatenate([row.advantages for row in book.rows])  # answers of equal length
    # +-0.5 over the deviation of 72 tokens; the flat group's 36 zeros would make it 1.22.
    assert found == pytest.approx(np.array([-1, 1, -1, 1]) * (71 / 72) ** 0.5, abs=1e-5)


def test_a_checkpoint_clears_what_dead_writers_left_on_any_machine(
    recipe: Recipe, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    (left := store.folder / ".step-000001.elsewhere.7.0123abcd.partial").mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    store.write(2, recipe, {}, Book())
    assert sorted(path.name for path in store.folder.iterdir()) == ["newest.json", "step-000002"]


def test_prompts_are_drawn_from_train_with_ids_of_their_own(recipe: Recipe) -> None:
    data = GrpoData.load(recipe)
    inputs = QwenVLInputs(recipe.model.path)
    book: Any = Book()
    phases = Phases(recipe, Pools(book, book, book, book), data, inputs)
    first, labels = phases.issue(1)
    second, _ = phases.issue(2)
    ids = [asked.prompt_id for asked in (*first, *second)]
    assert len(set(ids)) == 6
    assert {asked.clip_id for asked in first} == set(labels)
    assert all(asked.plan.hash and asked.stratum for asked in first)


def test_the_recipe_decides_once_whether_groups_have_a_contrast(recipe: Recipe) -> None:
    book: Any = Book()
    assert source_for(recipe, book, book).groups_per_prompt == 1
    contrasting = override(recipe, ["algorithm.temporal_contrast.weight=0.3"])
    source = source_for(contrasting, book, book)
    assert isinstance(source, ContrastSource)
    assert source.groups_per_prompt == 2
    assert source.settings.group_size == recipe.train.group_size


def test_one_update_alone_checks_answers_of_the_learners_own_weights(recipe: Recipe) -> None:
    class Gap(Book):
        def update(self, rows: list[LearnerRow], step: int) -> dict[str, float]:
            return {"loss": 0.5, "log_prob_gap_mean": 1.0}

    book: Any = Gap()
    strict = override(recipe, ["model.dtype=float32"])
    phases = Phases(strict, Pools(book, book, book, book), GrpoData.load(recipe), None)  # type: ignore[arg-type]
    assert phases.update([], 1) == {}
    old = [group_of(prompt("a"), ["x", "y"], [0.0, 1.0], policy_version=0)]
    assert phases.update(old, 2) == {"learner/loss": 0.5, "learner/log_prob_gap_mean": 1.0}
    with pytest.raises(LogProbGapError):
        phases.update(old, 1)  # version 0 is what step 1 starts from


def test_when_checkpoints_are_due_and_which_is_the_last(recipe: Recipe, tmp_path: Path) -> None:
    book: Any = Book()
    recipe = override(recipe, [f"runs_dir={tmp_path}"])
    every = RunCheckpoints(override(recipe, ["checkpoint.every=2"]), book, 5, None)
    assert [step for step in range(1, 6) if every.is_due(step)] == [2, 4, 5]
    last = RunCheckpoints(override(recipe, ["checkpoint.every=0"]), book, 5, None)
    assert [step for step in range(1, 6) if last.is_due(step)] == [5]

    assert every.restore() == 0
    with pytest.raises(AssertionError, match="no checkpoint exists"):
        assert every.last
    book.learner_step = 2
    every.save(2, {"note": 1})
    every.finish()
    saved = every.last
    assert saved.driver_state() == {"step": 2, "note": 1}
    resumed = RunCheckpoints(recipe, Book(), 5, saved)  # type: ignore[arg-type]
    assert (resumed.restore(), resumed.last) == (2, saved)

"""The asynchronous driver: nothing lost, nothing twice, nothing too old; with 0, the same numbers.

All drive the real rollout pool, over workers that are threads in place of Ray's processes. Those of
the first tests finish groups in an order of their own; the last test has a real engine and learner.
"""

import os
import signal
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError
from safetensors.torch import load_file

from actrep_ray.cluster.mailbox import Mailbox
from actrep_ray.cluster.stopping import StopError
from actrep_ray.config import ConfigError, Recipe, load_recipe, override
from actrep_ray.driver.alarms import LearningAlarmError
from actrep_ray.driver.asynchronous import AsynchronousDriver
from actrep_ray.driver.job import prepare_grpo
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.records import LearnerRow, Prompt, RolloutGroup
from actrep_ray.rollout.engine import SamplingSettings, make_rollout
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.rollout.worker import RolloutWorker, start_engine
from actrep_ray.run.checkpoint import CheckpointStore
from actrep_ray.run.faults import FaultLog
from actrep_ray.run.metrics import read_metrics
from actrep_ray.tasks.loading import load_task
from actrep_ray.weights.buckets import pack_weights
from actrep_ray.weights.sync import WeightSync
from data_prep.synthetic.dataset import write_dataset
from data_prep.video import FramePlan, VideoError
from rewards.grammar.read import parse
from rewards.reference import Reference
from tests.bare_engine import BareEngine
from tests.unit.saved import SavesConfig

NUM_STEPS, SIZE = 6, 4


class Threaded(BareEngine):
    """Finishes one of its prompts at each step, in an order of its own."""

    def __init__(self, index: int) -> None:
        super().__init__(max_model_len=512)
        self.random = np.random.default_rng(index)
        self.prompts: list[tuple[Prompt, SamplingSettings, int]] = []

    @property
    def num_unfinished(self) -> int:
        return len(self.prompts)

    def add(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        self.prompts += [(prompt, settings, self.policy_version) for prompt in prompts]

    def step(self) -> list[RolloutGroup]:
        place = int(self.random.integers(len(self.prompts)))
        prompt, settings, version = self.prompts.pop(place)
        rollouts = tuple(
            make_rollout(
                prompt,
                i,
                token_ids=[1],
                log_probs=[-1.0],
                text=f"<answer>{i}</answer>",
                is_stopped=True,
                policy_version=version,
                last_policy_version=self.policy_version,
            )
            for i in range(settings.group_size)
        )
        return [RolloutGroup(prompt, rollouts, num_prompt_tokens=3)]

    def clear(self) -> None:
        self.prompts.clear()


class Handle:
    """What an actor's handle is to the pool: one call after the other, results later."""

    def __init__(self, index: int) -> None:
        self.worker = RolloutWorker(partial(Threaded, index))
        self.thread = ThreadPoolExecutor(1)

    def __getattr__(self, method: str) -> Any:
        return Method(self, method)


@dataclass
class Method:
    handle: Handle
    name: str

    def remote(self, *arguments: Any) -> "Ref":
        if isinstance(self.handle, MortalHandle) and self.handle.dies(self.name, arguments):
            dead: Future[Any] = Future()
            dead.set_exception(ActorDiedError())
            return Ref(dead)
        function = getattr(self.handle.worker, self.name)
        return Ref(self.handle.thread.submit(function, *arguments))


@dataclass
class Ref:
    result: "Future[Any]"

    def future(self) -> "Future[Any]":
        return self.result


class MortalHandle(Handle):
    """Number 0 dies at its third turn, number 1 when it is to load version 2."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index
        self.calls = Counter[str]()

    def dies(self, method: str, arguments: tuple[Any, ...]) -> bool:
        self.calls[method] += 1
        is_third = self.index == 0 and self.calls["advance"] >= 3
        return is_third or (self.index == 1 and method == "load_weights" and arguments[0] == 2)


def read(group: RolloutGroup) -> RolloutGroup:
    """The group with what its answers say, as reward workers read them."""
    task = load_task("counting")
    answers = [parse(rollout.text) for rollout in group.rollouts]
    readings, claims = tuple(map(task.read, answers)), tuple(map(task.claims, answers))
    return replace(group, readings=readings, claims=claims)


class Colleagues(SavesConfig):
    """Reward workers and learners that keep books; `stops_at` is where the learner dies."""

    def __init__(self, *, stops_at: int | None = None, fails: float = 0.0) -> None:
        self.stops_at = stops_at
        self.fails = fails
        self.mailbox = Mailbox()
        self.trained: dict[int, list[str]] = {}

    def score(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Reference]
    ) -> list[RolloutGroup]:
        def reward(group: RolloutGroup) -> np.ndarray:
            assert group.prompt.clip_id in labels
            chance = np.random.default_rng(crc32(group.prompt.prompt_id.encode())).random()
            return np.arange(len(group.rollouts), dtype=np.float32) * (chance >= self.fails)

        return [replace(read(g), rewards=reward(g), totals=reward(g)) for g in groups]

    def update(self, rows: Sequence[LearnerRow], step: int) -> dict[str, float]:
        if step == self.stops_at:
            raise KeyboardInterrupt
        self.trained[step] = [row.row_id for row in rows]
        return {"log_prob_gap_mean": 0.0}

    def unreadable(self, rows: Sequence[LearnerRow]) -> dict[str, tuple[str, str]]:
        return {}

    def export_weights_refs(self) -> list[Any]:
        return []

    def load_state(self, folder: Path) -> None:
        """Nothing is held."""


@dataclass
class Threads:
    """Pools as `driver.pools.Pools` holds them."""

    rollouts: Any
    rewards: Any
    learners: Any
    weight_sync: Any
    faults: FaultLog = field(default_factory=FaultLog)

    @classmethod
    def start(
        cls, recipe: Recipe, colleagues: Colleagues, handle: type[Handle] = Handle
    ) -> "Threads":
        pool = RolloutPool(recipe, handle)
        pool.add_workers(3)
        pool.wait_ready()
        return cls(pool, colleagues, colleagues, WeightSync(colleagues, pool))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("pipeline")
    sizes = {"train": 12}
    data = write_dataset(folder / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    write_tiny_model(folder / "model")
    settings = {
        "device": "cpu",
        "model.path": folder / "model",
        "model.dtype": "float32",
        "data.path": data,
        "video.max_pixels": 1024,
        "video.cache_dir": folder / "frames",
        "rollout.engine": "hf",
        "rollout.max_in_flight": 6,
        "rollout.max_model_len": 512,
        "rollout.max_response_tokens": 8,
        "rollout.timeout_s": 300,
        "train.num_steps": NUM_STEPS,
        "train.prompts_per_step": SIZE,
        "train.group_size": 2,
        "checkpoint.every": 1,
        "sampling.bins": "[2, 5]",
    }
    return load_recipe(None, [f"{key}={value}" for key, value in settings.items()])


def changed(base: Recipe, folder: Path, **train: Any) -> Recipe:
    settings = [f"train.{key}={value}" for key, value in train.items()]
    return override(base, [f"runs_dir={folder}", *settings])


def drive(recipe: Recipe, colleagues: Colleagues, *, resume: bool = False) -> AsynchronousDriver:
    return drive_with(recipe, Threads.start(recipe, colleagues), resume=resume)


def drive_with(recipe: Recipe, pools: Threads, *, resume: bool = False) -> AsynchronousDriver:
    job = prepare_grpo(recipe, resume=resume)
    driver = job.driver(pools)  # type: ignore[arg-type]
    assert isinstance(driver, AsynchronousDriver)
    assert job.lock is not None
    with job.lock:
        driver.run()
    return driver


def numbers(trained: Mapping[int, Sequence[str]]) -> Counter[str]:
    """How often each slot was trained on, by the start of its prompt id."""
    return Counter(name[:11] for names in trained.values() for name in names)


EVERY_SLOT = Counter(f"{t:06d}-{i:04d}" for t in range(1, NUM_STEPS + 1) for i in range(SIZE))


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_every_slot_is_trained_once_and_none_is_too_old(
    base: Recipe, tmp_path: Path, staleness: int
) -> None:
    recipe = changed(base, tmp_path, max_staleness=staleness)
    colleagues = Colleagues()
    driver = drive(recipe, colleagues)
    assert numbers(colleagues.trained) == EVERY_SLOT
    assert [len(names) for names in colleagues.trained.values()] == [SIZE] * NUM_STEPS
    ledger = driver.in_flight.ledger
    assert (ledger.issued, ledger.trained) == (NUM_STEPS * SIZE,) * 2
    assert driver.in_flight.num_groups == 0
    rows = read_metrics(recipe.run_dir / "metrics.jsonl")[1:]
    assert max(row["pipeline/staleness_max"] for row in rows) <= staleness
    if staleness == 0:
        for step, names in colleagues.trained.items():
            assert [name[:11] for name in names] == [f"{step:06d}-{i:04d}" for i in range(SIZE)]
    else:
        assert max(row["pipeline/staleness_max"] for row in rows) > 0


def test_a_run_that_learns_nothing_ends_with_a_checkpoint_and_an_error(
    base: Recipe, tmp_path: Path
) -> None:
    recipe = override(changed(base, tmp_path, max_staleness=1), ["checkpoint.every=0"])
    with pytest.raises(LearningAlarmError, match=r"steps 1 to 5 trained on no group: of 20 all"):
        drive(recipe, Colleagues(fails=1.1))
    newest = CheckpointStore(recipe.run_dir, keep=2).newest()
    assert newest is not None
    assert newest.step == 5


class Looking(Colleagues):
    """Learners that are asked to stop while they look for frames, and answer a little later."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Mailbox()  # one call after the other, as of `LearnerPool`

    def unreadable(self, rows: Sequence[LearnerRow]) -> dict[str, tuple[str, str]]:
        if 2 in self.trained:
            os.kill(os.getpid(), signal.SIGTERM)
            self.calls.post_later(0.5, lambda: answers.append(1))
            answers: list[int] = []
            self.calls.wait(lambda: answers, 10.0, lambda: "a look for frames")
        return {}

    def begin_save(self, folder: Path) -> int:
        self.calls.wait(lambda: True, 10.0, lambda: "a copy to be saved")
        return super().begin_save(folder)


def test_a_run_that_is_asked_to_stop_while_ranks_look_for_frames_saves(
    base: Recipe, tmp_path: Path
) -> None:
    recipe = override(changed(base, tmp_path, max_staleness=1), ["checkpoint.every=0"])
    with pytest.raises(StopError, match="stopped by SIGTERM") as raised:
        drive(recipe, Looking())
    assert raised.value.saved_step == 2
    newest = CheckpointStore(recipe.run_dir, keep=2).newest()
    assert newest is not None
    assert newest.step == 2


def test_clips_are_decoded_before_they_are_asked_about(
    base: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = changed(base, tmp_path, max_staleness=1)
    pools = Threads.start(recipe, Colleagues())
    events: list[tuple[str, list[str]]] = []
    submit = pools.rollouts.submit

    def note_submit(prompts: Sequence[Prompt], *arguments: Any) -> None:
        events.append(("asked", [prompt.plan.hash for prompt in prompts]))
        submit(prompts, *arguments)

    def note_prefetch(plans: Sequence[FramePlan]) -> None:
        events.append(("decoded", [plan.hash for plan in plans]))

    monkeypatch.setattr(pools.rollouts, "submit", note_submit)
    monkeypatch.setattr(pools.rollouts, "prefetch", note_prefetch)
    prepare_grpo(recipe).run(pools)  # type: ignore[arg-type]
    asked = [hashes for what, hashes in events if what == "asked"]
    assert events[0] == ("asked", asked[0])
    assert events[1:] == [(what, hashes) for hashes in asked[1:] for what in ("decoded", "asked")]


@pytest.mark.parametrize("staleness", [0, 2])
def test_dropped_groups_are_refilled_and_counted(
    base: Recipe, tmp_path: Path, staleness: int
) -> None:
    recipe = changed(base, tmp_path, max_staleness=staleness, max_refill_factor=1)
    driver = drive(recipe, Colleagues(fails=0.4))
    ledger = driver.in_flight.ledger
    assert ledger.dropped["all_wrong"] > 0
    assert ledger.issued == ledger.trained + ledger.dropped.total()
    assert NUM_STEPS * SIZE < ledger.issued <= 2 * NUM_STEPS * SIZE
    rows = read_metrics(recipe.run_dir / "metrics.jsonl")[1:]
    assert sum(row["dropped/groups"] for row in rows) == ledger.dropped.total()
    assert sum(driver.phases.sampler.histogram.values()) == ledger.issued


@pytest.mark.parametrize("staleness", [0, 1])
def test_the_groups_of_dead_workers_are_not_lost(
    base: Recipe, tmp_path: Path, staleness: int
) -> None:
    recipe = changed(base, tmp_path, max_staleness=staleness)
    colleagues = Colleagues()
    pools = Threads.start(recipe, colleagues, MortalHandle)
    prepare_grpo(recipe).driver(pools).run()  # type: ignore[arg-type]
    assert pools.rollouts.restarts.num_spent == 2
    assert pools.rollouts.num_workers == 3
    assert numbers(colleagues.trained) == EVERY_SLOT


@pytest.mark.parametrize(("fails", "contrast"), [(0.0, False), (0.4, False), (0.4, True)])
def test_a_resumed_run_loses_and_repeats_no_prompt(
    base: Recipe, tmp_path: Path, fails: float, contrast: bool
) -> None:
    recipe = changed(base, tmp_path, max_staleness=2, max_refill_factor=1 if fails else 0)
    if contrast:
        recipe = override(recipe, ["algorithm.temporal_contrast.weight=0.3"])
    first = Colleagues(stops_at=4, fails=fails)
    with pytest.raises(KeyboardInterrupt):
        drive(recipe, first)
    with pytest.raises(ConfigError, match=r"(8|12) prompts are in flight.*max_staleness of at"):
        prepare_grpo(
            override(recipe, ["train.max_staleness=null"]),
            resume=True,
            allow_changes=["train.max_staleness"],
        )
    second = Colleagues(fails=fails)
    driver = drive(recipe, second, resume=True)
    assert sorted(second.trained) == [4, 5, 6]
    together = numbers(first.trained | second.trained)
    assert set(together.values()) == {1}
    if not fails:
        assert together == EVERY_SLOT
    ledger = driver.in_flight.ledger
    assert ledger.trained == together.total()
    assert ledger.issued == ledger.trained + ledger.dropped.total()
    num_drawn = sum(driver.phases.sampler.histogram.values())
    assert ledger.dropped["shuffled"] == num_drawn * contrast
    assert ledger.issued == num_drawn * (1 + contrast)


UNANSWERED, UNREAD = "easy-0-train-00003", "easy-0-train-00008"


class Refusing(Threaded):
    """Cannot read one of the clips."""

    def add(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        for prompt in prompts:
            with self.refusing(prompt):
                if prompt.row_id == UNANSWERED:
                    raise VideoError(f"{prompt.plan.video}: no such video")
                super().add([prompt], settings)


class RefusingHandle(Handle):
    """A thread whose engine refuses."""

    def __init__(self, index: int) -> None:
        self.worker = RolloutWorker(partial(Refusing, index))
        self.thread = ThreadPoolExecutor(1)


class ShortSighted(Colleagues):
    """Ranks that cannot read another one of the clips."""

    def unreadable(self, rows: Sequence[LearnerRow]) -> dict[str, tuple[str, str]]:
        found = [row.row_id for row in rows if row.row_id.endswith(f"-{UNREAD}")]
        return dict.fromkeys(found, ("unreadable_video", "cut short"))


@pytest.mark.parametrize(("staleness", "contrast"), [(0, False), (2, False), (2, True)])
def test_clips_that_cannot_be_used_are_replaced_and_every_step_is_whole(
    base: Recipe, tmp_path: Path, staleness: int, contrast: bool
) -> None:
    recipe = changed(base, tmp_path, max_staleness=staleness)
    settings = ["data.max_quarantined_share=0.2"]
    if contrast:
        settings.append("algorithm.temporal_contrast.weight=0.3")
    recipe = override(recipe, settings)
    first = ShortSighted(stops_at=4)
    pools = Threads.start(recipe, first, RefusingHandle)
    with pytest.raises(KeyboardInterrupt):
        drive_with(recipe, pools)
    second = ShortSighted()
    driver = drive_with(recipe, Threads.start(recipe, second, RefusingHandle), resume=True)
    trained = first.trained | second.trained
    assert [len(names) for names in trained.values()] == [SIZE] * NUM_STEPS
    assert set(numbers(trained).values()) == {1}
    names = [name for step in trained.values() for name in step]
    assert not any(name.endswith((UNANSWERED, UNREAD)) for name in names)
    assert set(driver.phases.quarantine.rows) == {UNANSWERED, UNREAD}
    ledger = driver.in_flight.ledger
    assert ledger.trained == NUM_STEPS * SIZE
    assert ledger.issued == ledger.trained + ledger.dropped.total()
    num_bad = ledger.dropped["unreadable_video"]
    assert num_bad >= 2  # a clip may be in flight twice before it is known
    assert ledger.dropped["shuffled"] == (ledger.trained + num_bad) * contrast
    rows = read_metrics(recipe.run_dir / "metrics.jsonl")
    told = sum(row.get("dropped/unreadable_video", 0) for row in rows)
    assert 1 <= told <= num_bad  # not again those of slots that were in flight at the kill
    assert rows[-1]["data/quarantined"] == 2


def letters(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """Tells the answers of an untrained model apart."""
    found = []
    for group in groups:
        values = np.array([len(set(r.text)) / 30 for r in group.rollouts], np.float32)
        found.append(replace(read(group), rewards=values, totals=values))
    return found


class OneRank(Colleagues):
    """A real learner, in a thread that does nothing else, so that its sums are always the same."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.thread = ThreadPoolExecutor(1)
        self.worker = LearnerWorker(recipe, recipe.model.path, 0, 1, recipe.train.num_steps)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.call(self.worker.setup, "127.0.0.1", port)

    def call(self, function: Any, *arguments: Any) -> Any:
        return self.thread.submit(function, *arguments).result()

    def score(
        self, groups: Sequence[RolloutGroup], labels: Mapping[str, Reference]
    ) -> list[RolloutGroup]:
        return letters(groups)

    def update(self, rows: Sequence[LearnerRow], step: int) -> dict[str, float]:
        metrics: dict[str, float] = self.call(self.worker.update, rows, step)
        return metrics

    def unreadable(self, rows: Sequence[LearnerRow]) -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = self.call(self.worker.unreadable, rows)
        return found

    def export_weights_refs(self) -> list[Any]:
        return list(self.call(lambda: [*pack_weights(self.worker.iter_weights())]))

    def begin_save(self, folder: Path) -> int:
        num_writers: int = self.call(self.worker.begin_save, folder)
        return num_writers

    def is_saved(self) -> bool:
        is_saved: bool = self.call(self.worker.is_saved)
        return is_saved

    def finish_save(self) -> None:
        self.call(self.worker.finish_save)

    def shutdown(self) -> None:
        self.call(self.worker.shutdown)


class RealHandle(Handle):
    """A thread with a real engine."""

    def __init__(self, recipe: Recipe) -> None:
        self.thread = ThreadPoolExecutor(1)
        start = self.thread.submit(RolloutWorker, partial(start_engine, recipe, recipe.model.path))
        self.worker = start.result()


def weights_after(base: Recipe, folder: Path, *settings: str) -> dict[str, torch.Tensor]:
    """Of five steps with one real engine and one real learner."""
    recipe = override(
        base,
        [
            f"runs_dir={folder}",
            "train.num_steps=5",
            "train.mini_batch_size=4",
            "checkpoint.every=0",
            "learner.lr=1e-3",
            *settings,
        ],
    )
    learner = OneRank(recipe)
    pool = RolloutPool(recipe, lambda _: RealHandle(recipe))
    pool.add_workers()
    pool.wait_ready()
    sync = WeightSync(learner, pool)
    try:
        checkpoint = prepare_grpo(recipe).run(Threads(pool, learner, learner, sync))  # type: ignore[arg-type]
    finally:
        learner.shutdown()
    weights: dict[str, torch.Tensor] = load_file(checkpoint.folder / "model.safetensors")
    return weights


def test_without_staleness_the_weights_are_bitwise_those_of_the_synchronous_driver(
    base: Recipe, tmp_path: Path
) -> None:
    start = load_file(Path(base.model.path) / "model.safetensors")
    a = weights_after(base, tmp_path / "sync")
    b = weights_after(base, tmp_path / "async", "train.max_staleness=0")
    assert a.keys() == b.keys()
    assert any(not a[name].equal(start[name]) for name in a), "nothing was trained"
    for name in a:
        assert a[name].equal(b[name]), name
    late = weights_after(base, tmp_path / "late", "train.max_staleness=1")
    assert any(not a[name].equal(late[name]) for name in a), "staleness changed nothing"

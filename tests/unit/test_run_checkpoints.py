"""Checkpoints as a loop sees them: written while it goes on, and what cannot be written is told."""

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.cluster.stopping import InterruptError, StopError, StopRequest
from actrep_ray.config import Recipe, load_recipe, override
from actrep_ray.driver.checkpoints import RunCheckpoints
from actrep_ray.learner.saving import BackgroundSave, Snapshot
from actrep_ray.run.checkpoint import CheckpointStore
from actrep_ray.run.manifest import DamageError
from actrep_ray.run.saving import SaveError
from data_prep.looks import Looks, looks_of
from data_prep.schema import read_clips
from data_prep.synthetic.dataset import write_dataset
from data_prep.video import plan_frames

pytestmark = pytest.mark.lengthy


class Gated(Snapshot):
    """Is written when the gate opens; `failure` is what the disk says to it."""

    gate: threading.Event
    failure: Exception | None = None

    def write(self, folder: Path) -> list[Path]:
        assert self.gate.wait(30)
        if self.failure is not None:
            raise self.failure
        return super().write(folder)


class Learners:
    """One rank that writes in the background; each save takes the next of `failures`."""

    def __init__(self, *failures: Exception | None) -> None:
        self.failures = list(failures)
        self.gate = threading.Event()
        self.gate.set()
        self.saving = BackgroundSave()
        self.num_begun = 0

    def begin_save(self, folder: Path) -> int:
        self.saving.wait()
        self.num_begun += 1
        snapshot = Gated(contents={"config.json": b"{}", "training/learner.json": b"{}"})
        snapshot.gate = self.gate
        snapshot.failure = self.failures.pop(0) if self.failures else None
        self.saving.begin(snapshot, folder, 0)
        return 1

    def is_saved(self) -> bool:
        if self.saving.is_over:
            self.saving.finish()
            return True
        return False

    def finish_save(self) -> None:
        self.saving.finish()

    def load_state(self, folder: Path) -> None:
        """Nothing is held."""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(None, [f"runs_dir={tmp_path}", "checkpoint.every=2", "checkpoint.keep=2"])


def loop(recipe: Recipe, learners: Any, num_steps: int = 6) -> RunCheckpoints:
    return RunCheckpoints(recipe, learners, num_steps, None)


def names(recipe: Recipe) -> list[str]:
    return sorted(path.name for path in (recipe.run_dir / "checkpoints").iterdir())


def save_all(checkpoints: RunCheckpoints, *steps: int) -> None:
    with checkpoints:
        for step in steps:
            checkpoints.save(step, {})


def test_what_the_clips_look_like_is_part_of_a_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", level="easy", num_clips={"train": 16}, seed=0, num_processes=1)
    clips = list(read_clips(tmp_path / "d/clips.jsonl"))
    plans = [
        plan_frames(
            clip, fps=1, min_frames=4, max_frames=8, min_pixels=1, max_pixels=4096, factor=2
        )
        for clip in clips
    ]
    learners: Any = Learners()
    waiting = override(recipe, ["checkpoint.in_background=false"])
    with RunCheckpoints(waiting, learners, 100, None, lambda: plans) as checkpoints:
        for step in range(2, 100, 2):  # the first may be written before it is known
            checkpoints.save(step, {})
            if (checkpoints.last.folder / "looks.json").is_file():
                break
    folder = checkpoints.last.folder
    assert Looks.read(folder) == looks_of(plans)
    (folder / "looks.json").write_text("{}")
    with pytest.raises(DamageError, match=r"looks\.json"):
        checkpoints.store.check(checkpoints.last, "all")


FULL = SaveError("model.safetensors: No space left on device")


def test_the_loop_goes_on_while_one_is_written(recipe: Recipe) -> None:
    learners = Learners()
    learners.gate.clear()
    with loop(recipe, learners) as checkpoints:
        checkpoints.save(2, {"note": 1})
        assert checkpoints.look() == {"checkpoint/failed": 0}  # and did not wait
        assert CheckpointStore(recipe.run_dir, keep=2).newest() is None
        learners.gate.set()
        checkpoints.save(4, {})  # waits: at most one is under way
        assert checkpoints.last.step == 2
        learners.saving.wait()
        assert checkpoints.look() == {"checkpoint/step": 4, "checkpoint/failed": 0}
        checkpoints.save(6, {})
    assert checkpoints.last.step == 6
    assert names(recipe) == ["newest.json", "step-000004", "step-000006"]
    found = CheckpointStore(recipe.run_dir, keep=2).newest()
    assert found == checkpoints.last


def test_one_is_complete_before_the_loop_looks_again(recipe: Recipe) -> None:
    """A kill in mid-step finds what was written by then."""
    checkpoints = loop(recipe, Learners())
    checkpoints.save(2, {})
    for _ in range(300):
        if CheckpointStore(recipe.run_dir, keep=2).newest() is not None:
            return
        threading.Event().wait(0.02)
    pytest.fail("not completed in the background")


def test_the_loop_waits_where_it_is_told_to(recipe: Recipe) -> None:
    waiting = recipe.model_copy(
        update={"checkpoint": recipe.checkpoint.model_copy(update={"in_background": False})}
    )
    checkpoints = loop(waiting, Learners())
    checkpoints.save(2, {})
    assert checkpoints.last.step == 2


def test_a_failure_in_the_background_is_told_and_the_run_goes_on(
    recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    learners = Learners(None, FULL)
    with loop(recipe, learners) as checkpoints:
        checkpoints.save(2, {})
        checkpoints.save(4, {})
        while checkpoints.look() != {"checkpoint/step": 2, "checkpoint/failed": 1}:
            learners.gate.wait(0.01)
        [told] = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
        assert told == (
            "the checkpoint of step 4 could not be written: model.safetensors: No space left on "
            "device; the run goes on, that of step 2 is safe"
        )
        assert names(recipe) == ["newest.json", "step-000002"]  # and no half
        checkpoints.save(6, {})
    assert checkpoints.last.step == 6
    assert caplog.messages[-1].startswith("1 of 3 checkpoints could not be written; the last of")


def test_a_run_without_a_safe_one_stops(recipe: Recipe) -> None:
    words = "No space left on device; no other checkpoint of this run is safe"
    with pytest.raises(SaveError, match=words):
        save_all(loop(recipe, Learners(FULL)), 2, 4)
    assert names(recipe) == []


def test_the_last_one_is_tried_twice(recipe: Recipe) -> None:
    learners = Learners(None, FULL)
    with loop(recipe, learners) as checkpoints:
        checkpoints.save(2, {})
        checkpoints.save(6, {"note": 3})
    assert learners.num_begun == 3
    assert checkpoints.last.step == 6
    assert checkpoints.last.driver_state()["note"] == 3


def test_a_run_whose_last_one_cannot_be_written_ends_with_an_error(recipe: Recipe) -> None:
    words = "No space left on device; the last checkpoint, that of step 2 is safe"
    with pytest.raises(SaveError, match=words):
        save_all(loop(recipe, Learners(None, FULL, FULL)), 2, 6)
    assert names(recipe) == ["newest.json", "step-000002"]


def test_a_defect_is_no_full_disk(recipe: Recipe) -> None:
    with pytest.raises(KeyError, match="a defect"):
        save_all(loop(recipe, Learners(None, KeyError("a defect"))), 2, 4)
    assert names(recipe) == ["newest.json", "step-000002"]


@pytest.mark.parametrize("is_written", [True, False])
def test_a_loop_that_ends_early_keeps_what_is_nearly_written(
    recipe: Recipe, is_written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actrep_ray.driver import checkpoints as module

    monkeypatch.setattr(module, "_GRACE_S", 5.0 if is_written else 0.1)
    learners = Learners()
    checkpoints = loop(recipe, learners)

    def stop() -> None:
        with checkpoints:
            checkpoints.save(2, {})
            while not checkpoints.look().get("checkpoint/step"):
                learners.gate.wait(0.01)
            learners.gate.clear()
            checkpoints.save(4, {})
            if is_written:
                threading.Timer(0.2, learners.gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert checkpoints.last.step == (4 if is_written else 2)
    assert ("step-000004" in names(recipe)) == is_written
    learners.gate.set()
    learners.saving.wait()


def test_the_one_that_the_run_began_with_stays_until_its_end(recipe: Recipe) -> None:
    """Engines that are replaced start from its weights, the push then brings the newest."""
    store = CheckpointStore(recipe.run_dir, keep=2)
    start = store.write(1, recipe, {}, Learners())
    with RunCheckpoints(recipe, Learners(), 8, start) as checkpoints:  # type: ignore[arg-type]
        for step in (2, 4, 6):
            checkpoints.save(step, {})
        while checkpoints.look()["checkpoint/step"] < 6:
            threading.Event().wait(0.01)
        assert names(recipe) == ["newest.json", "step-000001", "step-000004", "step-000006"]
        checkpoints.save(8, {})
    assert names(recipe) == ["newest.json", "step-000006", "step-000008"]


# ---------------------------------------------------------------- a run that is asked to stop


def stopped(
    recipe: Recipe, learners: Learners, *, reached: int, saved: int = 0, error: type[InterruptError]
) -> tuple[InterruptError, list[int]]:
    """What a loop raises that was stopped after a step, and the checkpoints that are there."""

    def loop() -> None:
        with RunCheckpoints(recipe, learners, 100, None) as run:  # type: ignore[arg-type]
            for step in range(1, reached + 1):
                if step == saved:
                    run.save(step, {"at": step})
                run.reached(step, {"at": step})
            raise error("stopped", 143)

    with pytest.raises(error) as raised:
        loop()
    store = CheckpointStore(recipe.run_dir, keep=9)
    newest = store.newest()
    if newest is not None:
        assert newest.driver_state()["at"] == newest.step
    return raised.value, [] if newest is None else [newest.step]


def test_a_stop_saves_the_last_step_that_was_finished(recipe: Recipe) -> None:
    error, there = stopped(recipe, Learners(), reached=3, error=StopError)
    assert (error.saved_step, there) == (3, [3])


def test_a_stop_saves_nothing_twice_and_waits_for_what_is_being_written(recipe: Recipe) -> None:
    learners = Learners()
    error, there = stopped(recipe, learners, reached=3, saved=3, error=StopError)
    assert (error.saved_step, there) == (3, [3])
    assert learners.num_begun == 1


def test_a_stop_before_the_first_step_saves_nothing(recipe: Recipe) -> None:
    learners = Learners()
    error, there = stopped(recipe, learners, reached=0, error=StopError)
    assert (error.saved_step, there, learners.num_begun) == (None, [], 0)


def test_who_wants_to_leave_at_once_is_told_what_is_safe(recipe: Recipe) -> None:
    learners = Learners()
    error, _ = stopped(recipe, learners, reached=3, error=InterruptError)
    assert (error.saved_step, learners.num_begun) == (None, 0)


def test_a_second_ctrl_c_does_not_wait_for_what_is_being_written(recipe: Recipe) -> None:
    learners = Learners()
    learners.gate.clear()

    def loop() -> None:
        checkpoints = RunCheckpoints(recipe, learners, 100, None)  # type: ignore[arg-type]
        with StopRequest("", 60.0) as stop, checkpoints as run:
            run.reached(1, {})
            os.kill(os.getpid(), signal.SIGINT)
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            stop.check()

    began = time.monotonic()
    with pytest.raises(InterruptError) as raised:
        loop()
    learners.gate.set()
    assert time.monotonic() - began < 3
    assert not isinstance(raised.value, StopError)
    assert raised.value.saved_step is None


def test_a_disk_that_does_not_take_the_mark_of_the_best_ends_no_run(
    recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = loop(recipe, Learners())
    (recipe.run_dir / "checkpoints" / "best.json" / "in the way").mkdir(parents=True)
    with checkpoints:
        checkpoints.save(2, {}, is_best=True)
        checkpoints.save(4, {})
    assert checkpoints.last.step == 4
    assert "the best checkpoint, of step 2, is not kept" in caplog.text

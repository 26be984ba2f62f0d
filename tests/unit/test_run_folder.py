"""A run's folder: begun once, gone on with as it was, and never written over unasked."""

import importlib
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from actrep_ray.config import ConfigError, Recipe, load_recipe, override
from actrep_ray.run.checkpoint import Checkpoint, CheckpointStore
from actrep_ray.run.folder import OpenRun, open_run
from actrep_ray.run.lock import HeldError
from actrep_ray.run.record import model_fingerprint
from data_prep.files import DataError
from data_prep.overwriting import refuse_existing, refuse_filled
from tests.unit.test_checkpoints import DAMAGES, Rank, flip_bit

pytestmark = pytest.mark.lengthy

REWARD = "def close(response, reference):\n    return 1.0\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    (tmp_path / "my_reward.py").write_text(REWARD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_reward", raising=False)
    importlib.import_module("my_reward")
    (tmp_path / "clips.jsonl").write_text('{"id": "a"}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    save_file({"w": torch.arange(1e6)}, tmp_path / "model" / "model.safetensors")
    settings = {
        "name": "mine",
        "runs_dir": tmp_path / "runs",
        "data.path": tmp_path / "clips.jsonl",
        "model.path": tmp_path / "model",
        "reward.weights": "{format: 0.5, 'my_reward:close': 0.5}",
        "learner.schedule": "constant",
    }
    return load_recipe(None, [f"{key}={value}" for key, value in settings.items()])


def begin(recipe: Recipe, **how: Any) -> OpenRun:
    return open_run(recipe, Path(recipe.model.path), **how)


def with_steps(recipe: Recipe, *steps: int) -> None:
    """A run that took some steps and ended."""
    with begin(recipe).lock:
        store = CheckpointStore(recipe.run_dir, keep=3)
        for step in steps:
            store.write(step, recipe, {}, Rank())
        (recipe.run_dir / "metrics.jsonl").write_text('{"step": 1}\n')


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(recipe: Recipe, **how: Any) -> str:
    """Why, where nothing is written."""
    before = content_of(Path(recipe.runs_dir))
    with pytest.raises(ConfigError) as caught:
        begin(recipe, **how)
    assert content_of(Path(recipe.runs_dir)) == before
    return str(caught.value)


# --- beginning


def test_a_run_that_took_steps_is_not_written_over_unasked(recipe: Recipe) -> None:
    with_steps(recipe, 2)
    (recipe.run_dir / "notes.txt").write_text("mine")
    (recipe.run_dir / "stacks").mkdir()
    assert refused(recipe) == (
        f"{recipe.run_dir}: holds a run (checkpoint step-000002); go on with --resume, start over "
        "with --overwrite, or choose another name with --set name=NAME"
    )
    first = json.loads((recipe.run_dir / "config.resolved.json").read_text())["run"]
    with begin(recipe, overwrite=True).lock:
        left = {name.split("/")[0] for name in content_of(recipe.run_dir)}
        assert left == {".lock-000002", "config.resolved.json", "notes.txt"}
    again = json.loads((recipe.run_dir / "config.resolved.json").read_text())["run"]
    assert again != first


def test_a_run_is_told_by_its_metrics_too(recipe: Recipe) -> None:
    with_steps(recipe)
    assert "holds a run (metrics.jsonl)" in refused(recipe)


def test_a_run_that_took_no_step_is_begun_again(recipe: Recipe) -> None:
    begin(recipe).lock.release()
    begin(override(recipe, ["learner.lr=1"])).lock.release()


def test_two_at_once_are_one(recipe: Recipe) -> None:
    with_steps(recipe, 2)
    with begin(recipe, resume=True).lock:
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(HeldError, match="held by actrep train, process"):
                begin(recipe, **how)
    begin(recipe, resume=True).lock.release()


# --- going on


def test_what_holds_no_run_is_not_gone_on_with(recipe: Recipe) -> None:
    told = f"{recipe.run_dir}: holds no run to go on with (no config.resolved.json in it)"
    with pytest.raises(ConfigError) as caught:
        begin(recipe, resume=True)
    assert str(caught.value) == told
    assert not recipe.run_dir.exists()


def test_a_run_goes_on_from_its_newest_whole_checkpoint(
    recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    with_steps(recipe, 2, 4)
    folder = recipe.run_dir / "checkpoints"
    (left := folder / ".step-000006.elsewhere.7.0123abcd.partial").mkdir()
    flip_bit(folder / "step-000004" / "model.safetensors")
    opened = begin(recipe, resume=True)
    assert opened.start == Checkpoint(folder / "step-000002", 2)
    assert f"{folder / 'step-000004'}: skipped, model.safetensors is damaged" in caplog.text
    assert not left.exists()
    record = json.loads((recipe.run_dir / "config.resolved.json").read_text())
    [resumed] = record["resumed"]
    assert (resumed["step"], resumed["changes"]) == (2, [])


def test_a_run_without_a_whole_checkpoint_does_not_begin_at_zero(recipe: Recipe) -> None:
    with_steps(recipe, 2, 4)
    for step in (2, 4):
        DAMAGES["empty"](recipe.run_dir / "checkpoints" / f"step-{step:06d}" / "config.json")
    with pytest.raises(ConfigError) as caught:
        begin(recipe, resume=True)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("checkpoints: no checkpoint of this run is whole:")
    assert [line.endswith("config.json holds 0 bytes of 8") for line in lines[1:]] == [True, True]
    begin(recipe, overwrite=True).lock.release()  # and let go of the folder


def test_a_run_that_was_cut_short_before_its_first_begins_again(recipe: Recipe) -> None:
    begin(recipe).lock.release()
    assert begin(recipe, resume=True).start is None


def test_what_the_settings_cannot_go_on_from_is_refused_before_anything_is_written(
    recipe: Recipe,
) -> None:
    with_steps(recipe, 2)
    record = (recipe.run_dir / "config.resolved.json").read_bytes()

    def refuse(start: Checkpoint) -> None:
        raise ConfigError(f"not from step {start.step}")

    with pytest.raises(ConfigError, match="not from step 2"):
        begin(recipe, resume=True, check_start=refuse)
    assert (recipe.run_dir / "config.resolved.json").read_bytes() == record


# --- what may differ


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("learner.lr=0.5", "learner.lr: 1e-06 -> 0.5"),
        ("seed=7", "seed: 0 -> 7"),
        ("train.max_staleness=1", "train.max_staleness: null -> 1"),
        ("reward.weights={format: 1.0}", "reward.weights: {"),
        ("model.lora.rank=4", "model.lora.rank: 0 -> 4"),
        ("learner.schedule=cosine", 'learner.schedule: "constant" -> "cosine"'),
    ],
)
def test_a_setting_that_decides_numbers_is_named(recipe: Recipe, setting: str, told: str) -> None:
    with_steps(recipe, 2)
    changed = override(recipe, [setting])
    key = setting.partition("=")[0]
    first, *lines = refused(changed, resume=True).splitlines()
    assert first == (
        f"{recipe.run_dir}: its run was begun with something else; go on as it was, or name what "
        f"may change: --allow-changes {key}"
    )
    [line] = lines
    assert line.startswith(told)
    assert line in refused(changed, resume=True, allow_changes=["data.path"])
    with begin(changed, resume=True, allow_changes=[key]).lock:
        record = json.loads((recipe.run_dir / "config.resolved.json").read_text())
    assert record["resumed"][0]["changes"] == [line]
    begin(changed, resume=True).lock.release()  # it is the record now


@pytest.mark.parametrize(
    "setting",
    [
        "checkpoint.every=7", "eval.every=3", "placement.rejoin_s=1", "run.stop_s=9",
        "video.cache_dir=elsewhere",
        "learner.timeout_s=9", "rollout.max_restarts=9", "reward.num_workers=2", "sft.num_steps=9",
        "train.num_steps=900", "model.lora.send=merged", "model.lora.alpha=8",
    ],
)  # fmt: skip
def test_a_setting_that_decides_none_may_change(recipe: Recipe, setting: str) -> None:
    with_steps(recipe, 2)
    begin(override(recipe, [setting]), resume=True).lock.release()


def test_settings_of_adapters_decide_where_there_are_any(recipe: Recipe) -> None:
    with_adapters = override(recipe, ["model.lora.rank=4"])
    with_steps(with_adapters, 2)
    merged = override(with_adapters, ["model.lora.send=merged"])
    assert 'model.lora.send: "adapter" -> "merged"' in refused(merged, resume=True)


def test_the_length_decides_where_the_learning_rate_follows_it(recipe: Recipe) -> None:
    falling = override(recipe, ["learner.schedule=cosine"])
    with_steps(falling, 2)
    longer = override(falling, ["train.num_steps=900"])
    assert "train.num_steps: 200 -> 900" in refused(longer, resume=True)


def test_data_and_model_are_told_by_content_and_not_by_place(recipe: Recipe) -> None:
    with_steps(recipe, 2)
    folder = Path(recipe.runs_dir).parent
    shutil.move(folder / "clips.jsonl", folder / "moved.jsonl")
    shutil.move(folder / "model", folder / "elsewhere")
    moved = override(recipe, [f"data.path={folder}/moved.jsonl", f"model.path={folder}/elsewhere"])
    begin(moved, resume=True).lock.release()
    with (folder / "moved.jsonl").open("a") as file:
        file.write("\n")
    flip_bit(folder / "elsewhere" / "model.safetensors")
    first, *lines = refused(moved, resume=True).splitlines()
    assert first.endswith("--allow-changes data.path,model.path")
    assert [line.partition(":")[0] for line in lines] == ["data.path", "model.path"]
    assert all(" content " in line for line in lines)


def test_a_reward_of_ones_own_is_told_by_its_source(recipe: Recipe) -> None:
    with_steps(recipe, 2)
    path = Path(recipe.runs_dir).parent / "my_reward.py"
    path.write_text(REWARD.replace("1.0", "0.5"))
    assert "reward.weights: source of my_reward:close" in refused(recipe, resume=True)
    begin(recipe, resume=True, allow_changes=["reward.weights"]).lock.release()


def test_a_task_of_ones_own_is_told_by_its_source_and_class(recipe: Recipe) -> None:
    folder = Path(recipe.runs_dir).parent
    path = folder / "tasks.py"
    path.write_text("class Mine: ...\nclass Other: ...\n")
    mine = override(recipe, [f"task={path}:Mine"])
    with_steps(mine, 2)
    assert "task: content " in refused(override(recipe, [f"task={path}:Other"]), resume=True)
    shutil.copy(path, folder / "moved.py")  # as the code of a job that is submitted again
    begin(override(recipe, [f"task={folder}/moved.py:Mine"]), resume=True).lock.release()
    path.write_text("class Mine: pass\nclass Other: ...\n")
    assert "task: content " in refused(mine, resume=True)
    begin(mine, resume=True, allow_changes=["task"]).lock.release()


def test_of_sampling_the_strata_decide_in_sft_too(recipe: Recipe) -> None:
    sft = override(recipe, ["stage=sft"])
    with_steps(sft, 2)
    begin(override(sft, ["sampling.power=0.5"]), resume=True).lock.release()
    told = refused(override(sft, ["sampling.bins=[0, 4]"]), resume=True)
    assert "--allow-changes sampling.bins" in told  # a row in quarantine is replaced from its own


def test_a_name_that_is_no_setting_is_refused(recipe: Recipe) -> None:
    with_steps(recipe, 2)
    told = refused(recipe, resume=True, allow_changes=["learner.lrr"])
    assert told == "--allow-changes learner.lrr: no such setting"


def test_other_versions_are_told(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    with_steps(recipe, 2)
    path = recipe.run_dir / "config.resolved.json"
    record = json.loads(path.read_text())
    record["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    with caplog.at_level(logging.WARNING):
        begin(recipe, resume=True).lock.release()
    assert "begun with other versions: torch 1.0 -> " in caplog.text


def test_a_run_of_an_earlier_version_goes_on_and_is_adopted(recipe: Recipe) -> None:
    with_steps(recipe, 2)
    path = recipe.run_dir / "config.resolved.json"
    record = json.loads(path.read_text())
    for key in ("run", "fingerprints", "resumed"):
        del record[key]
    del record["recipe"]["checkpoint"]["in_background"]  # a setting that there was not
    path.write_text(json.dumps(record))
    start = recipe.run_dir / "checkpoints" / "step-000002"
    (start / "manifest.json").unlink()
    assert begin(recipe, resume=True).start == Checkpoint(start, 2)
    assert (start / "manifest.json").is_file()
    assert json.loads(path.read_text())["run"]


def test_every_sampled_byte_counts_and_large_files_are_read_in_part(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(20_000_000)}, path)  # 80 MB
    before = model_fingerprint(tmp_path)
    save_file({"w": torch.full((20_000_000,), 1e-30)}, path)
    assert model_fingerprint(tmp_path) != before


# --- other outputs


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    refuse_filled(tmp_path)
    refuse_filled(tmp_path / "absent")
    refuse_existing(tmp_path / "absent")
    with pytest.raises(DataError, match=r"is a folder, expected a file to write"):
        refuse_existing(tmp_path, overwrite=True)
    (tmp_path / "a").write_text("x")
    with pytest.raises(DataError, match="is not empty; give --overwrite, or another folder"):
        refuse_filled(tmp_path)
    for refuse in (refuse_filled, refuse_existing):
        with pytest.raises(DataError, match=r"a: is there already; give --overwrite, or another"):
            refuse(tmp_path / "a")
    refuse_existing(tmp_path / "a", overwrite=True)
    refuse_filled(tmp_path, overwrite=True)

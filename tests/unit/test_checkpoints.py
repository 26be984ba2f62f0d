"""Checkpoints: any damage of any file is skipped for the one before, and no kill breaks them."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from actrep_ray.config import ConfigError, load_recipe
from actrep_ray.learner.saving import BackgroundSave, Snapshot
from actrep_ray.run import checkpoint as checkpoint_module
from actrep_ray.run import manifest
from actrep_ray.run.checkpoint import Checkpoint, CheckpointStore
from actrep_ray.run.lock import LockLostError
from actrep_ray.run.metrics import read_metrics
from actrep_ray.run.model_folder import resolve_model, whole_checkpoints
from actrep_ray.run.record import RECORD
from actrep_ray.run.saving import SaveError
from tests.unit.test_lock import holder, leave

pytestmark = pytest.mark.lengthy

RECIPE = load_recipe(None)


class Rank:
    """Writes what a learner with an adapter and an average writes, from a thread of its own."""

    def __init__(self, size: int = 4096, number: int = 0) -> None:
        self.size, self.number = size, number
        self.saving = BackgroundSave()

    def snapshot(self) -> Snapshot:
        weights = {"w": torch.arange(self.size, dtype=torch.float32)}
        model = Snapshot(
            {"model.safetensors": dict(weights)},
            {"model.safetensors": {"format": "pt"}},
            dict.fromkeys(("config.json", "tokenizer.json"), b'{"a": 1}'),
        )
        model.add(
            Snapshot({"model.safetensors": dict(weights)}, contents={"config.json": b"{}"}), "ema"
        )
        state = Snapshot(
            {"learner.safetensors": dict(weights), "ema.safetensors": dict(weights)},
            contents={"learner.json": b'{"num_optimizer_steps": 1}'},
        )
        adapter = Snapshot({"adapter_model.safetensors": dict(weights)})
        adapter.contents["adapter_config.json"] = b"{}"
        state.add(adapter, "adapter")
        model.add(state, "training")
        return model

    def begin_save(self, folder: Path) -> int:
        self.saving.begin(self.snapshot(), folder, self.number)
        return 1

    def is_saved(self) -> bool:
        return self.saving.is_over

    def finish_save(self) -> None:
        self.saving.finish()


FILES = (
    "config.json", "tokenizer.json", "model.safetensors", "recipe.json", "manifest.json",
    "ema/config.json", "ema/model.safetensors", "ema/recipe.json",
    "training/driver.json", "training/learner.json", "training/learner.safetensors",
    "training/ema.safetensors", "training/adapter/adapter_config.json",
    "training/adapter/adapter_model.safetensors",
)  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 10 and 20."""
    run = tmp_path_factory.mktemp("run")
    (run / RECORD).write_text(json.dumps({"run": "this one"}))
    store = CheckpointStore(run, keep=3)
    for step in (10, 20):
        store.write(step, RECIPE, {"note": step}, Rank())
    return run


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    """A copy of it to do harm to."""
    return Path(shutil.copytree(written, tmp_path / "run"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".lock"))


def step_of(run: Path) -> int:
    found = CheckpointStore(run, keep=3).newest()
    return 0 if found is None else found.step


def test_all_whole_checkpoints_of_a_run_are_found(run: Path) -> None:
    folders = [run / "checkpoints" / f"step-{step:06d}" for step in (10, 20)]
    assert whole_checkpoints(run) == folders
    with (folders[1] / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    assert whole_checkpoints(run) == folders[:1]
    (folders[0] / "config.json").unlink()
    with pytest.raises(ConfigError, match="no whole checkpoint in it"):
        whole_checkpoints(run)


# --- damage


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zero_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = len(content) // 2 // 4096 * 4096
    content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "bit flip": flip_bit,
    "zeroed page": zero_page,
    "cut": cut,
    "missing": Path.unlink,
    "empty": lambda path: os.truncate(path, 0),
}


def test_files_of_weights_may_be_read_by_whom_the_others_may(written: Path) -> None:
    folder = written / "checkpoints" / "step-000020"
    modes = {(folder / name).stat().st_mode for name in ("model.safetensors", "config.json")}
    assert len(modes) == 1


def test_the_table_below_names_every_file(written: Path) -> None:
    folder = written / "checkpoints" / "step-000020"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == set(FILES)
    assert step_of(written) == 20


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before_and_named(
    run: Path, damage: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run / "checkpoints" / "step-000020"
    DAMAGES[damage](folder / name)
    assert step_of(run) == 10
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"{folder}: skipped, ")
    assert name in told


def of_another_run(run: Path) -> str:
    other = run.parent / "other"
    other.mkdir()
    (other / RECORD).write_text(json.dumps({"run": "another"}))
    CheckpointStore(other, keep=1).write(30, RECIPE, {}, Rank())
    shutil.copytree(other / "checkpoints" / "step-000030", run / "checkpoints" / "step-000030")
    return "it belongs to another run"


def later_format(run: Path) -> str:
    path = run / "checkpoints" / "step-000030"
    shutil.copytree(run / "checkpoints" / "step-000020", path)
    content = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(content | {"format": 3}))
    return "format 3, of a later version; this one reads up to 2"


def empty_folder(run: Path) -> str:
    (run / "checkpoints" / "step-000030").mkdir()
    return "no manifest.json in it"


def a_file(run: Path) -> str:
    (run / "checkpoints" / "step-000030").write_text("x")
    return "it is a file, not a folder"


def renamed(run: Path) -> str:
    folder = run / "checkpoints"
    shutil.copytree(folder / "step-000020", folder / "step-000030")
    return "it is of step 20"


def dangling(run: Path) -> str:
    (run / "checkpoints" / "step-000030").symlink_to("nowhere")
    return "it is a link to nothing"


@pytest.mark.parametrize(
    "foreign", [of_another_run, later_format, empty_folder, a_file, renamed, dangling]
)
def test_what_is_no_later_checkpoint_is_skipped_and_stays(
    run: Path, foreign: Callable[[Path], str], caplog: pytest.LogCaptureFixture
) -> None:
    reason = foreign(run)
    path = run / "checkpoints" / "step-000030"
    assert step_of(run) == 20
    assert caplog.messages == [f"{path}: skipped, {reason}"]
    store = CheckpointStore(run, keep=1)
    store.newest()
    store.write(25, RECIPE, {}, Rank())
    assert names(store.folder) == ["newest.json", "step-000025", "step-000030"]
    store.write(30, RECIPE, {}, Rank())  # now it is in the way
    is_ours = foreign is renamed  # of this run, and not what its name says
    aside = [] if is_ours else ["aside-1-step-000030"]
    assert names(store.folder) == [*aside, "newest.json", "step-000030"]
    assert step_of(run) == 30


def test_a_checkpoint_that_is_gone_is_missed(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(run / "checkpoints" / "step-000020")
    assert step_of(run) == 10
    [told] = caplog.messages
    assert told.endswith("step-000020: skipped, it is missing, though newest.json names it")


@pytest.mark.parametrize("content", ["", "{", '{"folder": 3}', '{"folder": "../x"}', "[]"])
def test_a_pointer_that_is_damaged_does_no_harm(run: Path, content: str) -> None:
    (run / "checkpoints" / "newest.json").write_text(content)
    assert step_of(run) == 20


def test_the_model_of_a_damaged_checkpoint_is_not_evaluated(run: Path) -> None:
    folder = run / "checkpoints" / "step-000020"
    flip_bit(folder / "training" / "learner.safetensors")  # which an evaluation does not read
    assert resolve_model(run) == folder
    flip_bit(folder / "model.safetensors")
    assert resolve_model(run) == run / "checkpoints" / "step-000010"
    with pytest.raises(ValueError, match=r"step-000020: model\.safetensors is damaged"):
        resolve_model(folder)
    cut(run / "checkpoints" / "step-000010" / "config.json")
    with pytest.raises(ValueError, match=r"step-000020: not a model checkpoint \(model\.safetens"):
        resolve_model(run)


# --- format 1


@pytest.fixture
def old_run(run: Path) -> Path:
    """As an earlier version left it: no manifests, no pointer, no id in the record."""
    (run / RECORD).write_text("{}")
    for path in run.rglob("manifest.json"):
        path.unlink()
    (run / "checkpoints" / "newest.json").unlink()
    return run


def test_a_checkpoint_of_an_earlier_version_is_read(old_run: Path) -> None:
    assert step_of(old_run) == 20


@pytest.mark.parametrize("damage", ["cut", "missing", "empty"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "training/driver.json", "training/learner.safetensors"],
)
def test_what_lengths_tell_of_an_earlier_version_is_told(
    old_run: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](old_run / "checkpoints" / "step-000020" / name)
    assert step_of(old_run) == 10
    [told] = caplog.messages
    assert "skipped, it has no manifest.json, and" in told
    assert name.replace("model", "*") in told or name in told


def test_an_adopted_checkpoint_is_known_by_its_hashes_from_then_on(old_run: Path) -> None:
    found = CheckpointStore(old_run, keep=3).newest()
    assert found is not None
    checkpoint_module.adopt(found, "this one")
    (old_run / RECORD).write_text(json.dumps({"run": "this one"}))
    assert step_of(old_run) == 20
    flip_bit(found.folder / "model.safetensors")
    assert step_of(old_run) == 0  # that of step 10 has no manifest


# --- keeping and pruning


def test_the_newest_the_best_and_the_one_in_use_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    found = [store.write(step, RECIPE, {}, Rank()) for step in (1, 2, 3)]
    assert names(store.folder) == ["newest.json", "step-000002", "step-000003"]
    store.mark_best(found[1])
    store.in_use = found[2]
    for step in (4, 5, 6):
        store.write(step, RECIPE, {}, Rank())
    kept = ["step-000002", "step-000003", "step-000005", "step-000006"]
    assert names(store.folder) == ["best.json", "newest.json", *kept]
    assert store.best() == found[1]
    store.in_use = None
    store.mark_best(Checkpoint(store.folder / "step-000006", 6))
    store.prune()
    assert names(store.folder) == ["best.json", "newest.json", "step-000005", "step-000006"]


def test_a_damaged_one_does_not_count_as_kept(run: Path) -> None:
    flip_bit(run / "checkpoints" / "step-000020" / "model.safetensors")
    store = CheckpointStore(run, keep=2)
    store.newest()
    store.write(15, RECIPE, {}, Rank())
    assert names(store.folder) == ["newest.json", "step-000010", "step-000015", "step-000020"]
    store.write(25, RECIPE, {}, Rank())
    assert names(store.folder) == ["newest.json", "step-000015", "step-000025"]


def test_old_ones_go_early_where_there_is_no_room_and_the_newest_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=5)
    for step in (1, 2, 3):
        store.write(step, RECIPE, {}, Rank())
    size = manifest.read_manifest(store.folder / "step-000003").num_bytes
    free = [size, 20 * 2**20]  # before and after old ones are gone
    monkeypatch.setattr(store, "_free_bytes", lambda: free.pop(0))
    store.write(4, RECIPE, {}, Rank())
    assert names(store.folder) == ["newest.json", "step-000003", "step-000004"]
    monkeypatch.setattr(store, "_free_bytes", lambda: size)
    with pytest.raises(SaveError, match="MiB are needed, 0 MiB are free"):
        store.write(5, RECIPE, {}, Rank())
    assert names(store.folder) == ["newest.json", "step-000004"]
    assert step_of(tmp_path) == 4


# --- many ranks


def test_any_number_of_ranks_write_their_own_files(tmp_path: Path) -> None:
    class Ranks:
        def begin_save(self, folder: Path) -> int:
            for rank in range(3):
                shard = Snapshot(contents={f"training/shard-{rank}-{i}": b"x" for i in range(2)})
                BackgroundSave().begin(shard, folder, rank)
            return 3

        def is_saved(self) -> bool:
            return True

        def finish_save(self) -> None:
            """The parts tell."""

    store = CheckpointStore(tmp_path, keep=1)
    saving = store.begin(1, RECIPE, {}, Ranks())
    wait_until(lambda: saving.is_over)
    found = manifest.read_manifest(saving.finish().folder)
    assert {name: entry.rank for name, entry in found.files.items()} == {
        **{f"training/shard-{rank}-{i}": rank for rank in range(3) for i in range(2)},
        "recipe.json": None,
        "training/driver.json": None,
    }
    assert step_of(tmp_path) == 1


# --- what the disk refuses


LIMITED = """
import resource, signal, sys
from pathlib import Path
from actrep_ray.run.checkpoint import CheckpointStore
from actrep_ray.run.saving import SaveError
from tests.unit.test_checkpoints import RECIPE, Rank
store = CheckpointStore(Path(sys.argv[1]), keep=2)
store.write(1, RECIPE, {}, Rank())
HARM
try:
    store.write(2, RECIPE, {}, Rank(size=100_000))
except SaveError as error:
    print(error)
print(store.newest().step)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can come to, as pytest's own cannot be."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


HARMS = {
    "a file may not grow so large": "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))",
    "the folder may not be written": (
        "import os\n"
        "for path in (store.folder, store.run_dir): path.chmod(0o555)\n"
        "if os.getuid() == 0: os.setuid(65534)"
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_cannot_be_written_leaves_the_one_before_and_no_half(
    harm: str, open_folder: Path
) -> None:
    run = open_folder / "run"
    done = run_code(LIMITED.replace("HARM", HARMS[harm]), run)
    run.chmod(0o755)
    reason, step = done.stdout.splitlines()
    assert "large" in reason or "denied" in reason, done.stdout
    assert str(run / "checkpoints") in reason
    assert step == "1"
    assert names(run / "checkpoints") == ["newest.json", "step-000001"]
    assert json.loads((run / "checkpoints" / "newest.json").read_text())["step"] == 1


ON_A_SMALL_DISK = """
from actrep_ray.run.checkpoint import CheckpointStore
from actrep_ray.run.saving import SaveError
from tests.unit.test_checkpoints import RECIPE, Rank
from pathlib import Path
import sys
store, num_failed = CheckpointStore(Path(sys.argv[1]), keep=10), 0
for step in range(1, 9):
    try:
        store.write(step, RECIPE, {}, Rank(size=200_000))
    except SaveError as error:
        num_failed += 1
    assert store.newest() is not None
    print(step, store.newest().step, num_failed, flush=True)
"""


def test_a_small_disk_holds_as_many_as_fit(tmp_path: Path) -> None:
    """5 files of 0.8 MB a checkpoint on 24 MiB, of which 8 are left free; ten would be kept."""
    with small_disk(tmp_path / "disk", "24m") as disk:
        rows = run_code(ON_A_SMALL_DISK, disk).stdout.splitlines()
        assert rows == [f"{step} {step} 0" for step in range(1, 9)]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, where one may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


ON_A_FULL_DISK = """
import logging, sys
from pathlib import Path
from actrep_ray.run.metrics import MetricLogger
logging.basicConfig(level=logging.ERROR, stream=sys.stdout, format="%(message)s")
run = Path(sys.argv[1])
with MetricLogger(run) as logger:
    logger.log(1, {"a/b": 1.0})
    (run / "ballast").write_bytes(b"x" * (2**20 - 2**17))
    try:
        with (run / "rest").open("wb") as rest:
            while True:
                rest.write(b"x" * 512)
                rest.flush()
    except OSError:
        pass
    for step in range(2, 200):
        logger.log(step, {"a/b": 1.0})
        logger.text(step, "a/text", "x" * 100)
    for name in ("ballast", "rest"):
        (run / name).unlink()
    logger.log(200, {"a/b": 2.0})
print("went on")
"""


def test_a_full_disk_does_not_end_the_steps(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        told = run_code(ON_A_FULL_DISK, disk).stdout.splitlines()
        assert told[-1] == "went on"
        assert len([line for line in told if "metrics cannot be written: " in line]) == 1
        rows = read_metrics(disk / "metrics.jsonl")
        assert (rows[0]["step"], rows[-1]["step"]) == (1, 200)


def test_nothing_is_written_after_another_process_took_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.write(1, RECIPE, {}, Rank())
    leave(tmp_path, holder(host="node7", machine="other", pid=5))
    with pytest.raises(LockLostError, match="node7"):
        store.begin(2, RECIPE, {}, Rank())
    assert names(store.folder) == ["newest.json", "step-000001"]


# --- kills


def write_on(run: Path, steps: Any) -> None:
    """Write checkpoint after checkpoint; tells each step."""
    store = CheckpointStore(run, keep=2)
    newest = store.newest()
    step = newest.step if newest else 0
    while True:
        step += 1
        store.write(step, RECIPE, {}, Rank(size=50_000))
        steps.send(step)


@pytest.mark.lengthy
def test_a_kill_at_any_time_leaves_a_whole_newest_one(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(json.dumps({"run": "this one"}))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    store, rng, num_left = CheckpointStore(tmp_path, keep=2), random.Random(0), 0
    for _ in range(12):
        told, teller = context.Pipe(duplex=False)
        process = context.Process(target=write_on, args=(tmp_path, teller))
        process.start()
        last = told.recv()
        time.sleep(0.2 * rng.random())
        process.kill()
        process.join()
        while told.poll():
            last = told.recv()
        found, skipped = store.look()
        assert skipped == []
        assert found is not None
        assert found.step >= last
        pointed = json.loads((store.folder / "newest.json").read_text())
        store.check(Checkpoint(store.folder / pointed["folder"], pointed["step"]), "all")
        left = [name for name in names(store.folder) if name.endswith(".partial")]
        assert len(left) <= 2
        num_left += bool(left)
    assert num_left > 0  # one was killed in mid-write
    store.write(99_999, RECIPE, {}, Rank())
    assert len(names(store.folder)) == 3


def die_in_removal(run_dir: Path) -> None:
    def remove_one(path: Path, ignore_errors: bool = False) -> None:
        (path / "manifest.json").unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    shutil.rmtree = remove_one  # type: ignore[assignment]
    CheckpointStore(run_dir, keep=1).prune()


def test_a_kill_in_a_removal_leaves_no_half(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(json.dumps({"run": "this one"}))
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2):
        store.write(step, RECIPE, {}, Rank())
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=die_in_removal, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    store.write(3, RECIPE, {}, Rank())
    assert names(store.folder) == ["newest.json", "step-000002", "step-000003"]


def run_code(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_files_of_a_rank_that_are_not_in_the_folder_are_no_checkpoint(tmp_path: Path) -> None:
    """As of a rank on a node that does not share the folder: it has written, but elsewhere."""

    class Ranks:
        def begin_save(self, folder: Path) -> int:
            for rank, below in enumerate((folder, tmp_path / "elsewhere")):
                below.mkdir(exist_ok=True)
                self.saving = BackgroundSave()
                self.saving.begin(Snapshot(contents={f"file-{rank}": b"x"}), below, rank)
                self.saving.finish()
            return 2

        def is_saved(self) -> bool:
            return True

        def finish_save(self) -> None:
            """Written already."""

    store = CheckpointStore(tmp_path / "run", keep=1)
    with pytest.raises(SaveError, match="files of 1 of 2 learner ranks are in it; runs_dir must"):
        store.write(1, RECIPE, {}, Ranks())
    assert store.newest() is None
    assert [path.name for path in store.folder.iterdir()] == []

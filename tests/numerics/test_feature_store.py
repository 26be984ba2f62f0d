"""A node's store of features: each patch passes the tower once, and no number changes."""

import json
import logging
import os
import pickle
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actrep_ray.learner.batch.feature_store import FeatureStore
from actrep_ray.media.frame_cache import FrameCache
from actrep_ray.models.qwen_vl import QwenVLInputs, load_model
from actrep_ray.models.tower import FrozenTower
from data_prep.video import FramePlan
from tests.numerics.processes import ROOT, run_ranks
from tests.numerics.test_tower import GRPO, RANK, count_patches

GIB = 2**30
FROZEN = (*GRPO, "model.freeze=[vision_tower]")


class Node:
    """A process's way to features: a tower, and the store in a folder.

    Args:
        model: Checkpoint.
        folder: Of the cache.
        max_bytes: Bound of the store.
        dtype: Of the tower.
    """

    def __init__(
        self, model: Path, folder: Path, max_bytes: int = GIB, dtype: str = "float32"
    ) -> None:
        self.inputs = QwenVLInputs(model)
        self.frames = FrameCache(folder, GIB)
        self.model = load_model(model, dtype=dtype)
        self.tower = FrozenTower(self.model)
        self.max_bytes = max_bytes

    def get(self, plan: FramePlan) -> torch.Tensor:
        """Features, by a store that has looked at nothing yet."""
        frames = [np.array(one) for one in self.frames.get_all(plan)]
        prompt = self.inputs.encode("How often?", plan, *frames)
        store = FeatureStore(self.frames, self.max_bytes, self.tower, self.inputs)
        found = store.features(plan, prompt)
        assert torch.equal(store.features(plan, prompt), found)
        plain = self.tower.num_patches
        expected = self.tower.features(prompt.pixel_values, prompt.grid_thw)
        self.tower.num_patches = plain
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        return found


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model()


@pytest.fixture
def plans(model: Path, make_rows: Callable[..., Any]) -> list[FramePlan]:
    return [row.plan for row in make_rows(QwenVLInputs(model), 4, 1)]


def stored(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def num_patches(features: torch.Tensor) -> int:
    return features.shape[1]


# --- numbers and counts of whole learners


@pytest.mark.lengthy
def test_two_ranks_pass_each_patch_once_between_them(
    model: Path,
    make_recipe: Callable[..., Any],
    make_rows: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Clips go from rank to rank, and out of memory, which holds one."""
    a, b, c, d = make_rows(QwenVLInputs(model), 4, 2)
    steps = [[a, b, c, d], [c, d, a, b], [b, a, d, c], [d, c, b, a]]
    settings = (*FROZEN, f"model.path={model}", "learner.num_workers=2")
    found = {}
    for name, size in (("with", 1), ("again", 1), ("without", 0)):
        folder = tmp_path / name
        folder.mkdir()
        cache = tmp_path / ("alone" if name == "without" else "frames")
        recipe = make_recipe(
            *settings,
            f"video.cache_dir={cache}",
            f"learner.feature_cache_gib={size}",
            "learner.prompt_cache_gib=1e-9",
        )
        job = {"recipe": recipe, "model": str(model), "steps": steps}
        run_ranks(RANK, job, folder / "job.pickle", 2)
        found[name] = [load_file(folder / f"rank{rank}.safetensors") for rank in range(2)]
    patches = {name: [int(one["patches"]) for one in ranks] for name, ranks in found.items()}
    files = stored(tmp_path / "frames")
    unique = sum(num_patches(load_file(path)["features"]) for path in files)
    assert len(files) == 4
    assert stored(tmp_path / "alone") == []
    assert sum(patches["with"]) == unique
    assert min(patches["with"]) > 0
    assert patches["again"] == [0, 0]
    assert sum(patches["without"]) >= 4 * unique
    expected = found["without"][0]
    for name in ("with", "again"):
        for key, value in found[name][0].items():
            if key != "patches":
                torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-6)


def test_numbers_and_gradients_are_those_without_a_store(
    model: Path,
    make_recipe: Callable[..., Any],
    make_rows: Callable[..., Any],
    make_worker: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """A run with an empty store, one that goes on from its checkpoint, and pixels each time."""
    rows = make_rows(QwenVLInputs(model), 4, 2)
    cases = {"empty": (), "full": (), "pixels": ("learner.cache_features=false",)}
    found, passed = {}, {}
    start = model
    for name, settings in cases.items():
        recipe = make_recipe(*FROZEN, f"video.cache_dir={tmp_path / 'frames'}", *settings)
        worker = make_worker(recipe, start, base_path=model)
        if name == "empty":  # the checkpoint's own files, as a run that is resumed reads them
            worker.save_model(start := tmp_path / "saved")
        seen, gradients = count_patches(worker), gradients_of(worker)
        metrics = worker.update(rows, 1)
        scores = np.concatenate([v for one in worker.log_probs(rows) for v in one])
        found[name] = (metrics, scores, gradients)
        passed[name] = seen[0]
    unique = sum(num_patches(load_file(one)["features"]) for one in stored(tmp_path / "frames"))
    assert passed == {"empty": unique, "full": 0, "pixels": 3 * unique}
    metrics, scores, gradients = found["pixels"]
    assert len(gradients) > 10
    for name in ("empty", "full"):
        mine = found[name]
        for key in ("loss", "grad_norm", "ref_kl", "entropy"):
            assert mine[0][key] == pytest.approx(metrics[key], rel=1e-6, abs=1e-6), key
        np.testing.assert_allclose(mine[1], scores, rtol=0, atol=1e-6)
        assert mine[2].keys() == gradients.keys()
        for key, value in gradients.items():
            torch.testing.assert_close(mine[2][key], value, rtol=1e-6, atol=1e-6)
    for key, value in found["empty"][2].items():
        assert torch.equal(found["full"][2][key], value), key


def gradients_of(worker: Any) -> dict[str, torch.Tensor]:
    """Filled by the first backward pass that comes: the gradient of each trained weight."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[torch.Tensor], None]:
        def hook(weight: torch.Tensor) -> None:
            assert weight.grad is not None
            grad: Any = weight.grad
            whole = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
            found.setdefault(name, whole.detach().clone())

        return hook

    for name, weight in worker.policy.named_parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(keep(name))
    return found


# --- what is a miss


def test_a_process_that_comes_later_computes_nothing(
    model: Path, plans: list[FramePlan], tmp_path: Path
) -> None:
    first, second = Node(model, tmp_path / "c"), Node(model, tmp_path / "c")
    sizes = [num_patches(first.get(plan)) for plan in plans]
    found = [num_patches(second.get(plan)) for plan in plans]
    assert found == sizes
    assert (first.tower.num_patches, second.tower.num_patches) == (sum(sizes), 0)
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in stored(tmp_path / "c")} == {0o600}
    assert list((tmp_path / "c").glob("*.lock")) == []


def one_element(node: Node) -> None:
    with torch.no_grad():
        node.model.model.visual.blocks[0].norm1.weight[3] += 0.5


def other_mean(node: Node) -> None:
    node.inputs.processor.video_processor.image_mean = [0.5, 0.5, 0.25]


def other_taps(node: Node) -> None:
    node.model.model.visual.deepstack_visual_indexes = [0]
    node.tower = FrozenTower(node.model)


CHANGES: dict[str, Callable[[Node], None]] = {
    "one element of a weight": one_element,
    "the processor": other_mean,
    "which blocks are read": other_taps,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_computed_otherwise_is_a_miss(
    change: Callable[[Node], None], model: Path, plans: list[FramePlan], tmp_path: Path
) -> None:
    Node(model, tmp_path / "c").get(plans[0])
    node = Node(model, tmp_path / "c")
    change(node)
    assert node.tower.num_patches == 0
    size = num_patches(node.get(plans[0]))
    assert node.tower.num_patches == size
    assert len(stored(tmp_path / "c")) == 2


def test_another_dtype_or_plan_is_a_miss(
    model: Path, plans: list[FramePlan], tmp_path: Path
) -> None:
    Node(model, tmp_path / "c").get(plans[1])
    node = Node(model, tmp_path / "c", dtype="bfloat16")
    assert node.get(plans[1]).dtype == torch.bfloat16
    shifted = replace(plans[1], times_s=plans[1].times_s[::-1])
    other = Node(model, tmp_path / "c", dtype="bfloat16")
    size = num_patches(other.get(plans[1]))
    assert other.tower.num_patches == 0
    other.get(shifted)
    assert other.tower.num_patches == size
    assert len(stored(tmp_path / "c")) == 3


def test_zero_keeps_nothing_on_disk(model: Path, plans: list[FramePlan], tmp_path: Path) -> None:
    node = Node(model, tmp_path / "c", max_bytes=0)
    size = num_patches(node.get(plans[0]))
    assert node.tower.num_patches == 2 * size
    assert stored(tmp_path / "c") == []


def test_the_bound_is_of_features_and_leaves_frames(
    model: Path, plans: list[FramePlan], tmp_path: Path
) -> None:
    node = Node(model, tmp_path / "c", max_bytes=1)
    for plan in plans:
        node.get(plan)
        assert len(stored(tmp_path / "c")) == 1  # the newest
    assert len(list((tmp_path / "c").glob("*.frames"))) == len(plans)
    (tmp_path / "c" / "own.safetensors").write_bytes(b"a stranger's")
    node.get(plans[0])
    assert len(stored(tmp_path / "c")) == 2


# --- damage


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def of_another(path: Path) -> None:
    other = next(one for one in stored(path.parent) if one != path)
    path.write_bytes(other.read_bytes())


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut in the header": lambda path: os.truncate(path, 60),
    "cut by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "a byte longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "the last bit": lambda path: flip(path, path.stat().st_size - 1),
    "the first bit": lambda path: flip(path, 0),
    "the checksum": lambda path: flip(path, path.read_bytes().index(b"crc32") + 9),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another plan's": of_another,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_told_once_and_made_anew(
    damage: Callable[[Path], object],
    model: Path,
    plans: list[FramePlan],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = Node(model, tmp_path / "c")
    plan = replace(plans[0], times_s=plans[0].times_s[::-1])  # of the same shape
    size = num_patches(node.get(plans[0]))
    (path,) = stored(tmp_path / "c")
    node.get(plan)
    sound, node.tower.num_patches = load_file(path)["features"].clone(), 0
    damage(path)
    caplog.set_level(logging.WARNING)
    node.get(plans[0])
    assert node.tower.num_patches == size
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"{path}: damaged, made anew"]
    assert torch.equal(load_file(path)["features"], sound)
    node.get(plans[0])
    assert node.tower.num_patches == size
    assert len(caplog.records) == 1


def test_any_flipped_bit_is_caught_or_harmless(
    model: Path, plans: list[FramePlan], tmp_path: Path
) -> None:
    node = Node(model, tmp_path / "c")
    node.get(plans[0])
    (path,) = stored(tmp_path / "c")
    for at in [*range(0, 260, 3), *range(260, path.stat().st_size, 4999)]:
        flip(path, at)
        node.get(plans[0])  # compares with what the tower computes


# --- processes

GET_ALL = """
node = Node(model, folder)
sums = [float(node.get(plan).double().sum()) for plan in plans]
print(json.dumps([node.tower.num_patches, sums]))
"""

DIE_IN_MID_WRITE = """
from actrep_ray.media.bounded_folder import BoundedFolder
node = Node(model, folder)
node.frames.get_all(plans[0])

def half(self, name, write, num_bytes):
    with self.writing(name) as out:
        out.write(b"half")
        out.flush()
        os.kill(os.getpid(), signal.SIGKILL)

BoundedFolder.store = half
node.get(plans[0])
"""


def start_process(
    code: str, model: Path, folder: Path, plans: list[FramePlan]
) -> subprocess.Popen[str]:
    """Run code that finds `model`, `folder` and `plans` in a process of its own."""
    head = (
        "import json, os, pickle, signal, sys\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from tests.numerics.test_feature_store import Node\n"
        "torch.set_num_threads(1)\n"
        "model, folder = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "plans = pickle.loads(bytes.fromhex(sys.argv[3]))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + code, str(model), str(folder), pickle.dumps(plans).hex()],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.lengthy
def test_processes_share_the_work(model: Path, plans: list[FramePlan], tmp_path: Path) -> None:
    """Three at once, each with its own order, so that they wait for one another."""
    orders = (plans, plans, plans[::-1])
    workers = [start_process(GET_ALL, model, tmp_path / "c", order) for order in orders]
    seen = [json.loads(worker.communicate(timeout=240)[0].splitlines()[-1]) for worker in workers]
    files = stored(tmp_path / "c")
    assert len(files) == len(plans)
    unique = sum(num_patches(load_file(path)["features"]) for path in files)
    assert sum(count for count, _ in seen) == unique
    assert seen[0][1] == seen[1][1] == seen[2][1][::-1]
    assert list((tmp_path / "c").glob("*.lock")) == []


@pytest.mark.lengthy
def test_a_kill_in_mid_write_blocks_nobody_and_is_cleaned_up(
    model: Path, plans: list[FramePlan], tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    with start_process(DIE_IN_MID_WRITE, model, folder, plans) as writer:
        assert writer.wait(timeout=240) == -signal.SIGKILL
    assert stored(folder) == []
    assert len(list(folder.glob(".*.partial"))) == 1
    node = Node(model, folder)
    size = num_patches(node.get(plans[0]))
    assert node.tower.num_patches == size
    assert len(stored(folder)) == 1
    assert list(folder.glob(".*.partial")) == []
    assert list(folder.glob("*.lock")) == []

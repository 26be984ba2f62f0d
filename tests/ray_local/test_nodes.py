"""Three nodes with addresses of their own: GRPO spread over them, one lost in mid-run.

    bridge 10.210.0.1: head, driver, rank 0 ── 10.210.0.2: rank 1, engine 0
                                            └─ 10.210.0.3: engine 1, killed when step 1 is done

Each worker node is a network namespace with a frame cache of its own (a memory file system). It
needs root and Linux network namespaces; elsewhere the test is skipped with the reason.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.models.tiny import write_tiny_model
from data_prep.synthetic import write_dataset

ROOT = Path(__file__).resolve().parents[2]
SUBNET = "10.210.0"
BRIDGE = "actrepbr0"
NUM_STEPS = 4
RECIPE = f"""\
# GRPO of a small random model over three nodes, for tests.
name: nodes
model: {{path: models/tiny, dtype: float32}}
data: {{path: data/clips.jsonl}}
video: {{max_pixels: 1024, max_frames: 16, cache_dir: CACHE}}
rollout: {{engine: hf, num_workers: 2, max_response_tokens: 8, max_model_len: 512}}
learner: {{num_workers: 2, num_cpus: 2}}
train: {{num_steps: {NUM_STEPS}, prompts_per_step: 4, group_size: 2}}
"""


def run(*line: str) -> None:
    subprocess.run(line, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def namespaces() -> Iterator[list[str]]:
    """Two network namespaces beside a bridge; their names."""
    names = [f"actrep{i}" for i in (2, 3)]
    try:
        run("ip", "link", "add", BRIDGE, "type", "bridge")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces on this machine: {error}")
    try:
        run("ip", "addr", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for i, name in zip((2, 3), names, strict=True):
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"arv{i}", "type", "veth", "peer", "name", f"arw{i}")
            run("ip", "link", "set", f"arv{i}", "master", BRIDGE)
            run("ip", "link", "set", f"arv{i}", "up")
            run("ip", "link", "set", f"arw{i}", "netns", name)
            for setting in (
                ("addr", "add", f"{SUBNET}.{i}/24", "dev", f"arw{i}"),
                ("link", "set", f"arw{i}", "up"),
                ("link", "set", "lo", "up"),
            ):
                run("ip", "-n", name, *setting)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", BRIDGE], check=False, capture_output=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    write_tiny_model(folder / "models" / "tiny")
    sizes = {"train": 8, "validation": 2}
    write_dataset(folder / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    (folder / "cache").mkdir()
    return folder


def steps_done(shared: Path) -> int:
    """The last step in the run's metrics."""
    path = shared / "runs" / "nodes" / "metrics.jsonl"
    if not path.is_file():
        return -1
    lines = path.read_text().splitlines()
    return max((int(json.loads(line)["step"]) for line in lines), default=-1)


def frames_in(node: Any, cache: Path) -> int:
    """Clips in the cache as the processes of a node see it."""
    children = node.children()
    return len(list(Path(f"/proc/{children[-1].pid}/root{cache}").glob("*.npy")))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_spans_three_nodes_and_outlives_one(
    namespaces: list[str], shared: Path, start_node: Any, tmp_path: Path
) -> None:
    cache = shared / "cache"
    head = start_node(num_cpus=3, host=f"{SUBNET}.1")
    head.wait_ready()
    nodes = [
        start_node(head, num_cpus=cpus, host=f"{SUBNET}.{i}", namespace=name, own_folder=cache)
        for i, cpus, name in zip((2, 3), (3, 1), namespaces, strict=True)
    ]
    for node in nodes:
        node.wait_started()
    recipe = ROOT / f".test-nodes-{os.getpid()}.yaml"
    recipe.write_text(RECIPE.replace("CACHE", str(cache)))
    log = (tmp_path / "job.log").open("w+")
    job = subprocess.Popen(
        [
            str(ROOT / "launch.sh"), "submit", str(recipe), "--address", head.url, "--",
            "--root", str(shared), "--set", "placement.wait_s=300",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        while steps_done(shared) < 1 and job.poll() is None:
            time.sleep(0.2)
        counts = [frames_in(node, cache) for node in nodes]
        nodes[1].kill()
        code = job.wait(timeout=1200)
    finally:
        job.kill()
        recipe.unlink()
    log.seek(0)
    text = log.read()
    assert code == 0, text[-6000:]
    assert steps_done(shared) == NUM_STEPS
    assert all(counts), counts  # each node has decoded for itself
    assert f"node {SUBNET}.3" in text or "rollout worker" in text  # the loss is told

"""Three nodes with addresses of their own: GRPO spread over them, two of them lost in mid-run.

    bridge 10.210.0.1: head, driver, a rank ── 10.210.0.2: a rank, an engine, a reward worker
                                            └─ 10.210.0.3: an engine, a reward worker

The third node is killed after step 1: the others take over what was at work there. Then the second
one is killed and with it a rank: a new node joins, and the run goes on from its last checkpoint.

Each worker node is a network namespace with a frame cache of its own (a memory file system). It
needs root and Linux network namespaces; elsewhere the test is skipped with the reason.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actrep_ray.models.tiny import write_tiny_model
from data_prep.synthetic.dataset import write_dataset

pytestmark = pytest.mark.usefixtures("of_nodes")

ROOT = Path(__file__).resolve().parents[2]
SUBNET = "10.210.0"
BRIDGE = "actrepbr0"
NUM_STEPS = 16
# A node of 5 CPUs has room for one rank and one engine, not for two of either.
RECIPE = f"""\
# GRPO of a small random model over three nodes, for tests.
name: nodes
model: {{path: models/tiny, dtype: float32}}
data: {{path: data/clips.jsonl}}
video: {{max_pixels: 1024, max_frames: 16, cache_dir: CACHE}}
rollout: {{engine: hf, num_workers: 2, num_cpus: 1.5, max_response_tokens: 8, max_model_len: 512}}
reward: {{num_workers: 2, timeout_s: 300, weights: {{"REWARD:letters": 1}}}}
learner: {{num_workers: 2, num_cpus: 3}}
train: {{num_steps: {NUM_STEPS}, prompts_per_step: 4, group_size: 2}}
checkpoint: {{every: 1}}
placement: {{wait_s: 600, rejoin_s: 600}}
"""


def run(*line: str) -> None:
    subprocess.run(line, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def namespaces() -> Iterator[list[str]]:
    """Three network namespaces beside a bridge; their names."""
    names = [f"actrep{i}" for i in (2, 3, 4)]
    try:
        run("ip", "link", "add", BRIDGE, "type", "bridge")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces on this machine: {error}")
    try:
        run("ip", "addr", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for i, name in enumerate(names, start=2):
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
        for link in (*(f"arv{i}" for i in (2, 3, 4)), BRIDGE):  # a namespace may outlive its name
            subprocess.run(["ip", "link", "delete", link], check=False, capture_output=True)


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
    return len(list(Path(f"/proc/{children[-1].pid}/root{cache}").glob("*.frames")))


def wait_until(is_there: Callable[[], bool], job: "subprocess.Popen[bytes]") -> None:
    """Return when it is, or when the job has ended."""
    while not is_there() and job.poll() is None:
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_spans_three_nodes_and_outlives_two_of_them(
    namespaces: list[str], shared: Path, start_node: Any, tmp_path: Path
) -> None:
    cache = shared / "cache"

    def join(number: int, num_cpus: int) -> Any:
        host, namespace = f"{SUBNET}.{number}", namespaces[number - 2]
        options = {"host": host, "namespace": namespace, "own_folder": cache}
        node = start_node(head, num_cpus=num_cpus, **options)
        node.wait_started()
        return node

    head = start_node(num_cpus=3, host=f"{SUBNET}.1")
    head.wait_ready()
    with_rank, with_engine = join(2, 5), join(3, 2)
    recipe = ROOT / f".test-nodes-{os.getpid()}.yaml"
    reward = ROOT / f"letters_{os.getpid()}.py"  # travels with the job, as a user's own would
    reward.write_text((ROOT / "tests" / "own_rewards" / "letters.py").read_text())
    recipe.write_text(RECIPE.replace("CACHE", str(cache)).replace("REWARD", reward.stem))
    log_path = tmp_path / "job.log"
    line = [str(ROOT / "launch.sh"), "submit", str(recipe), "--address", head.url]
    with log_path.open("wb") as log:
        job = subprocess.Popen(
            [*line, "--", "--root", str(shared)], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: steps_done(shared) >= 1, job)
        counts = [frames_in(node, cache) for node in (with_rank, with_engine)]
        with_engine.kill()
        lost_at = steps_done(shared)
        wait_until(lambda: "reward worker" in log_path.read_text(), job)
        wait_until(lambda: steps_done(shared) >= lost_at + 2, job)
        with_rank.kill()
        join(4, 7)  # room for what both lost nodes held, no CPU more
        code = job.wait(timeout=1200)
    finally:
        job.kill()
        job.wait()
        recipe.unlink()
        reward.unlink()
    text = log_path.read_text()
    assert code == 0, text[-6000:]
    assert steps_done(shared) == NUM_STEPS
    assert all(counts), counts  # each node has decoded for itself
    for role in ("rollout", "reward"):
        assert re.search(rf"{role} worker \d was lost with its node", text)
    told = (
        "restart 1 of 3 in an hour (learner.max_restarts), after 0 s, from the checkpoint of step"
    )
    assert told in text
    assert "restart 2 of 3" not in text

"""A run on one machine listens on the loopback address alone, with every kind of worker."""

import ipaddress
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from actrep_ray.models.tiny import write_tiny_model
from data_prep.synthetic.dataset import write_dataset

LIMIT_S = 400.0
RECIPE = """
stage: grpo
name: ports
runs_dir: {folder}
model: {{path: {folder}/model, dtype: float32}}
data: {{path: {folder}/data/clips.jsonl}}
video: {{max_pixels: 1024, max_frames: 16, cache_dir: {folder}/frames}}
rollout: {{engine: {engine}, max_model_len: 512, max_response_tokens: 8, kv_cache_gib: 0.25}}
reward: {{weights: {{format: 1.0}}}}
learner: {{num_workers: 2}}
train: {{num_steps: 2, prompts_per_step: 2, group_size: 2}}
"""


def listening(mark: str) -> set[tuple[str, str]]:
    """(address, program) of every socket on which a process of the run takes what comes."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("ACTREP_TEST_MARK") != mark:
                continue
            for socket in process.net_connections("inet"):
                takes_all = not socket.raddr and socket.laddr
                if socket.status == psutil.CONN_LISTEN or (
                    takes_all and socket.status == psutil.CONN_NONE
                ):
                    found.add((socket.laddr.ip, " ".join(process.cmdline())[:100]))
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended, or is not ours
            continue
    return found


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_a_run_on_one_machine_listens_to_this_machine_alone(engine: str, tmp_path: Path) -> None:
    sizes = {"train": 4, "test": 2}
    write_dataset(tmp_path / "data", level="easy", num_clips=sizes, seed=0, num_processes=1)
    write_tiny_model(tmp_path / "model")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=tmp_path, engine=engine))
    mark = uuid.uuid4().hex
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(
            [sys.executable, "-m", "actrep_ray", "train", str(recipe)],
            stdout=log,
            stderr=log,
            env=environment | {"ACTREP_TEST_MARK": mark},
        )
    found: set[tuple[str, str]] = set()
    deadline = time.monotonic() + LIMIT_S
    try:
        while run.poll() is None and time.monotonic() < deadline:
            found |= listening(mark)
            time.sleep(0.2)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 0, (tmp_path / "log").read_text()
    assert len({program for _, program in found}) >= 5  # raylet, GCS, agents and workers
    assert {one for one in found if not is_loopback(one[0])} == set()

"""Ranks as processes of their own, for tests of what several of them compute."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.free_port import free_port

ROOT = Path(__file__).resolve().parents[2]  # else `tests` may be another package's


def run_ranks(script: Path, job: dict[str, Any], path: Path, world_size: int) -> None:
    """Run `script PATH RANK WORLD_SIZE PORT` as each rank and wait until all are done.

    Args:
        script: What a rank does; it leaves what it found beside PATH.
        job: Pickled into PATH.
        path: See there.
        world_size: Number of ranks.
    """
    path.write_bytes(pickle.dumps(job))
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(path), str(rank), str(world_size), str(port)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        errors = [rank.communicate(timeout=580)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world_size, "\n".join(errors)

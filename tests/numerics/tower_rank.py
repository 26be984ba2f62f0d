"""One rank of `test_tower.py` and `test_feature_store.py`: updates with a frozen vision tower, and
what came of them.

Run as `python tower_rank.py JOB RANK WORLD_SIZE PORT`; JOB is a pickle of the test's own making.
"""

import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from actrep_ray.learner.worker import LearnerWorker


def run(job: dict[str, Any], rank: int, world_size: int, port: int) -> dict[str, torch.Tensor]:
    """The loss of each update, the weights after them, and the patches that this rank computed."""
    worker = LearnerWorker(job["recipe"], job["model"], rank, world_size, 10)
    worker.setup("127.0.0.1", port)
    losses = [worker.update(rows, i)["loss"] for i, rows in enumerate(job["steps"], start=1)]
    found = {name: weight.clone().contiguous() for name, weight in worker.iter_weights()}
    assert worker.policy.tower is not None
    found["patches"] = torch.tensor(worker.policy.tower.num_patches)
    found["losses"] = torch.tensor(losses, dtype=torch.float64)
    worker.shutdown()
    return found


if __name__ == "__main__":
    path, rank, world_size, port = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_num_threads(1)
    job = pickle.loads(Path(path).read_bytes())
    save_file(run(job, rank, world_size, port), Path(path).with_name(f"rank{rank}.safetensors"))

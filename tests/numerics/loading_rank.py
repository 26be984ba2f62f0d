"""One rank of `test_loading.py`: loads and splits a model, and says what that took.

Run as `python loading_rank.py JOB RANK WORLD_SIZE PORT`; JOB is a pickle of the test's own making.
"""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from actrep_ray.learner.strategies.deepspeed import Zero
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models import loading
from tests.numerics.saved_tensors import load_tensors, sent_by_all

_MIB = 2**20


def memory_mib(what: str) -> float:
    """`VmRSS` or `VmHWM` (the peak since `forget_peak`) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def taken(call: Callable[[], None]) -> float:
    """By how much the peak of a call is above the memory before it, MiB."""
    before = memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    call()
    return memory_mib("VmHWM") - before


def run(job: dict[str, Any], rank: int, world_size: int, port: int) -> dict[str, Any]:
    """Peak memory of loading, and whether every weight is that of the file, bit by bit."""
    if job["reads"] == "everyone":  # as it was done before
        load = loading.load
        loading.load = lambda path, dtype, **_: load(path, dtype=dtype, is_split=False)
        loading.Source = lambda path, model: None  # type: ignore[assignment,misc,return-value]
    worker = LearnerWorker(job["recipe"], job["model"], rank, world_size, 10)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    peaks = [0.0]
    fill = Zero._fill

    def noted(*of_fill: Any) -> None:
        peaks[:] = [taken(lambda: fill(*of_fill))]

    Zero._fill = noted  # type: ignore[method-assign,assignment]
    of_setup = taken(lambda: worker.setup("127.0.0.1", port))
    # What DeepSpeed allocates beside weights would be of a GPU.
    is_zero = job["recipe"].learner.strategy == "deepspeed"
    peak = peaks[0] if is_zero else of_setup
    stored = load_tensors(Path(job["model"]), "model")
    found = sent_by_all(worker)
    wrong = [name for name, weight in found.items() if not torch.equal(weight, stored[name])]
    embedding = worker.policy.model.get_input_embeddings().weight
    result = {
        "peak_mib": peak,
        "num_weights": len(found),
        "wrong": wrong,
        "is_tied": worker.policy.model.lm_head.weight is embedding,
        "num_frozen": sum(not p.requires_grad for p in worker.policy.model.parameters()),
        "meta": [n for n, t in worker.policy.model.named_parameters() if t.is_meta],
    }
    worker.shutdown()
    return result


if __name__ == "__main__":
    job_path, rank, world_size, port = sys.argv[1:]
    torch.set_num_threads(1)
    job = pickle.loads(Path(job_path).read_bytes())
    found = run(job, int(rank), int(world_size), int(port))
    Path(job["folder"], f"rank{rank}.pickle").write_bytes(pickle.dumps(found))

"""One rank of `test_split.py`: gradients and an update, written as safetensors.

Run as `python rank.py JOB RANK WORLD_SIZE PORT`; JOB is a pickle of the test's own making.
"""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from actrep_ray.learner.worker import LearnerWorker, _Gap


def gradients(worker: LearnerWorker, rows: list[Any], kind: str) -> dict[str, torch.Tensor]:
    """Whole gradients of a batch: `sft`, or `grpo` with half-old log-probs, KL and entropy."""
    counts = worker._counts(rows)
    if kind == "sft":
        worker._accumulate(rows, range(len(rows)), worker._sft_loss_of(counts), temperature=1.0)
    else:
        old = worker.log_probs(rows)
        shifted = {
            (i, a): (value + 0.3 * np.sin(np.arange(len(value)) + i + a)).astype(np.float32)
            for i, values in enumerate(old)
            for a, value in enumerate(values)
        }
        loss_of = worker._grpo_loss_of(rows, counts, shifted, shifted, _Gap(rows, set()))
        worker._accumulate(rows, range(len(rows)), loss_of, temperature=1.0, with_entropy_grad=True)
    found = {name: gradient.clone() for name, gradient in worker.strategy.gradients()}
    forget(worker)
    return found


def forget(worker: LearnerWorker) -> None:
    """Drop the gradients: one that is not finite makes the step do nothing else."""
    parameter = next(p for p in worker.policy.model.parameters() if p.requires_grad)
    if parameter.grad is not None:
        parameter.grad.fill_(torch.nan)
    else:
        from deepspeed.utils import safe_set_full_grad

        shape = getattr(parameter, "ds_shape", parameter.shape)
        safe_set_full_grad(parameter, torch.full(shape, torch.nan))
    assert not np.isfinite(worker.strategy.step(1.0))


def run(job: dict[str, Any], rank: int, world_size: int, port: int) -> dict[str, torch.Tensor]:
    """Every case of a job on this rank; the tensors are the same on all ranks."""
    worker = LearnerWorker(job["recipe"], job["model"], rank, world_size, 10)
    worker.setup("127.0.0.1", port)
    found: dict[str, torch.Tensor] = {}
    for case, (recipe, kind, order) in job["cases"].items():
        worker.recipe = recipe
        rows = [job["rows"][i] for i in order]
        grads = gradients(worker, rows, kind)
        found |= {f"{case}/{name}": value for name, value in grads.items()}
    worker.recipe = job["recipe"]
    for step in range(2):
        metrics = worker.update(job["rows"], step)
        keys = ("loss", "grad_norm", "clip_fraction", "approx_kl", "ref_kl", "entropy")
        found |= {f"metrics-{step}/{k}": torch.tensor(metrics[k]) for k in keys}
    found |= {f"weights/{name}": value for name, value in worker.export_weights()}
    worker.shutdown()
    return found


def main() -> None:
    """Command line."""
    path, rank, world_size, port = sys.argv[1], *map(int, sys.argv[2:])
    found = run(pickle.loads(Path(path).read_bytes()), rank, world_size, port)
    if rank == 0:
        save_file({k: v.contiguous() for k, v in found.items()}, Path(path).with_suffix(".out"))


if __name__ == "__main__":
    main()

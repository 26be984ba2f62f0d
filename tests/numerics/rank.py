"""One rank of `test_split.py`: what every strategy makes of the same rows, as safetensors.

Run as `python rank.py JOB RANK WORLD_SIZE PORT`; JOB is a pickle of the test's own making.
"""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actrep_ray.cluster import presence
from actrep_ray.cluster.stopping import AbandonedError
from actrep_ray.config import Recipe
from actrep_ray.learner import shares
from actrep_ray.learner.batch.loader import MicroBatchLoader
from actrep_ray.learner.loss.objective import (
    LossAndSums,
    PolicyTargets,
    count_batch,
    grpo_loss,
    sft_loss,
)
from actrep_ray.learner.optimizer_step import LearnerError, accumulate_gradients
from actrep_ray.learner.worker import LearnerWorker
from tests.numerics.saved_tensors import load_tensors, sent_by_all

SOME = ("sft", "small", "shuffled", "token-mean")


def gradients(
    worker: LearnerWorker, recipe: Recipe, rows: list[Any], kind: str
) -> dict[str, torch.Tensor]:
    """Whole gradients of a batch: `sft`, or `grpo` with half-old log-probs, KL and entropy."""
    ranks, chosen = worker.ranks, range(len(rows))
    counts = count_batch(
        rows,
        chosen,
        num_ranks=ranks.size,
        max_answer_tokens=recipe.rollout.max_response_tokens,
    )
    shifted = {} if kind == "sft" else half_old(worker, rows)
    targets = PolicyTargets(rows, shifted, shifted, kl_coef=recipe.algorithm.kl_coef)

    def loss_fn(batch: Any, log_probs: torch.Tensor, entropy: torch.Tensor) -> LossAndSums:
        if kind == "sft":
            return sft_loss(log_probs, entropy, counts)
        return grpo_loss(batch, log_probs, entropy, targets, counts, recipe.algorithm)

    accumulate_gradients(
        worker.strategy,
        MicroBatchLoader(worker.encoder, ranks, recipe.learner).load(rows, chosen),
        loss_fn,
        ranks,
        temperature=1.0,
        with_entropy_grad=kind == "grpo",
    )
    found = {name: gradient.clone() for name, gradient in worker.strategy.gradients()}
    forget(worker)
    return found


def half_old(worker: LearnerWorker, rows: list[Any]) -> dict[tuple[int, int], np.ndarray]:
    """Log-probabilities of the answers as they might have been before."""
    return {
        (i, a): (value + 0.3 * np.sin(np.arange(len(value)) + i + a)).astype(np.float32)
        for i, values in enumerate(worker.log_probs(rows))
        for a, value in enumerate(values)
    }


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
    found: dict[str, torch.Tensor] = {}
    workers = []
    shares.SMALL_BYTES = 0  # each rank writes its share even of so small a model
    for strategy in job["started"][world_size]:
        recipe = job["strategies"][strategy]
        worker = LearnerWorker(recipe, job["model"], rank, world_size, 10)
        worker.setup("127.0.0.1", port)
        workers.append(worker)
        folder = Path(job["folder"]) / f"{strategy}-{world_size}"
        parts = gradients_of_cases(worker, job, only=SOME if strategy != "fsdp2" else None)
        parts |= updates(worker, job["rows"], folder)
        parts |= giving_up(worker, job["rows"], worker.loader, 0)
        parts |= {f"weights/{name}": value for name, value in sent_by_all(worker).items()}
        parts |= going_on(recipe, job, folder, rank, world_size, port)
        parts |= moving_average(worker, job["rows"])
        parts |= nothing_to_train(worker, job["rows"])
        if strategy == "fsdp2":
            parts |= picking(job, rank, world_size, port)
        parts |= bad_loss(worker, job["rows"])
        found |= {f"{strategy}/{name}": value for name, value in parts.items()}
    workers[0].shutdown()
    return found


def gradients_of_cases(
    worker: LearnerWorker, job: dict[str, Any], only: tuple[str, ...] | None
) -> dict[str, torch.Tensor]:
    """`CASE/PARAMETER` to its whole gradient."""
    found: dict[str, torch.Tensor] = {}
    for case, (recipe, kind, order) in job["cases"].items():  # how to pack, and which loss
        if only is None or case in only:
            rows = [job["rows"][i] for i in order]
            grads = gradients(worker, recipe, rows, kind)
            found |= {f"{case}/{name}": value for name, value in grads.items()}
    return found


def updates(worker: LearnerWorker, rows: list[Any], folder: Path) -> dict[str, torch.Tensor]:
    """Metrics of two updates of GRPO and a step of SFT; saved after the first update."""
    found: dict[str, torch.Tensor] = {}
    for step in range(2):
        found |= _metrics(f"metrics-{step}", worker.update(rows, step))
        if step == 0:
            worker.save_model(folder / "model")
            worker.save_state(folder / "state")
    worker.save_model(folder / "end")
    found |= averages_in(folder / "end", "ema")
    found |= _metrics("metrics-sft", worker.sft_step(rows))
    return found


def giving_up(
    worker: LearnerWorker, rows: list[Any], loader: MicroBatchLoader, num_before: int
) -> dict[str, torch.Tensor]:
    """How many weights a step moves that one rank alone wishes to be left: 0, on every rank.

    Args:
        worker: That of this rank.
        rows: Of the step.
        loader: Makes its micro-batches, more than `num_before`.
        num_before: Micro-batches that are done before the wish.
    """
    before, taken = masters(worker), worker.num_optimizer_steps
    is_last = worker.ranks.rank == worker.ranks.size - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.steps, "_loader", loader)
        patch.setattr(presence, "is_wished", iter([False] * num_before + [is_last]).__next__)
        with pytest.raises(AbandonedError):
            worker.sft_step(rows)
    assert worker.num_optimizer_steps == taken
    moved = _num_changed(before, masters(worker))
    return {f"moved-by-giving-up-after-{num_before}": torch.tensor(moved)}


def picking(job: dict[str, Any], rank: int, world_size: int, port: int) -> dict[str, torch.Tensor]:
    """Metrics of an update with each loss that picks tokens of the whole mini-batch."""
    found: dict[str, torch.Tensor] = {}
    for loss, recipe in job["picking"].items():
        worker = LearnerWorker(recipe, job["model"], rank, world_size, 10)
        worker.setup("127.0.0.1", port)
        found |= _metrics(f"picking-{loss}", worker.update(job["rows"], 1))
    return found


def going_on(
    recipe: Any, job: dict[str, Any], folder: Path, rank: int, world_size: int, port: int
) -> dict[str, torch.Tensor]:
    """Metrics of the second update by a learner that began with what was saved before it.

    Then a step that is given up with a gradient there already, after which nothing comes but a
    checkpoint: how many weights of it are other ones.
    """
    model, rows = str(folder / "model"), job["rows"]
    worker = LearnerWorker(recipe, model, rank, world_size, 10, base_path=recipe.model.path)
    worker.setup("127.0.0.1", port)
    worker.load_state(folder / "state")
    found = _metrics("resumed-1", worker.update(rows, 1))
    worker.save_model(folder / "resumed")
    small = job["cases"]["small"][0].learner  # several micro-batches
    loader = MicroBatchLoader(worker.encoder, worker.ranks, small, worker._give_way)
    found |= giving_up(worker, rows, loader, 1)
    worker.save_model(folder / "given-up")
    worker.save_state(folder / "given-up-state")
    if worker.ranks.is_first:
        resumed, saved = (load_tensors(folder / n, "model") for n in ("resumed", "given-up"))
        found["saved-otherwise"] = torch.tensor(_num_changed(resumed, saved))
    return found | averages_in(folder / "resumed", "resumed-ema")


def averages_in(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights of the moving average that a model folder holds."""
    return {f"{name}/{k}": v for k, v in load_tensors(folder / "ema", "model").items()}


def moving_average(worker: LearnerWorker, rows: list[Any]) -> dict[str, torch.Tensor]:
    """How far two steps' average is from its formula, and from the weights."""
    assert worker.ema is not None
    expected, weights = averages(worker), {}
    for _ in range(2):
        worker.sft_step(rows)
        weights = masters(worker)
        expected = {n: 0.9 * average + 0.1 * weights[n] for n, average in expected.items()}
    found = averages(worker)
    assert all(torch.equal(w, weights[n]) for n, w in masters(worker).items())
    return {
        "ema-error": torch.stack([(found[n] - expected[n]).abs().max() for n in found]).max(),
        "ema-distance": torch.stack([(found[n] - weights[n]).abs().max() for n in found]).min(),
    }


def nothing_to_train(worker: LearnerWorker, rows: list[Any]) -> dict[str, torch.Tensor]:
    """How many weights and averages a step without a gradient moves: 0, though momentum is there.

    Then a gradient on the last rank alone: every rank takes the step.
    """
    counts = count_batch(rows, range(len(rows)), num_ranks=worker.ranks.size, max_answer_tokens=1)

    def take(rank: int) -> dict[str, float]:
        def loss_fn(_: Any, log_probs: torch.Tensor, __: Any) -> LossAndSums:
            return log_probs.sum() * float(worker.ranks.rank == rank), {"loss": 0.0}

        return worker.steps.take(
            rows, range(len(rows)), loss_fn, counts, temperature=1.0, num_left=5
        )

    before, before_averages, taken = masters(worker), averages(worker), worker.num_optimizer_steps
    metrics = take(-1)
    assert metrics["grad_norm"] == 0
    assert worker.num_optimizer_steps == taken
    still = _num_changed(before, masters(worker)) + _num_changed(before_averages, averages(worker))
    assert take(worker.ranks.size - 1)["grad_norm"] > 0
    assert worker.num_optimizer_steps == taken + 1
    return {
        "moved-by-nothing": torch.tensor(still),
        "moved-by-one-rank": torch.tensor(_num_changed(before, masters(worker))),
    }


def _num_changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> int:
    return sum(not torch.equal(weight, after[name]) for name, weight in before.items())


def averages(worker: LearnerWorker) -> dict[str, torch.Tensor]:
    assert worker.ema is not None
    with worker.ema.in_place():
        return masters(worker)


def masters(worker: LearnerWorker) -> dict[str, torch.Tensor]:
    return {
        name: worker.strategy.whole_master(parameter).clone()
        for name, parameter in worker.policy.model.named_parameters()
        if parameter.requires_grad
    }


def bad_loss(worker: LearnerWorker, rows: list[Any]) -> dict[str, torch.Tensor]:
    """How many weights a step changed that had a row of pixels that are no numbers: 0."""
    before = sent_by_all(worker)
    worker.encoder.encode(rows[1]).pixel_values[3, 5] = torch.nan
    with pytest.raises(LearnerError, match=rows[1].row_id):
        worker.sft_step(rows)
    changed = [n for n, w in sent_by_all(worker).items() if not torch.equal(w, before[n])]
    return {"num_changed": torch.tensor(len(changed))}


def _metrics(name: str, metrics: dict[str, float]) -> dict[str, torch.Tensor]:
    keys = ("loss", "grad_norm", "clip_fraction", "approx_kl", "ref_kl", "entropy", "lr")
    return {
        f"{name}/{k}": torch.tensor(metrics[k], dtype=torch.float64) for k in keys if k in metrics
    }


def main() -> None:
    """Command line."""
    path, rank, world_size, port = sys.argv[1], *map(int, sys.argv[2:])
    found = run(pickle.loads(Path(path).read_bytes()), rank, world_size, port)
    if rank == 0:
        save_file({k: v.contiguous() for k, v in found.items()}, Path(path).with_suffix(".out"))


if __name__ == "__main__":
    main()

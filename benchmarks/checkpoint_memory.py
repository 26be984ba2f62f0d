"""Host memory of what moves a whole model: loading it, a save, loading that state, a push.

Two ranks hold a Qwen3-VL of 203 million parameters with random weights in float32 (`--quick`: 27
million) under each strategy, on a CPU, each a process. Every rank first does all of it with a
smaller model, so that libraries and allocators are warm; then it notes its resident memory, and the
peak above that while it

    loads the model    from its files (ZeRO: until DeepSpeed has the weights; what it allocates
                       beside them would be of a GPU),
    saves              the copy to host memory and the writing of the files,
    pushes             packs its weights into buckets, each let go as Ray's store would copy it,
    loads the state    that was saved.

    python benchmarks/checkpoint_memory.py [--quick] [--strategies fsdp2 zero2 zero3]

The last line is one JSON object: for each strategy and call the larger of the ranks' peaks, the
share that a rank holds or writes, and that share plus one bucket of 256 MiB, all in MiB. The script
fails if a peak is above it.
"""

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from checkpoint_save import start_rank, write_model

from actrep_ray.learner.strategies.deepspeed import Zero
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.run.manifest import TRAINING
from actrep_ray.weights.buckets import BUCKET_BYTES, pack_weights

_STRATEGIES: dict[str, dict[str, object]] = {
    "fsdp2": {},
    "zero2": {"learner.strategy": "deepspeed", "learner.zero_stage": 2},
    "zero3": {"learner.strategy": "deepspeed", "learner.zero_stage": 3},
}
_NUM_RANKS = 2
_MIB = 2**20


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--quick", action="store_true", help="a smaller model, FSDP2 alone")
    options.add_argument("--strategies", nargs="+", choices=_STRATEGIES, default=None)
    options.add_argument("--rank", nargs=4, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.rank:
        root, strategy, rank, port = args.rank
        found = measure(Path(root), strategy, int(rank), int(port))
        Path(root, f"{strategy}-{rank}.json").write_text(json.dumps(found))
        return
    names = args.strategies or (["fsdp2"] if args.quick else list(_STRATEGIES))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_model(root / "warm", 256, 6)
        num = write_model(root / "model", *((512, 6) if args.quick else (1024, 12)))
        result = {name: measure_ranks(root, name, num) for name in names}
    print(json.dumps({"benchmark": "checkpoint_memory", "quick": args.quick, **result}))
    too_much = [
        f"{name}/{call}"
        for name, calls in result.items()
        for call, one in calls.items()
        if one["peak"] > one["share_and_bucket"]
    ]
    if too_much:
        sys.exit(f"above share and bucket: {', '.join(too_much)}")


def measure_ranks(root: Path, strategy: str, num_parameters: int) -> dict[str, Any]:
    """The larger of the ranks' peaks of each call, beside a rank's share."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, "--rank", str(root), strategy, str(rank), str(port)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(_NUM_RANKS)
    ]
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        sys.exit(f"{strategy}: a rank failed")
    found = [json.loads((root / f"{strategy}-{r}.json").read_text()) for r in range(_NUM_RANKS)]
    weights = 4 * num_parameters / _MIB
    shares = {
        "load_model": weights / (1 if strategy == "zero2" else _NUM_RANKS),
        "save": 3 * weights / _NUM_RANKS,  # weights and both moments
        "push": 0.0,
        "load_state": 2 * weights / _NUM_RANKS,
    }
    result = {}
    for call, share in shares.items():
        peak = max(one[call] for one in found)
        limit = share + BUCKET_BYTES / _MIB
        result[call] = {name: round(value) for name, value in (("peak", peak), ("share", share))}
        result[call]["share_and_bucket"] = round(limit)
        print(f"{strategy} {call}: {peak:.0f} MiB, share and bucket {limit:.0f}", flush=True)
    return result


def measure(root: Path, strategy: str, rank: int, port: int) -> dict[str, float]:
    """What one rank's calls take, MiB."""
    torch.set_num_threads(1)
    calls_of(root, "warm", strategy, rank, port)
    return calls_of(root, "model", strategy, rank, port)


def calls_of(root: Path, name: str, strategy: str, rank: int, port: int) -> dict[str, float]:
    """The same with one model: load, step, save, push; then load what was saved."""
    found: dict[str, float] = {}
    saved, settings = root / f"{strategy}-{name}", _STRATEGIES[strategy]
    where = (settings, rank, _NUM_RANKS, port)
    note = _noting(found, "load_model")
    if strategy == "fsdp2":
        worker, rows = start_rank(root, root / name, *where, note)
    else:
        fill = Zero._fill
        with patch.object(Zero, "_fill", lambda *given: note(partial(fill, *given))):
            worker, rows = start_rank(root, root / name, *where, lambda setup: setup())
    worker.sft_step(rows)  # so that there are moments
    if worker.ranks.is_first:
        saved.mkdir()
    worker.ranks.barrier()
    _noting(found, "save")(partial(_save, worker, saved))
    _noting(found, "push")(partial(_push, worker))
    worker.ranks.barrier()
    del worker
    gc.collect()
    again, _ = start_rank(root, saved, *where, lambda setup: setup())
    _noting(found, "load_state")(lambda: again.load_state(saved / TRAINING))
    again.ranks.barrier()
    return found


def _save(worker: LearnerWorker, folder: Path) -> None:
    worker.begin_save(folder)
    worker.finish_save()


def _push(worker: LearnerWorker) -> None:
    for _ in map(id, pack_weights(worker.iter_weights())):  # none is kept beside the next
        pass


def _noting(found: dict[str, float], name: str) -> Callable[[Callable[[], Any]], None]:
    """Makes a call and notes by how much its peak was above the memory before it, MiB."""

    def note(call: Callable[[], Any]) -> None:
        before = _memory_mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        call()
        found[name] = _memory_mib("VmHWM") - before

    return note


def _memory_mib(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


if __name__ == "__main__":
    main()

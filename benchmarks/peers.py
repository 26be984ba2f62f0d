"""GRPO by several systems on the same model and clips: samples and tokens per second.

    ours        the synchronous driver: vLLM engine, reward worker, FSDP2 learner (Ray actors)
    ours async  the asynchronous driver, rollouts one step behind at most
    trl         TRL's stock GRPOTrainer; the frames of a clip are its images
    trl video   a subclass of it that hands the video to `generate` and to the forward pass
    in-step     one process, one clip at a time: generate, repeat the pixels G times, learn

Each runs in a process of its own, one after the other, in float32, from the same checkpoint, on the
same clips in the same order, with the same group size, cap of an answer's length and number of
optimiser steps (one a step), no reference model. Two threads compute in each: one of the engine and
one of the learner in ours, which the synchronous driver keeps busy by turns; two of PyTorch in the
peers (`--peer-threads`). The first step of each is not counted. CPU seconds are those of all
processes and threads of a system: on a machine that is busy with other work they say more than
seconds do, with one thread for the peers, since a thread that waits for another one spins.

    python benchmarks/peers.py --model CHECKPOINT --data CLIPS.jsonl [--quick]

Give `--model` an SFT checkpoint, whose answers earn different rewards. Without one the shipped base
model is used: its answers earn nothing, so that a hash of the text is the reward, by which every
group has something to learn from. Starting five systems takes minutes, far beyond the steps that
`--quick` measures: name a few with `--only`.

The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

EPILOG = (
    "Give an SFT checkpoint: with the base model a hash of the text is the reward. Starting five "
    "systems takes minutes, with --quick too; --only names a few."
)
NAMES = {
    "ours": "ours",
    "ours-async": "ours async",
    "trl": "trl",
    "trl-video": "trl video",
    "in-step": "in-step",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog=EPILOG)
    parser.add_argument("--quick", action="store_true", help="fewer prompts, fewer steps")
    parser.add_argument("--model", type=Path, help="checkpoint to start from; the base by default")
    parser.add_argument("--data", type=Path, help="clips.jsonl; 64 easy clips by default")
    parser.add_argument("--prompts", type=int, help="prompts of a step")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, help="cap of an answer")
    parser.add_argument(
        "--pixels", type=int, default=1024, help="of a frame; 1024 are one token for two frames"
    )
    parser.add_argument("--steps", type=int, help="steps that count, after one of warm-up")
    parser.add_argument("--trl-micro-batch", type=int, default=32, help="answers, divides the step")
    parser.add_argument("--peer-threads", type=int, default=2, help="threads of each peer")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=[*NAMES])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.prompts = args.prompts or (4 if args.quick else 16)
    args.max_tokens = args.max_tokens or (96 if args.quick else 256)
    args.steps = args.steps or (1 if args.quick else 4)
    if args.prompts * args.group_size % min(args.trl_micro_batch, args.prompts * args.group_size):
        parser.error(
            f"--trl-micro-batch {args.trl_micro_batch}: expected a divisor of --prompts x "
            f"--group-size = {args.prompts * args.group_size}"
        )
    if args.child:
        result = run(args.child, args)
        (args.folder / f"{args.child}.json").write_text(json.dumps(result), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args, Path(folder))
    print(json.dumps(report(args, results)))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Every system in a process of its own, one after the other."""
    prepare(args, folder)
    results = {}
    for name in args.only:
        began = time.perf_counter()
        command = [sys.executable, __file__, "--child", name, "--folder", str(folder)]
        for key in (
            "prompts",
            "group_size",
            "max_tokens",
            "pixels",
            "steps",
            "trl_micro_batch",
            "peer_threads",
        ):
            command += [f"--{key.replace('_', '-')}", str(getattr(args, key))]
        for key in ("model", "data"):
            if getattr(args, key):
                command += [f"--{key}", str(getattr(args, key).absolute())]
        env = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
        with (folder / f"{name}.log").open("w+", encoding="utf-8") as log:
            status = subprocess.run(command, env=env, stdout=log, stderr=log, check=False)
            if status.returncode:
                log.seek(0)
                raise SystemExit(f"{name} failed:\n{log.read()[-4000:]}")
        results[name] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        results[name]["load"] = os.getloadavg()[1]
        seconds, all_s = results[name]["step_s"], time.perf_counter() - began
        load = results[name]["load"]
        print(
            f"{NAMES[name]:<11} {seconds:7.2f} s a step ({all_s:.0f} s in all, load {load:.0f})",
            flush=True,
        )
    return results


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Render the clips and write the model, where none are given."""
    from actrep_ray.models.tiny import write_base_model
    from data_prep.synthetic.dataset import write_dataset

    if not args.data:
        write_dataset(folder / "data", level="easy", num_clips={"train": 64}, seed=0)
    if not args.model:
        write_base_model(folder / "model")


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One system, in this process (and in those that it starts)."""
    recipe = make_recipe(args, name)
    if name.startswith("ours"):
        return run_ours(recipe)
    import torch
    from peer_work import Work

    torch.set_num_threads(args.peer_threads)
    work = Work.of(recipe)
    if name == "in-step":
        from peer_in_step import run_in_step

        return run_in_step(work)
    from peer_trl import run_trl

    size = args.prompts * args.group_size
    return run_trl(
        work,
        args.folder / name,
        with_video=name == "trl-video",
        micro_batch=min(args.trl_micro_batch, size),
    )


def make_recipe(args: argparse.Namespace, name: str) -> Any:
    """Settings like those of recipes/tiny_grpo.yaml."""
    from actrep_ray.config import load_recipe

    model, data = args.model or args.folder / "model", args.data or args.folder / "data/clips.jsonl"
    settings = [
        "device=cpu",
        f"model.path={json.dumps(str(model))}",
        f"data.path={json.dumps(str(data))}",
        f"runs_dir={json.dumps(str(args.folder / 'runs'))}",
        f"name={name}",
        f"video.cache_dir={json.dumps(str(args.folder / f'frames-{name}'))}",
        f"rollout.max_response_tokens={args.max_tokens}",
        f"train.num_steps={args.steps + (2 if name.startswith('ours') else 1)}",
        f"train.prompts_per_step={args.prompts}",
        f"train.group_size={args.group_size}",
        f"video.min_pixels={args.pixels}",
        f"video.max_pixels={args.pixels}",
        f"rollout.max_model_len={max(1024, 3 * args.pixels // 16)}",
        f"learner.micro_batch_tokens={max(2048, args.pixels // 4)}",
        "train.mini_batch_size=null",
        "checkpoint.every=0",
        f"train.max_staleness={1 if name == 'ours-async' else 'null'}",
    ]
    if not args.model:
        settings.append("reward.weights={'peer_work:any_text': 1.0}")
    return load_recipe(Path(__file__).parents[1] / "recipes" / "tiny_grpo.yaml", settings)


def run_ours(recipe: Any) -> dict[str, Any]:
    """Our driver with its real workers; the figures are those that it logs."""
    from actrep_ray.driver.job import prepare_grpo
    from actrep_ray.run.metrics import read_metrics

    path = recipe.run_dir / "metrics.jsonl"
    meter = CpuMeter(path)
    meter.start()
    prepare_grpo(recipe).run()
    # The first step is a warm-up; the last one writes a checkpoint.
    rows = [row for row in read_metrics(path) if 1 < row["step"] < recipe.train.num_steps]

    def mean(key: str) -> float:
        return float(np.mean([row.get(key) or 0.0 for row in rows]))

    seconds = mean("time/step_s")
    answers = recipe.train.prompts_per_step * recipe.train.group_size
    length = mean("rollout/response_tokens")
    keys = [key for key in rows[-1] if key.startswith("time/") and key.endswith("_s")]
    return {
        "step_s": seconds,
        "cpu_s": float(np.mean([meter.spent[row["step"]] for row in rows])),
        "samples_per_s": answers / seconds,
        "tokens_per_s": answers * length / seconds,
        "mean_length": length,
        "reward": mean("reward/mean"),
        "parts_s": {k.removeprefix("time/").removesuffix("_s"): mean(k) for k in keys},
        "dropped_share": mean("dropped/groups") / recipe.train.prompts_per_step,
    }


class CpuMeter(threading.Thread):
    """CPU seconds of each logged step, of this process and all that it started.

    Args:
        path: The file that gets a line at the end of each step; the first line is step 0.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.spent: dict[int, float] = {}
        self._path = path

    def run(self) -> None:
        step, last = -1, 0.0
        while True:
            lines = self._path.read_text("utf-8").count("\n") if self._path.exists() else 0
            if lines - 1 > step:
                now = self._total()
                step, self.spent[lines - 1], last = lines - 1, now - last, now
            time.sleep(0.02)

    @staticmethod
    def _total() -> float:
        this = psutil.Process()
        total = 0.0
        for process in [this, *this.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total


def report(args: argparse.Namespace, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Print the table; returns the JSON object."""
    base = results.get("ours")
    print(
        f"\n{args.prompts} prompts x {args.group_size} answers of at most {args.max_tokens} tokens "
        f"a step, frames of {args.pixels} pixels, {args.steps} steps, float32, "
        f"{args.peer_threads} threads of the peers\n"
        f"{'':<11}{'s/step':>8}{'CPU s':>8}{'samples/s':>11}{'tokens/s':>10}{'length':>8}"
        f"{'ours: samples':>15}{'tokens':>8}{'tokens/CPU s':>14}"
    )
    for name, row in results.items():
        line = (
            f"{NAMES[name]:<11}{row['step_s']:>8.2f}{row['cpu_s']:>8.2f}"
            f"{row['samples_per_s']:>11.2f}{row['tokens_per_s']:>10.0f}{row['mean_length']:>8.1f}"
        )
        row["tokens_per_cpu_s"] = row["tokens_per_s"] * row["step_s"] / row["cpu_s"]
        if base:
            for key in ("samples_per_s", "tokens_per_s", "tokens_per_cpu_s"):
                row[f"ours_by_{key}"] = base[key] / row[key]
            line += (
                f"{row['ours_by_samples_per_s']:>14.2f}x{row['ours_by_tokens_per_s']:>7.2f}x"
                f"{row['ours_by_tokens_per_cpu_s']:>13.2f}x"
            )
        print(line)
    return {
        "benchmark": "peers",
        "quick": args.quick,
        "model": "given" if args.model else "base",
        "prompts_per_step": args.prompts,
        "group_size": args.group_size,
        "max_tokens": args.max_tokens,
        "pixels": args.pixels,
        "steps": args.steps,
        "peer_threads": args.peer_threads,
        "systems": {name: _rounded(row) for name, row in results.items()},
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()

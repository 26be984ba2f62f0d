"""Whether a long run grows: memory and open files of every process, /dev/shm and /tmp, by step.

`actrep train` of an untrained small model, one worker of each kind, with checkpoints; every two
seconds what all of its processes hold is noted. The reward tells almost any two answers apart, so
that steps train and push; a run in which fewer than nine in ten did so is refused. After a warm-up
(the first quarter of the steps) a line is fitted to each series by Theil and Sen's method (the
median of the slopes of all pairs, which single jumps do not move), and what it says of 1,000 steps
is printed beside its level, and the level in each tenth of the run: what grows and then stays is no
leak.

    python benchmarks/memory_growth.py [--quick] [--steps 500] [--plot memory_growth.png]

The last line is one JSON object: the share of steps that trained, and of each series the level
after the warm-up, the growth in 1,000 steps and the level in each tenth, in MB (1e6 bytes) or
files.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from scipy.stats import theilslopes

from actrep_ray.models.tiny import write_tiny_model
from actrep_ray.run.metrics import read_metrics
from data_prep.synthetic.dataset import write_dataset

WARM_UP = 0.25  # of the steps
EVERY_S = 2.0
RECIPE = """
stage: grpo
name: growth
runs_dir: {folder}
device: cpu
model: {{path: {folder}/model, dtype: float32}}
data: {{path: {folder}/data/clips.jsonl}}
video: {{max_pixels: 1024, cache_dir: {folder}/frames}}
rollout: {{engine: {engine}, max_model_len: 512, max_response_tokens: 16, max_num_seqs: 16,
          kv_cache_gib: 0.1}}
reward: {{weights: {{"growth_reward:letters": 1.0}}}}
learner: {{lr: 1.0e-6}}
train: {{num_steps: {steps}, prompts_per_step: 2, group_size: 2, on_untrained: log}}
checkpoint: {{every: 20, keep: 2}}
"""
# Says another number of almost every answer: no group is flat, every step trains.
REWARD = """
def letters(response, reference):
    return sum(map(ord, response.text)) % 97 / 96
"""
LEAST_TRAINED = 0.9  # of the steps

Series = dict[str, list[tuple[int, float]]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--quick", action="store_true", help="few steps, without vLLM")
    options.add_argument("--steps", type=int, default=500)
    options.add_argument("--engine", choices=("vllm", "hf"), default="vllm")
    options.add_argument("--plot", type=Path, help="a PNG of all series")
    args = options.parse_args()
    steps, engine = (12, "hf") if args.quick else (args.steps, args.engine)
    with tempfile.TemporaryDirectory(prefix="growth-") as root:
        series = measure(Path(root), steps, engine)
        trained = trained_share(Path(root) / "growth" / "metrics.jsonl")
    if trained < LEAST_TRAINED:
        sys.exit(f"{trained:.0%} of the steps trained, which says nothing of a run that does")
    result = {name: fit(points, steps) for name, points in sorted(series.items())}
    if args.plot:
        plot(series, args.plot)
    print(
        json.dumps(
            {
                "benchmark": "memory_growth",
                "quick": args.quick,
                "engine": engine,
                "steps": steps,
                "trained": round(trained, 3),
                "series": {name: found for name, found in result.items() if found},
            }
        )
    )


def prepare(root: Path, num_steps: int, engine: str) -> Path:
    """Twelve clips and an untrained model; returns the recipe that names them."""
    write_dataset(root / "data", level="easy", num_clips={"train": 12}, seed=0, num_processes=1)
    write_tiny_model(root / "model")
    (root / "growth_reward.py").write_text(REWARD)
    recipe = root / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=root, steps=num_steps, engine=engine))
    return recipe


def measure(root: Path, num_steps: int, engine: str) -> Series:
    """What the processes of a run hold, by series, with the step at which it was seen."""
    command = [sys.executable, "-m", "actrep_ray", "train", str(prepare(root, num_steps, engine))]
    series: Series = defaultdict(list)
    with (root / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"},
        )
        try:
            while process.poll() is None:
                step = last_step(root / "growth" / "metrics.jsonl")
                if step:
                    for name, value in look(psutil.Process(process.pid)).items():
                        series[name].append((step, value))
                time.sleep(EVERY_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise RuntimeError((root / "output.txt").read_text()[-3000:])
    return series


def trained_share(metrics: Path) -> float:
    """Share of the steps in which the learner updated, and pushed, its weights."""
    rows = [row for row in read_metrics(metrics) if "time/step_s" in row]
    trained = [row for row in rows if row.get("learner/num_optimizer_steps", 0) > 0]
    return len(trained) / len(rows)


def last_step(path: Path) -> int:
    return max((row["step"] for row in read_metrics(path)), default=0) if path.is_file() else 0


def look(driver: psutil.Process) -> dict[str, float]:
    """MB and open files of the run's processes by kind, and MB of memory files and /tmp."""
    found: dict[str, float] = defaultdict(float)
    with suppress(psutil.Error):
        for process in [driver, *driver.children(recursive=True)]:
            with suppress(psutil.Error):
                kind = kind_of(process, driver)
                # private pages alone: those of the object store are shared
                found[f"{kind}: memory"] += process.memory_full_info().uss / 1e6
                found[f"{kind}: files"] += process.num_fds()
                if kind == "raylet":
                    # pages of the object store that were ever written to: it gives none back
                    found["object store: memory"] += process.memory_info().shared / 1e6
                    found["Ray's folder in /tmp: disk"] = used(session_of(process))
    found["/dev/shm: memory"] = used(Path("/dev/shm"))
    return dict(found)


def session_of(raylet: psutil.Process) -> Path:
    """The folder of its Ray session, of which a machine may have several."""
    [socket] = [one for one in raylet.cmdline() if one.startswith("--raylet_socket_name=")]
    return Path(socket.partition("=")[2]).parents[1]


def kind_of(process: psutil.Process, driver: psutil.Process) -> str:
    """ "driver", "RolloutWorker", "raylet", ..."""
    if process.pid == driver.pid:
        return "driver"
    command = process.cmdline()
    title = command[0] if command else process.name()
    if title.startswith("ray::"):
        return str(title).removeprefix("ray::").partition(".")[0]
    words = ("raylet", "gcs_server", "dashboard", "log_monitor", "monitor", "serve()")
    return str(next((word for word in words if word in " ".join(command)), process.name()))


def used(folder: Path) -> float:
    """MB that the files of a folder take."""
    blocks = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                blocks += os.lstat(Path(parent) / name).st_blocks
    return blocks * 512 / 1e6


def fit(points: list[tuple[int, float]], num_steps: int) -> dict[str, Any] | None:
    """Level after the warm-up, growth in 1,000 steps, levels by tenths; None of too few points."""
    late = [(step, value) for step, value in points if step >= WARM_UP * num_steps]
    if len(late) < 5 or late[0][0] == late[-1][0]:
        return None
    steps, values = zip(*late, strict=True)
    slope = float(theilslopes(values, steps).slope)
    tenths: list[list[float]] = [[] for _ in range(10)]
    for step, value in points:
        tenths[min(10 * (step - 1) // num_steps, 9)].append(value)
    levels = [round(median(tenth), 1) if tenth else None for tenth in tenths]
    return {"level": round(median(values), 1), "growth": round(1000 * slope, 2), "tenths": levels}


def plot(series: Series, path: Path) -> None:
    """Each series against the step, relative to its level after the warm-up."""
    import matplotlib.pyplot as plt

    groups = {"MB": ("memory", "disk"), "open files": ("files",)}
    figure, axes = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
    for ax, (unit, kinds) in zip(axes, groups.items(), strict=True):
        ax.set_prop_cycle(color=plt.get_cmap("tab20").colors)
        for name, points in sorted(series.items()):
            if name.rpartition(": ")[2] in kinds and len(points) > 5:
                steps, values = zip(*points, strict=True)
                ax.plot(steps, values, label=name.rpartition(": ")[0], linewidth=1)
        ax.set(xlabel="step", ylabel=unit, yscale="symlog")
        ax.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()

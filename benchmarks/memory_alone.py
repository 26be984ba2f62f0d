"""What one worker of a long run holds, in a process of its own: does it level off?

A run's engine and rank grow while it lasts (`memory_growth.py`). Here each does its turns alone,
without Ray: an engine answers two prompts and takes new weights, a rank makes an update, gathers
its weights and, every twentieth time, saves. Sixty times its private memory is noted. Printed are
the mean of each tenth of the turns, and the growth in 1,000 turns that a line by Theil and Sen says
of the first and of the second half of all turns but the first tenth.

    python benchmarks/memory_alone.py [engine|rank] [--turns 3000] [--quick] [--plot FILE.png]

The last line is one JSON object, in MB (1e6 bytes).
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
import psutil
from memory_growth import prepare
from safetensors.torch import load_file
from scipy.stats import theilslopes

from actrep_ray.config import Recipe, load_recipe
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.models.qwen_vl import QwenVLInputs
from actrep_ray.records import LearnerRow, Prompt
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.vllm_engine import VllmEngine
from data_prep.schema import Clip, read_clips

NUM_LOOKS = 60


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("worker", nargs="?", choices=("engine", "rank"), default="engine")
    options.add_argument("--turns", type=int, default=3000)
    options.add_argument("--quick", action="store_true", help="few turns, of the rank")
    options.add_argument("--plot", type=Path, help="a PNG: memory by turn")
    args = options.parse_args()
    worker, turns = ("rank", 40) if args.quick else (args.worker, args.turns)
    with tempfile.TemporaryDirectory(prefix="alone-") as folder:
        turn = {"engine": an_engine, "rank": a_rank}[worker](Path(folder))
        points = watch(turn, turns, max(turns // NUM_LOOKS, 1))
    if args.plot:
        plot(points, worker, args.plot)
    late = points[len(points) // 10 :]
    halves = late[: len(late) // 2], late[len(late) // 2 :]
    tenths = np.array_split([held for _, held in points], 10)
    result = {
        "benchmark": "memory_alone",
        "quick": args.quick,
        "worker": worker,
        "turns": turns,
        "mb_by_tenth": [round(float(mean(tenth)), 1) for tenth in tenths],
        "growth_in_1000_turns": [round(growth(half), 2) for half in halves],
    }
    print(json.dumps(result))


def watch(turn: Callable[[int], None], turns: int, every: int) -> list[tuple[int, float]]:
    """Turns done, and private memory then in MB."""
    process, points = psutil.Process(), []
    for number in range(1, turns + 1):
        turn(number)
        if number % every == 0:
            points.append((number, process.memory_full_info().uss / 1e6))
    return points


def growth(points: list[tuple[int, float]]) -> float:
    """MB in 1,000 turns."""
    turns, held = zip(*points, strict=True)
    return 1000 * float(theilslopes(held, turns).slope)


def an_engine(folder: Path) -> Callable[[int], None]:
    recipe, clips = prepared(folder, "vllm")
    model = folder / "model"
    inputs = QwenVLInputs(model)
    engine = VllmEngine(model, recipe.rollout, recipe.video, device="cpu", seed=0)
    plans = [inputs.plan(clip, recipe.video) for clip in clips]
    weights = load_file(model / "model.safetensors")
    numbers = itertools.count()

    def turn(version: int) -> None:
        pair = [next(numbers) for _ in range(2)]
        prompts = [Prompt(f"{n}", f"{n}", "How often?", plans[n % len(plans)]) for n in pair]
        engine.generate(prompts, SamplingSettings(max_tokens=16, group_size=2))
        engine.load_weights(weights, version)

    return turn


def a_rank(folder: Path) -> Callable[[int], None]:
    recipe, clips = prepared(folder, "hf")
    model = folder / "model"
    inputs = QwenVLInputs(model)
    worker = LearnerWorker(recipe, str(model), 0, 1, 10**6)
    worker.setup("127.0.0.1", 0)
    chance = np.random.default_rng(0)

    def row(clip: Clip) -> LearnerRow:
        lengths = chance.integers(4, 17, 2)
        return LearnerRow(
            row_id=clip.id,
            question="How often?",
            plan=inputs.plan(clip, recipe.video),
            num_prompt_tokens=0,
            responses=tuple(chance.integers(7, 400, n).astype(np.int32) for n in lengths),
            advantages=chance.normal(size=2).astype(np.float32),
        )

    def turn(number: int) -> None:
        chosen = chance.choice(len(clips), 2, replace=False)
        worker.update([row(clips[i]) for i in chosen], number)
        for _ in worker.iter_weights():
            pass
        if number % 20 == 0:
            worker.begin_save(folder / "saved")
            worker.finish_save()

    return turn


def prepared(folder: Path, engine: str) -> tuple[Recipe, list[Clip]]:
    """Recipe and clips of `memory_growth.py`."""
    recipe = load_recipe(prepare(folder, 1, engine), ["train.max_log_prob_gap=99"])
    return recipe, list(read_clips(recipe.data.path))


def plot(points: list[tuple[int, float]], worker: str, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot(*zip(*points, strict=True))
    axes.set(xlabel="turn", ylabel="MB", title=f"Private memory of one {worker}", ylim=(0, None))
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()

"""How much of the possible overlap of rollout and learning the asynchronous driver achieves.

One synchronous run and asynchronous ones (max_staleness 0, 1, 2) over the same pools: two rollout
engines and a learner with latencies like those of GPUs. The engines and the learner are simulated:
real Ray actors that exchange real tokens and weights, computing replaced by calibrated waits. The
drivers, pools, rewards and the weight sync are the real ones.

    python benchmarks/pipeline.py [--quick]

Taking turns, a step lasts R + L (rollout; learning and new weights), overlapped at best
max(R, L). The share of that bound is max(R, L) / (seconds of an asynchronous step), R and L being
those of the synchronous run. The last line is one JSON object.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import ray
from simulated import load, make_recipe, start_pools, start_ray
from simulated_learner import Latency

from actrep_ray.config import Recipe, override
from actrep_ray.driver.job import GrpoJob
from actrep_ray.driver.pools import Pools
from actrep_ray.run.metrics import read_metrics


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--quick", action="store_true", help="fewer steps")
    args = options.parse_args()
    # Two engines of 8 groups at a time, 32 groups a step: R is about two rounds of group_s.
    group_s = 1.0 if args.quick else 3.0
    num_steps = 4 if args.quick else 8
    start_ray()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_recipe(
            Path(folder),
            [
                f"train.num_steps={num_steps}",
                "train.prompts_per_step=32",
                "rollout.num_workers=2",
                "rollout.max_response_tokens=256",
                "rollout.max_in_flight=128",
            ],
        )
        cases = {"balanced": 2 * group_s, "slow learner": 4 * group_s}
        for name, update_s in list(cases.items())[: 1 if args.quick else 2]:
            pools = start_pools(recipe, Latency(group_s, 8, update_s, weights_mib=16))
            rows |= measure(name, recipe, pools)
    ray.shutdown()
    print(json.dumps({"benchmark": "pipeline", "quick": args.quick, "runs": rows}))


def measure(balance: str, recipe: Recipe, pools: Pools) -> dict[str, dict[str, float]]:
    """A synchronous run and asynchronous ones on the same pools."""
    rows: dict[str, dict[str, float]] = {}
    base = drive(recipe, pools, "null")
    learn = base["learn_s"] + base["sync_s"]
    bound = max(base["rollout_s"], learn)
    names = {"null": "synchronous", "0": "staleness 0", "1": "staleness 1", "2": "staleness 2"}
    for staleness, name in names.items():
        row = base if staleness == "null" else drive(recipe, pools, staleness)
        share = bound / row["step_s"]
        samples = recipe.train.prompts_per_step * recipe.train.group_size / row["step_s"]
        rows[f"{balance}, {name}"] = {
            "step_s": round(row["step_s"], 3),
            "samples_per_s": round(samples, 1),
            "share_of_bound": round(share, 3),
            "staleness_max": row["staleness_max"],
        }
        print(
            f"{balance:>14} {name:>12}: {row['step_s']:6.2f} s a step, {samples:6.1f} samples/s, "
            f"{share:5.1%} of the bound (R {base['rollout_s']:.2f} s, L {learn:.2f} s)",
            flush=True,
        )
    return rows


def drive(recipe: Recipe, pools: Pools, staleness: str) -> dict[str, float]:
    """Medians over the steps after the first one, which starts empty."""
    recipe = override(recipe, [f"train.max_staleness={staleness}", f"name=staleness-{staleness}"])
    data, inputs = load(recipe)
    GrpoJob(recipe, data, inputs, inputs.path, None).driver(pools).run()
    steps = read_metrics(recipe.run_dir / "metrics.jsonl")[2:]

    def median(key: str, less: str = "") -> float:
        return float(np.median([row.get(key, 0.0) - row.get(less, 0.0) for row in steps]))

    return {
        # from row to row, with the checkpoint of the step before, whose time stands in the row too
        "step_s": median("time/step_s", less="time/checkpoint_s"),
        "rollout_s": median("time/rollout_s"),
        "learn_s": median("time/learn_s"),
        "sync_s": median("time/sync_s"),
        "staleness_max": max(row.get("pipeline/staleness_max", 0.0) for row in steps),
    }


if __name__ == "__main__":
    main()

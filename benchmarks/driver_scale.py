"""What a group costs the driver, with 8, 64 and 256 rollout workers.

The workers are simulated: every one has its own engine and its own calls, but all share one Ray
process, since 256 processes would need more memory than what is measured. Groups are finished
at once, so the driver is never the one that waits. What it sends and receives over Ray is real, as
are its sampling, reward pool, advantages, metrics and files.

    python benchmarks/driver_scale.py [--quick]

Measured is the CPU time of the driver's process, all threads of Ray in it included, after one step
of warm-up. The last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from simulated import SimulatedWorker, load, make_recipe, start_pools, start_ray
from simulated_learner import Latency

from actrep_ray.config import Recipe
from actrep_ray.driver.job import GrpoJob
from actrep_ray.driver.pools import Pools

NUM_WORKERS = (8, 64, 256)
_NUM_PROCESSES = 1
_LATENCY = Latency(group_s=0.0, width=1, update_s=0.0, weights_mib=1)


class Host:
    """Several workers in one process."""

    def __init__(self) -> None:
        self.workers: dict[int, SimulatedWorker] = {}

    def call(self, index: int, method: str, *arguments: Any) -> Any:
        """A method of one of the workers."""
        worker = self.workers.setdefault(index, SimulatedWorker(_LATENCY, index))
        return getattr(worker, method)(*arguments)


class Handle:
    """One of a host's workers, as the pool sees it."""

    def __init__(self, host: Any, index: int) -> None:
        self.host = host
        self.index = index

    def __getattr__(self, method: str) -> Any:
        return Method(self, method)


class Method:
    """A call of it."""

    def __init__(self, handle: Handle, name: str) -> None:
        self.handle = handle
        self.name = name

    def remote(self, *arguments: Any) -> Any:
        """Sends the call."""
        return self.handle.host.call.remote(self.handle.index, self.name, *arguments)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--quick", action="store_true", help="fewer steps")
    options.add_argument("--groups", type=int, default=1024, help="of a step, 8 answers each")
    args = options.parse_args()
    num_steps = 3 if args.quick else 4
    start_ray()
    hosts = [ray.remote(num_cpus=0)(Host).remote() for _ in range(_NUM_PROCESSES)]
    milliseconds: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for num_workers in NUM_WORKERS:
            recipe = make_recipe(
                Path(folder),
                [
                    f"train.num_steps={num_steps}",
                    f"train.prompts_per_step={args.groups}",
                    "train.max_staleness=1",
                    f"rollout.num_workers={num_workers}",
                    "rollout.max_response_tokens=128",
                    "rollout.max_in_flight=64",
                ],
            )
            pools = start_pools(
                recipe, _LATENCY, lambda index: Handle(hosts[index % _NUM_PROCESSES], index)
            )
            milliseconds[num_workers] = measure(recipe, pools)
            print(f"{num_workers:>4} workers: {milliseconds[num_workers]:.3f} ms a group")
            pools.rewards.shutdown()
    ray.shutdown()
    growth = milliseconds[NUM_WORKERS[-1]] / milliseconds[NUM_WORKERS[0]] - 1
    result = {
        "benchmark": "driver_scale",
        "quick": args.quick,
        "groups_per_step": args.groups,
        "driver_cpu_ms_per_group": {str(n): round(ms, 3) for n, ms in milliseconds.items()},
        "growth_8_to_256": round(growth, 3),
    }
    print(json.dumps(result))


def measure(recipe: Recipe, pools: Pools) -> float:
    """CPU milliseconds of a group, from the end of the first step to the end of the last."""
    data, inputs = load(recipe)
    driver = GrpoJob(recipe, data, inputs, inputs.path, None).driver(pools)
    update, began = pools.learners.update, [0.0]

    def update_and_mark(rows: Sequence[Any], step: int) -> Mapping[str, float]:
        if step == 2:  # the first one has imported, compiled and opened everything
            began[0] = time.process_time()
        return update(rows, step)

    pools.learners.update = update_and_mark  # type: ignore[method-assign, assignment]
    driver.run()
    seconds = time.process_time() - began[0]
    num_groups = (recipe.train.num_steps - 1) * recipe.train.prompts_per_step
    return 1000 * seconds / num_groups


if __name__ == "__main__":
    main()

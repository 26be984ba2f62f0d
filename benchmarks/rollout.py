"""Throughput of the rollout pool against bare `LLM.generate`, on the same engine in one run.

One Ray worker with one vLLM engine and the small Qwen3-VL. Rounds alternate: the pool streams the
groups of all prompts to this process, and then the same requests go to vLLM's own `LLM.generate`
inside the worker, where nothing has to travel. Caches of prompts are emptied before each round;
answers have a fixed length.

    python benchmarks/rollout.py [--quick] [--clips 16] [--group-size 8]

The last line is one JSON object: generated tokens per second of both and their ratio, clips decoded
(each once, whatever is repeated), and prompt tokens that siblings of a group took from the cache.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from simulated import load, make_recipe, start_ray

from actrep_ray.config import Recipe
from actrep_ray.records import Prompt
from actrep_ray.rollout.engine import SamplingSettings
from actrep_ray.rollout.pool import RolloutPool
from actrep_ray.rollout.worker import RolloutWorker, start_engine


class MeasuredWorker(RolloutWorker):
    """A rollout worker whose engine can also be used without anything around it."""

    engine: Any

    def bare(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> dict[str, float]:
        """Tokens per second of `LLM.generate`, and what the siblings found in the cache."""
        params = [self.engine.sampling_params(prompt, settings) for prompt in prompts]
        began = time.perf_counter()
        requests = [self.engine.request(prompt) for prompt in prompts]
        outputs = self.engine.llm.generate(requests, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        num_tokens = sum(len(answer.token_ids) for o in outputs for answer in o.outputs)
        return {
            "tokens_per_s": num_tokens / seconds,
            "prompt_tokens": float(np.mean([len(o.prompt_token_ids) for o in outputs])),
            "cached_tokens": float(np.mean([o.num_cached_tokens or 0 for o in outputs])),
        }

    def forget(self) -> int:
        """Empty the caches of prompts; returns how many clips were decoded so far."""
        self.engine.forget_prompts()
        return int(self.engine.frames.num_decoded)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--quick", action="store_true", help="fewer rounds")
    options.add_argument("--clips", type=int, default=16)
    options.add_argument("--group-size", type=int, default=8)
    args = options.parse_args()
    start_ray()
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_recipe(
            Path(folder),
            [
                f"video.cache_dir={folder}/frames",
                "rollout.max_num_seqs=64",
                "rollout.max_model_len=1024",
                "rollout.kv_cache_gib=0.5",
            ],
        )
        result = measure(recipe, args.clips, args.group_size, num_rounds=2 if args.quick else 4)
    ray.shutdown()
    print(json.dumps({"benchmark": "rollout", "quick": args.quick, **result}))


def measure(recipe: Recipe, num_clips: int, group_size: int, num_rounds: int) -> dict[str, Any]:
    """Alternate the two, after one round of warm-up each."""
    data, inputs = load(recipe)
    settings = SamplingSettings(max_tokens=64, group_size=group_size)
    plans = [inputs.plan(clip, recipe.video) for clip in data.train[:num_clips]]
    prompts = [Prompt(f"p{i}", f"clip{i}", "How many?", plan) for i, plan in enumerate(plans)]
    env = {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    actor = ray.remote(num_cpus=1, runtime_env={"env_vars": env})(MeasuredWorker)
    handles: list[Any] = []

    def spawn(index: int) -> Any:
        handles.append(actor.remote(partial(start_engine, recipe, recipe.model.path)))
        return handles[-1]

    pool = RolloutPool(recipe, spawn)
    pool.add_workers()
    pool.wait_ready()
    [worker] = handles
    pooled, bare = [], []
    for number in range(num_rounds + 1):
        again = [replace(p, prompt_id=f"{p.prompt_id}-{number}") for p in prompts]
        ray.get(worker.forget.remote())
        began = time.perf_counter()
        groups = pool.generate(again, settings)
        seconds = time.perf_counter() - began
        num_tokens = sum(len(r.token_ids) for group in groups for r in group.rollouts)
        pooled.append(num_tokens / seconds)
        ray.get(worker.forget.remote())
        bare.append(ray.get(worker.bare.remote(again, settings)))
        print(f"pool {pooled[-1]:7.0f} tokens/s, bare {bare[-1]['tokens_per_s']:7.0f} tokens/s")
    num_decoded = ray.get(worker.forget.remote())
    pool.shutdown()
    best_pool, best_bare = max(pooled[1:]), max(row["tokens_per_s"] for row in bare[1:])
    return {
        "pool_tokens_per_s": round(best_pool),
        "bare_tokens_per_s": round(best_bare),
        "ratio": round(best_pool / best_bare, 3),
        "clips": num_clips,
        "requests": 2 * num_clips * (num_rounds + 1),
        "clips_decoded": num_decoded,
        "group_size": group_size,
        "prompt_tokens": bare[-1]["prompt_tokens"],
        "prompt_tokens_cached_by_a_sibling": bare[-1]["cached_tokens"],
    }


if __name__ == "__main__":
    main()

"""How much of what the learner computes is padding, by how rows are grouped into micro-batches.

A row is a group: a prompt and its answers. A micro-batch of several rows is as wide as its longest.

    arrival     rows in the order of the batch, as many as fit the budget (the baseline)
    sorted      longest first, as many as fit
    least       longest first, cut where least is computed, with a fixed cost for each micro-batch:
                the learner's own `micro_batches`

    python benchmarks/padding.py [--quick]
    python benchmarks/padding.py --quickstart CLIPS --model CHECKPOINT   # real batches as well

Ragged rows are drawn as RepCount's are at 4 frames a second: prompts of 500 to 6,000 tokens,
uniform in their logarithm, and 8 answers of 60 to 400 tokens. With `--quickstart`, batches of
`recipes/quickstart_grpo.yaml` are drawn by its sampler, answered by the checkpoint and computed
forward and backward, a mini-batch at a time; seconds are CPU seconds of one thread. The last line
is one JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from actrep_ray.config import Recipe, load_recipe
from actrep_ray.learner.batch.packing import PackedRow, collate, micro_batches, split_row
from actrep_ray.models.qwen_vl import EncodedPrompt

Batches = list[list[PackedRow]]
Way = Callable[[Sequence[PackedRow], int], Batches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer draws, one real batch")
    parser.add_argument("--quickstart", type=Path, help="clips.jsonl of the quickstart")
    parser.add_argument("--model", type=Path, help="checkpoint that answers them")
    args = parser.parse_args()
    if bool(args.quickstart) != bool(args.model):
        parser.error("--quickstart and --model: expected both or none")
    disable_progress_bar()
    torch.set_num_threads(1)
    print(f"{'rows':<22}{'way':<9}{'padding':>9}{'at most':>9}{'micro-batches':>15}{'CPU s':>8}")
    results = []
    for budget in (16384, 32768):
        for num_rows in (8, 32):
            name = f"ragged {num_rows} x {budget}"
            draws = [ragged(num_rows, seed) for seed in range(20 if args.quick else 200)]
            results += [report(name, way, draws, budget) for way in WAYS]
    if args.quickstart:
        results += quickstart(args.quickstart, args.model, 1 if args.quick else 4)
    print(json.dumps({"benchmark": "padding", "quick": args.quick, "cases": results}))


def arrival(rows: Sequence[PackedRow], budget: int) -> Batches:
    """Rows in their order, as many as fit."""
    batches: Batches = []
    for row in rows:
        joined = [*batches[-1], row] if batches else []
        if joined and len(joined) * max(r.num_tokens for r in joined) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


WAYS: dict[str, Way] = {
    "arrival": arrival,
    "sorted": lambda rows, budget: arrival(sorted(rows, key=lambda r: -r.num_tokens), budget),
    "least": micro_batches,
}


def padding(batches: Batches) -> float:
    """Share of the tokens computed that are padding."""
    computed = sum(len(batch) * max(row.num_tokens for row in batch) for batch in batches)
    return 1 - sum(row.num_tokens for batch in batches for row in batch) / computed


def ragged(num_rows: int, seed: int) -> list[PackedRow]:
    """Rows of one rank's share of a step; only their lengths matter."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_rows):
        size = int(np.exp(rng.uniform(np.log(500), np.log(6000))))
        answers = [np.zeros(n, np.int32) for n in rng.integers(60, 400, size=8)]
        prompt = EncodedPrompt(
            input_ids=torch.zeros(size, dtype=torch.int64),
            position_ids=torch.zeros(3, size, dtype=torch.int64),
            next_position=size,
            pixel_values=torch.zeros(0, 1),
            grid_thw=torch.zeros(1, 3, dtype=torch.int64),
        )
        rows += split_row(number, str(number), prompt, answers, budget=16384, shares_prefix=True)
    return rows


def report(
    name: str,
    way: str,
    draws: Sequence[Sequence[PackedRow]],
    budget: int,
    run: Callable[[Batches], float] | None = None,
) -> dict[str, Any]:
    """Print and return means over draws of rows."""
    found = [WAYS[way](rows, budget) for rows in draws]
    shares = [padding(batches) for batches in found]
    result: dict[str, Any] = {
        "rows": name,
        "way": way,
        "padding": round(float(np.mean(shares)), 4),
        "padding_max": round(max(shares), 4),
        "micro_batches": round(float(np.mean([len(batches) for batches in found])), 2),
    }
    seconds = ""
    if run is not None:
        result["cpu_s"] = round(float(np.mean([run(batches) for batches in found])), 2)
        seconds = f"{result['cpu_s']:>8.2f}"
    print(
        f"{name:<22}{way:<9}{result['padding']:>9.1%}{result['padding_max']:>9.1%}"
        f"{result['micro_batches']:>15.1f}{seconds}",
        flush=True,
    )
    return result


# ------------------------------------------------------------------------------------ quickstart


def quickstart(clips: Path, model: Path, num_batches: int) -> list[dict[str, Any]]:
    """Batches of the quickstart, sampled and answered as in training."""
    from actrep_ray.learner.policy import Policy
    from actrep_ray.models.qwen_vl import QwenVLInputs, load_model

    path = Path(__file__).parents[1] / "recipes" / "quickstart_grpo.yaml"
    recipe = load_recipe(path, [f"data.path={clips}", "device=cpu"])
    inputs = QwenVLInputs(model)
    draws = sampled(recipe, model, 2 * num_batches)
    policy = Policy(load_model(model, dtype="float32"), inputs.visual_token_ids)

    def run(batches: Batches) -> float:
        start = time.process_time()
        for rows in batches:
            log_probs, _ = policy(collate(rows), temperature=recipe.rollout.temperature)
            log_probs.sum().backward()
        policy.zero_grad(set_to_none=True)
        return time.process_time() - start

    budget = recipe.learner.micro_batch_tokens
    run(micro_batches(draws[0][:4], budget))
    return [report(f"quickstart {len(draws[0])} x {budget}", w, draws, budget, run) for w in WAYS]


def sampled(recipe: Recipe, model: Path, num_batches: int) -> list[list[PackedRow]]:
    """Rows of mini-batches: clips by the recipe's sampler, answers by the checkpoint."""
    from actrep_ray.driver.sources import training_settings
    from actrep_ray.driver.strata import make_sampler
    from actrep_ray.records import Prompt
    from actrep_ray.rollout.hf_engine import HfEngine
    from actrep_ray.tasks.loading import load_clips, load_task

    engine = HfEngine(model, recipe.rollout, recipe.video, device="cpu", seed=0)
    sampler = make_sampler(load_clips(recipe, "train"), recipe)
    size = recipe.answers_per_optimizer_step // recipe.train.group_size
    batches = []
    for step in range(num_batches):
        prompts = [
            Prompt(
                prompt_id=f"{step}-{i}",
                clip_id=drawn.clip.id,
                question=load_task(recipe.task).question(drawn.clip, recipe.data),
                plan=engine.inputs.plan(drawn.clip, recipe.video),
            )
            for i, drawn in enumerate(sampler.take(size))
        ]
        rows: list[PackedRow] = []
        for i, group in enumerate(engine.generate(prompts, training_settings(recipe))):
            prompt, frames = group.prompt, np.array(engine.frames.get(group.prompt.plan))
            rows += split_row(
                i,
                prompt.prompt_id,
                engine.inputs.encode(prompt.question, prompt.plan, frames),
                [rollout.token_ids for rollout in group.rollouts],
                budget=recipe.learner.micro_batch_tokens,
                shares_prefix=True,
            )
        batches.append(rows)
    return batches


if __name__ == "__main__":
    main()

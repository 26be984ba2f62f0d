"""How fast answers are scored, by a reward worker and by the pool, and what share of a step it is.

Measures three things with answers of several lengths and several compositions: scoring in this
process (one reward worker without Ray: the baseline), a `RewardPool` of 1 and of 2 real workers
scoring all rollouts of a step at once, and what of that the driver's own process has to do
(references, sending, receiving). The share of a step takes a step of the tiny recipe on 2 cores,
before any scoring overlaps with generation.

    python benchmarks/reward_scoring.py [--quick] [--rollouts 192] [--step-seconds 6.0]

(Not named after the package it measures: a script's own folder comes first on the import path.)

The last line is one JSON object: scored rollouts per second by composition and number of cycles;
of the pool per worker, with its share of a step and the driver's share; microseconds to parse; and
the time of a hostile megabyte relative to looking at each of its characters once.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from actrep_ray.cluster.session import cluster
from actrep_ray.config import Recipe
from actrep_ray.records import Prompt, Rollout, RolloutGroup, RolloutStatus
from actrep_ray.scoring.pool import RewardPool
from data_prep.video import FramePlan
from rewards.catalogue import REWARDS
from rewards.compose import RewardSpec, score
from rewards.grammar.read import parse
from rewards.grammar.write import Response, render
from rewards.reference import Reference

COMPOSITIONS = {
    "default": {"obo": 0.5, "cycles": 0.4, "format": 0.1},
    "hybrid + format": {"hybrid": 0.9, "think_answer": 0.1},
    "exact": {"exact": 1.0},
    "everything": dict.fromkeys(REWARDS, 1.0),
}
LENGTHS = (2, 8, 30, 150)
HOSTILE = ("<", "<think>", "rep1: 0.0-0.1s\n", "\n", "9", "Total: 9\n")
TYPICAL_LENGTH = 8  # cycles of a typical answer, for the share of a step
GROUP_SIZE = 8
NUM_WORKERS = (1, 2)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--quick", action="store_true", help="a shorter measurement")
    options.add_argument("--rollouts", type=int, default=192, help="rollouts of one step")
    options.add_argument("--step-seconds", type=float, default=6.0, help="time of one step")
    args = options.parse_args()
    budget_s = 0.3 if args.quick else 2.0

    per_second: dict[str, dict[int, float]] = {}
    for name, weights in COMPOSITIONS.items():
        spec = RewardSpec.from_mapping(weights)
        per_second[name] = {}
        for num_cycles in LENGTHS:
            text, reference = _answer(num_cycles)
            seconds = _seconds_per_call(partial(score, text, reference, spec), budget_s)
            per_second[name][num_cycles] = round(1.0 / seconds, 1)
            print(f"{name:>16} {num_cycles:>4} cycles {1.0 / seconds:>10,.0f} rollouts/s")
    parse_us = {}
    for num_cycles in LENGTHS:
        text, _ = _answer(num_cycles)
        seconds = _seconds_per_call(partial(parse, text), budget_s)
        parse_us[num_cycles] = round(1e6 * seconds, 1)
    baseline_s = args.rollouts / per_second["default"][TYPICAL_LENGTH]
    print(f"in this process: {args.rollouts} rollouts in {1e3 * baseline_s:.1f} ms")
    with cluster(_recipe(max(NUM_WORKERS))):
        pools = {
            n: _measure_pool(n, args.rollouts, budget_s, args.step_seconds) for n in NUM_WORKERS
        }
    result = {
        "benchmark": "reward_scoring",
        "quick": args.quick,
        "rollouts_per_s": per_second,
        "parse_us": parse_us,
        "rollouts_per_step": args.rollouts,
        "step_s": args.step_seconds,
        "in_process_s_per_step": round(baseline_s, 5),
        "pool_by_workers": pools,
        "share_of_step": pools[1]["share_of_step"],
        # The same without waiting for a core, which on a busy machine is most of the wall time.
        "cpu_share_of_step": round(
            (baseline_s + pools[1]["driver_cpu_s_per_step"]) / args.step_seconds, 5
        ),
        "load_average": round(os.getloadavg()[0], 1),
        "worst_megabyte_over_reading": round(max(_hostile_ratio(unit) for unit in HOSTILE), 3),
    }
    print(json.dumps(result))


def _measure_pool(
    num_workers: int, num_rollouts: int, budget_s: float, step_s: float
) -> dict[str, float]:
    """Score all rollouts of a step, again and again, with a pool of real workers."""
    groups, labels = _step(num_rollouts)
    pool = RewardPool.start(_recipe(num_workers))
    for _ in range(3):  # workers import and warm up
        pool.score(groups, labels)
    seconds: list[float] = []
    driver_s: list[float] = []
    while sum(seconds) < 3 * budget_s or len(seconds) < 5:
        wall, cpu = time.perf_counter(), time.process_time()
        scored = pool.score(groups, labels)
        seconds.append(time.perf_counter() - wall)
        driver_s.append(time.process_time() - cpu)
    assert all(group.rewards.min() > 0.0 for group in scored)
    pool.shutdown()
    wall_s, cpu_s = float(np.median(seconds)), float(np.median(driver_s))
    figures = {
        "s_per_step": round(wall_s, 5),
        "best_s_per_step": round(min(seconds), 5),  # of the calls, the least disturbed
        "rollouts_per_s_per_worker": round(num_rollouts / wall_s / num_workers, 1),
        "driver_cpu_s_per_step": round(cpu_s, 5),
        "driver_share_of_scoring": round(cpu_s / wall_s, 4),
        "share_of_step": round(wall_s / step_s, 5),
        "best_share_of_step": round(min(seconds) / step_s, 5),
        "driver_share_of_step": round(cpu_s / step_s, 5),
    }
    print(
        f"pool of {num_workers}: {num_rollouts} rollouts in {1e3 * wall_s:.1f} ms, "
        f"{figures['rollouts_per_s_per_worker']:,.0f} rollouts/s per worker; the driver computes "
        f"{1e3 * cpu_s:.1f} ms of it; {wall_s / step_s:.2%} of a step of {step_s:g} s (best call "
        f"{min(seconds) / step_s:.2%})"
    )
    return figures


def _recipe(num_workers: int) -> Recipe:
    return Recipe.model_validate({"reward": {"num_workers": num_workers}})


def _step(num_rollouts: int) -> tuple[list[RolloutGroup], dict[str, Reference]]:
    """Groups of one step; no two answers are the same text."""
    groups, labels = [], {}
    for number in range(num_rollouts // GROUP_SIZE):
        text, reference = _answer(TYPICAL_LENGTH)
        clip = f"clip-{number}"
        assert reference.cycles is not None
        labels[clip] = Reference(TYPICAL_LENGTH, reference.cycles, TYPICAL_LENGTH + 1.0, "push up")
        plan = FramePlan(f"{clip}.mp4", 1, tuple(range(48)), 4.0, 224, 224)
        rollouts = tuple(
            Rollout(
                rollout_id=f"{number}-{i}",
                token_ids=np.arange(200, dtype=np.int32),
                rollout_log_probs=np.zeros(200, np.float32),
                text=text.replace("on a mat", f"on mat {number}-{i}"),
                status=RolloutStatus.STOPPED,
                policy_version=0,
            )
            for i in range(GROUP_SIZE)
        )
        prompt = Prompt(f"{number}", clip, "How many times is the action repeated?", plan)
        groups.append(RolloutGroup(prompt, rollouts, 400))
    return groups, labels


def _answer(num_cycles: int) -> tuple[str, Reference]:
    """A nearly right answer (every cycle is off by 0.1 s) and its reference."""
    cycles = tuple((i * 1.0, i * 1.0 + 0.9) for i in range(num_cycles))
    listed = tuple((round(a + 0.1, 1), round(b + 0.1, 1)) for a, b in cycles)
    text = render(
        Response(
            observation="A person on a mat bends both arms and straightens them.",
            definition="from straight arms, down, and back to straight arms",
            cycles=listed,
            check="the repetitions take about as long as each other",
            total=num_cycles,
            answer=num_cycles,
        )
    )
    reference = Reference(
        count=num_cycles,
        cycles=cycles,
        duration_s=num_cycles + 1.0,
        label="push up",
        prompt="How many times is the action in the video repeated?",
        num_tokens=200,
        max_tokens=1024,
    )
    return text, reference


def _seconds_per_call(job: Callable[[], object], budget_s: float) -> float:
    """CPU seconds of one call, over as many as fit in the budget."""
    job()
    num_calls, started = 0, time.process_time()
    while (elapsed := time.process_time() - started) < budget_s:
        for _ in range(20):
            job()
        num_calls += 20
    return elapsed / num_calls


def _hostile_ratio(unit: str) -> float:
    text = "<think>\n" + unit * (1_000_000 // len(unit)) + "\n</think>\n<answer>3</answer>"

    def seconds(job: Callable[[], object]) -> float:
        started = time.process_time()
        job()
        return time.process_time() - started

    def read() -> int:
        return sum(1 for character in text if character == "<")

    return min(seconds(lambda: parse(text)) for _ in range(5)) / min(
        seconds(read) for _ in range(5)
    )


if __name__ == "__main__":
    main()

"""How fast answers are scored, and what share of a training step that is.

Scores answers of several lengths with several compositions in one process (one reward worker) and
compares them. The share is that of the driver or of a single worker scoring a whole step, one
after the other, before any of it overlaps with generation.

    python benchmarks/reward_scoring.py [--quick] [--rollouts 128] [--step-seconds 7.0]

(Not named after the package it measures: a script's own folder comes first on the import path.)

The last line is one JSON object: scored rollouts per second by composition and number of cycles,
microseconds to parse, the share of a step, and the time of a hostile megabyte relative to looking
at each of its characters once.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

from rewards.compose import REWARDS, RewardSpec, score
from rewards.reference import Reference
from rewards.response import Response, parse, render

COMPOSITIONS = {
    "default": {"obo": 0.5, "cycles": 0.4, "format": 0.1},
    "hybrid + format": {"hybrid": 0.9, "think_answer": 0.1},
    "exact": {"exact": 1.0},
    "everything": dict.fromkeys(REWARDS, 1.0),
}
LENGTHS = (2, 8, 30, 150)
HOSTILE = ("<", "<think>", "rep1: 0.0-0.1s\n", "\n", "9", "Total: 9\n")
TYPICAL_LENGTH = 8  # cycles of a typical answer, for the share of a step


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--quick", action="store_true", help="a shorter measurement")
    options.add_argument("--rollouts", type=int, default=128, help="rollouts of one step")
    options.add_argument("--step-seconds", type=float, default=7.0, help="time of one step")
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
    scoring_s = args.rollouts / per_second["default"][TYPICAL_LENGTH]
    result = {
        "benchmark": "reward_scoring",
        "quick": args.quick,
        "rollouts_per_s": per_second,
        "parse_us": parse_us,
        "rollouts_per_step": args.rollouts,
        "scoring_s_per_step": round(scoring_s, 5),
        "step_s": args.step_seconds,
        "share_of_step": round(scoring_s / args.step_seconds, 6),
        "worst_megabyte_over_reading": round(max(_hostile_ratio(unit) for unit in HOSTILE), 3),
    }
    print(json.dumps(result))


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

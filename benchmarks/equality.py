"""Whether the learner computes what the papers say, option by option of `algorithm`.

Each case goes twice through four steps of two passes over two mini-batches of several
micro-batches, 16 optimiser steps in all, from the same weights, answers and rewards:

    project    RewardWorker ─► compute_advantages ─► row_of ─► LearnerWorker.update, packed rows
    reference  equality_reference.py: the stock model, padded rows, formulas from the papers

and every gradient and the weights after every optimiser step are compared, in float32; each
optimiser step begins with the same weights. Of each case is also measured how
far the reference's own gradient is from that of its neighbour without the option: a difference
that the comparison would have seen. A case fails if project and reference differ by more than the
tolerances, if the neighbour differs by hardly more, or if a branch that the case is there for was
not reached (`equality_cases.py`).

    python benchmarks/equality.py                            every option alone, then together
    python benchmarks/equality.py --quick                    together only, a step of each
    python benchmarks/equality.py --only loss kl             whose names hold one of these
    python benchmarks/equality.py --write docs/algorithms.md also the table there

The last line is one JSON object; the exit code is 1 if a case fails.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from equality_cases import (
    DECAY,
    GROUP_SIZES,
    LR,
    MAX_ANSWER_TOKENS,
    PARTS,
    PENALTIES,
    QUESTION,
    TEMPERATURE,
    Case,
    Inputs,
    combinations,
    make_groups,
    make_inputs,
    reward_weights,
    sampled_elsewhere,
    single_options,
)
from equality_reference import (
    Gradients,
    Group,
    SecondLearner,
    combined_rewards,
    summed_rewards,
)
from transformers.utils.logging import disable_progress_bar

from actrep_ray.config import Recipe, load_recipe
from actrep_ray.driver.groups import row_of
from actrep_ray.learner.loss.algorithms import compute_advantages, preload
from actrep_ray.learner.worker import LearnerWorker
from actrep_ray.records import LearnerRow, Prompt, Rollout, RolloutGroup, RolloutStatus
from actrep_ray.scoring.worker import GroupScores, GroupTexts, RewardWorker
from rewards.compose import RewardSpec
from rewards.reference import Reference

GRADIENT_TOLERANCE, WEIGHT_TOLERANCE, LEAST_EFFECT = 2e-5, 3e-4, 1e-3
BEGIN, END = "<!-- equality: begin -->", "<!-- equality: end -->"
NUM_STEPS = 4


@dataclass(frozen=True)
class Row:
    """What a case came to.

    Attributes:
        case: Which.
        gradient: Largest difference of a gradient, as a share of the largest gradient.
        weight: Largest difference of the weights after an optimiser step that began with the same
            ones: its norm, as a share of how far they moved.
        kl_coef: Difference of the KL's weight, as a share of it.
        without: As `gradient`, of the reference and its neighbour without the option.
        missing: Branches that were not reached.
    """

    case: Case
    gradient: float
    weight: float
    kl_coef: float
    without: float
    missing: tuple[str, ...]

    @property
    def fails(self) -> str:
        """Why the case fails; empty if it does not."""
        is_near = self.gradient <= GRADIENT_TOLERANCE and self.kl_coef <= GRADIENT_TOLERANCE
        if not (is_near and self.weight <= WEIGHT_TOLERANCE):
            return "differs"
        if not self.without >= LEAST_EFFECT:
            return "option does nothing"
        return f"not reached: {', '.join(self.missing)}" if self.missing else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="options together, one step of each")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="cases whose names hold it")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this file")
    args = parser.parse_args(argv)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # "no accelerator found"
    disable_progress_bar()
    torch.set_num_threads(1)
    preload()
    cases = combinations() if args.quick else [*single_options(), *combinations()]
    if args.only:
        cases = [case for case in cases if any(text in case.option for text in args.only)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(cases, Path(folder), 1 if args.quick else NUM_STEPS)
    if args.write:
        alone = {case.option for case in single_options()}
        write_table(args.write, [row for row in rows if row.case.option in alone])
    failed = {row.case.option: row.fails for row in rows if row.fails}
    result = {
        "benchmark": "equality",
        "quick": args.quick,
        "cases": len(rows),
        "failed": failed,
        "largest_gradient_difference": max((row.gradient for row in rows), default=0.0),
        "largest_weight_difference": max((row.weight for row in rows), default=0.0),
        "tolerance": {"gradient": GRADIENT_TOLERANCE, "weights": WEIGHT_TOLERANCE},
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(result))
    return 1 if failed else 0


def run(cases: Sequence[Case], folder: Path, num_steps: int) -> list[Row]:
    """Every case; prints a line each."""
    inputs = make_inputs(folder)
    print(f"{'gradient':>9} {'weights':>9} {'without':>9}  option", flush=True)
    rows: list[Row] = []
    for case in cases:
        twin = next((row for row in rows if is_same(row.case, case)), None)
        row = replace(twin, case=case) if twin else compare(case, inputs, folder, num_steps)
        print(
            f"{row.gradient:9.1e} {row.weight:9.1e} {row.without:9.1e}  {case.option}"
            f"{'   FAILS: ' + row.fails if row.fails else ''}",
            flush=True,
        )
        rows.append(row)
    return rows


def is_same(one: Case, other: Case) -> bool:
    """Whether two cases only differ in name: an option may be the default of another's case."""
    return replace(one, option="", source="") == replace(other, option="", source="")


# ---------------------------------------------------------------- one case


def compare(case: Case, inputs: Inputs, folder: Path, num_steps: int) -> Row:
    """Both learners through the same steps."""
    recipe = recipe_of(case, folder)
    second = SecondLearner(inputs.policy, inputs.reference, case.method)
    first = LearnerWorker(
        recipe, str(inputs.policy), 0, 1, num_steps, base_path=str(inputs.reference)
    )
    first.setup("127.0.0.1", 0)
    gradient = weight = without = 0.0
    try:
        spy = Spy(first)
        for step in range(num_steps):
            groups = make_groups(inputs, step)
            if case.method.correction != "off":
                with torch.no_grad():
                    log_probs = [values.numpy() for values in second.policy.score(groups)[0]]
                groups = sampled_elsewhere(groups, log_probs, step)
            first.update(rows_of(groups, inputs, recipe), step + 1)
            found, weights = spy.taken()
            expected, others, apart = second.update(
                groups,
                rewards_by_hand(groups, case.combine),
                (case.without, rewards_by_hand(groups, case.without_combine)),
                follow=iter(weights).__next__,
            )
            pairs = zip(found, expected, strict=True)
            gradient = max([gradient, *(difference(a, b) for a, b in pairs)])
            weight = max([weight, *apart])
            pairs = zip(others, expected[-len(others) :], strict=True)
            without = max([without, *(difference(a, b) for a, b in pairs)])
    finally:
        first.shutdown()
    return Row(
        case=case,
        gradient=gradient,
        weight=weight,
        kl_coef=abs(first.kl_coef - second.kl_coef) / (second.kl_coef or 1.0),
        without=without,
        missing=tuple(name for name in case.branches if not second.seen[name]),
    )


class Spy:
    """Whole gradients before they are clipped, and whole weights after every optimiser step.

    Args:
        worker: Whose.
    """

    def __init__(self, worker: LearnerWorker) -> None:
        self._worker = worker
        strategy: Any = worker.strategy
        self._step: Callable[[float], float] = strategy.step
        strategy.step = self.step
        self._gradients: list[Gradients] = []
        self._weights: list[Gradients] = []

    def step(self, lr_factor: float) -> float:
        """In the place of the strategy's own."""
        strategy = self._worker.strategy
        # NaN: there is no gradient, and no step will be taken. (One gone wrong raises after it.)
        self._gradients.append({n: value.nan_to_num() for n, value in strategy.gradients()})
        norm = self._step(lr_factor)
        parameters = self._worker.policy.model.named_parameters()
        self._weights.append({name: strategy.whole(p).clone() for name, p in parameters})
        return norm

    def taken(self) -> tuple[list[Gradients], list[Gradients]]:
        """What was seen since the last call."""
        seen = self._gradients, self._weights
        self._gradients, self._weights = [], []
        return seen


def recipe_of(case: Case, folder: Path) -> Recipe:
    """The case as a recipe; a mini-batch is several micro-batches."""
    settings: dict[str, Any] = {"dual_clip": None} | dict(case.settings)
    if "preset" in settings:
        del settings["dual_clip"]
    values = {
        "stage": "grpo",
        "device": "cpu",
        "runs_dir": str(folder / "runs"),
        "model.dtype": "float32",
        "video.cache_dir": str(folder / "frames"),
        "rollout.temperature": TEMPERATURE,
        "rollout.max_response_tokens": MAX_ANSWER_TOKENS,
        "train.prompts_per_step": len(GROUP_SIZES),
        "train.group_size": 4,
        "train.mini_batch_size": 4 * case.method.mini_groups,
        "train.num_updates_per_batch": case.method.passes,
        "learner.lr": LR,
        "learner.weight_decay": DECAY,
        "learner.micro_batch_tokens": 160,
        "learner.timeout_s": 120,
        "reward.combine": case.combine,
        "reward.weights": reward_weights(),
        **{f"algorithm.{key}": value for key, value in settings.items()},
    }
    return load_recipe(None, [f"{key}={json.dumps(value)}" for key, value in values.items()])


def rows_of(groups: Sequence[Group], inputs: Inputs, recipe: Recipe) -> list[LearnerRow]:
    """Scored and weighed as the driver has it done."""
    weights = recipe.reward.weights
    worker = RewardWorker(
        RewardSpec.from_mapping(weights, combine=recipe.reward.combine), "counting"
    )
    scored = []
    for number, group in enumerate(groups):
        name = f"group-{number}"
        rollouts = tuple(
            Rollout(
                rollout_id=f"{name}/{a}",
                token_ids=answer.tokens,
                rollout_log_probs=answer.sampled,
                text=" ".join(str(value) for value in answer.parts.values()),
                status=RolloutStatus.TRUNCATED if answer.is_cut else RolloutStatus.STOPPED,
                policy_version=0,
            )
            for a, answer in enumerate(group.answers)
        )
        has_marks = not np.isnan(group.answers[0].parts["marked"])
        labels = Reference(count=1, cycles=((0.0, 0.5),) if has_marks else None)
        texts = GroupTexts(
            tuple(rollout.rollout_id for rollout in rollouts),
            tuple(rollout.text for rollout in rollouts),
            (labels,) * len(rollouts),
        )
        [scores] = worker.score([texts])
        assert isinstance(scores, GroupScores), scores
        prompt = Prompt(name, name, QUESTION, inputs.plans[number])
        scored.append(RolloutGroup(prompt, rollouts, 0, scores.rewards, scores.parts))
    weighed = compute_advantages(scored, recipe.algorithm, recipe.reward.part_weights)
    return [row_of(group) for group in weighed]


def rewards_by_hand(groups: Sequence[Group], combine: str) -> list[np.ndarray]:
    """The reference's rewards of every group."""
    if combine == "per_reward":
        return [combined_rewards(group.answers, PARTS | PENALTIES) for group in groups]
    return [summed_rewards(group.answers, PARTS, PENALTIES) for group in groups]


def difference(found: Gradients, expected: Gradients) -> float:
    """Largest difference of two gradients, as a share of the largest entry of the second."""
    largest = max(float(value.abs().max()) for value in expected.values())
    apart = max(
        float((found.get(name, torch.zeros_like(value)) - value).abs().max())
        for name, value in expected.items()
    )
    return apart / largest if largest else float(apart > 0)


# ---------------------------------------------------------------- the table


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Put the table between the two marks of a document."""
    text = path.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path}: expected the lines {BEGIN} and {END}")
    path.write_text(f"{head}{BEGIN}\n{table(rows)}{END}{tail}", encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    lines = [
        "| option | reference | gradient | weights | without it |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        what = row.fails or f"{row.gradient:.1e}"
        lines.append(
            f"| `{row.case.option}` | {row.case.source} | {what} | {row.weight:.1e} "
            f"| {row.without:.1e} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

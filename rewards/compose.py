"""Composition: which rewards an answer is scored with, their weights, and the one total.

Owns the names of the rewards, the contract that a user's own reward keeps, and how parts become a
total. Every reward, ours or a user's, is a function

    reward(response: ParsedResponse, reference: Reference, **options) -> float | None

that returns a number in [0, 1] (or in [-1, 0], for a penalty), or None where it does not apply to
this reference. Rewards that apply are averaged by weight, so that a clip without marks is judged
by what is known about it; penalties that apply are added with their weight::

    total = clamp(sum(w r) / sum(w) + sum(w_p p), 0, 1)

The clamp only acts where penalties outweigh the rewards.
"""

import difflib
import importlib
import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from rewards import format as form
from rewards.count import MAX_VALUES, VARIANTS, count_reward
from rewards.cycles import close_pairs, consistency, cycle_f1, cycle_tiou, valid_cycles
from rewards.recognition import recognition
from rewards.reference import Reference
from rewards.response import ParsedResponse, Response, parse, render

Reward = Callable[..., float | None]
Option = str | int | float | bool


class RewardError(ValueError):
    """A reward that raised or broke its contract; the message names it and what it returned.

    Attributes:
        reason: "raised" or "bad_value".
    """

    def __init__(self, message: str, reason: str = "bad_value") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Part:
    """One reward of a composition.

    Attributes:
        name: A name of `REWARDS`, or `package.module:function`.
        weight: Its weight, above 0.
        is_penalty: Whether it is in [-1, 0] and is added, instead of in [0, 1] and averaged.
        options: Keyword arguments of the reward, as sorted pairs.
    """

    name: str
    weight: float
    is_penalty: bool = False
    options: tuple[tuple[str, Option], ...] = ()


@dataclass(frozen=True)
class RewardSpec:
    """A composition of rewards.

    Attributes:
        parts: The rewards with their weights.
        combine: "sum" adds the parts of an answer and leaves normalising to the advantage;
            "per_reward" normalises each part within its group first (GDPO, arXiv 2601.05242), so
            that a part of small spread is not drowned by one of large spread. Only
            `group_rewards` looks at it: `Score.total` is always the weighted sum.
        dialect: The one tag dialect to accept; None accepts either.
    """

    parts: tuple[Part, ...]
    combine: str = "sum"
    dialect: str | None = None

    @classmethod
    def from_mapping(
        cls,
        weights: Mapping[str, float | Mapping[str, Any]],
        *,
        combine: str = "sum",
        dialect: str | None = None,
    ) -> "RewardSpec":
        """Build a composition from a recipe's mapping.

        Args:
            weights: Name to weight, or to a mapping with `weight`, the reward's own options, and
                for a user's own penalty `penalty: true`. A weight of 0 leaves the reward out.

                >>> RewardSpec.from_mapping({"obo": 0.5, "cycles": {"weight": 0.5,
                ...     "tolerance": 0.3}}).parts[1].options
                (('tolerance', 0.3),)
            combine: "sum" or "per_reward".
            dialect: One of `rewards.response.DIALECTS`, or None.

        Raises:
            ValueError: naming the key, its value and what was expected; unknown rewards and
                options included.
        """
        if combine not in ("sum", "per_reward"):
            raise ValueError(f"combine={combine!r}, expected 'sum' or 'per_reward'")
        parse("", dialect=dialect)  # raises for an unknown dialect
        parts = tuple(part for name, value in weights.items() if (part := _part(name, value)))
        if not any(not part.is_penalty for part in parts):
            raise ValueError(f"weights={dict(weights)!r}, expected a reward with weight above 0")
        spec = cls(parts, combine, dialect)
        _resolve(spec)
        return spec


@dataclass(frozen=True)
class Score:
    """The reward of one answer.

    Attributes:
        total: The weighted sum, in [0, 1].
        parts: Value of each part by name; None where it did not apply.
        count: What the answer counted; None if it cannot be read.
    """

    total: float
    parts: dict[str, float | None]
    count: int | None = None


@dataclass(frozen=True)
class RewardCheck:
    """What `check_reward` saw.

    Attributes:
        name: The reward.
        num_calls: Answers that it was given.
        num_skipped: How many it returned None for.
        lowest: Its lowest value, or None if it never applied.
        highest: Its highest value, or None if it never applied.
        seconds_per_call: Mean time of a call.
    """

    name: str
    num_calls: int
    num_skipped: int
    lowest: float | None
    highest: float | None
    seconds_per_call: float


def score(text: str, reference: Reference, spec: RewardSpec | None = None) -> Score:
    """Score one answer.

    Args:
        text: The answer, with whatever the chat template opened before it.
        reference: What is known about the right one.
        spec: The composition; None takes `DEFAULT_SPEC`.

    Raises:
        RewardError: if a reward raises, returns something else than a finite number in its range
            or None, or if none of them applies to the reference.
    """
    spec = DEFAULT_SPEC if spec is None else spec
    response = parse(text, dialect=spec.dialect)
    values = {
        part.name: _call(part, reward, response, reference)
        for part, reward in zip(spec.parts, _resolve(spec), strict=True)
    }
    total, weight, penalty = 0.0, 0.0, 0.0
    for part in spec.parts:
        value = values[part.name]
        if value is None:
            continue
        if part.is_penalty:
            penalty += part.weight * value
        else:
            total += part.weight * value
            weight += part.weight
    if weight == 0.0:
        raise RewardError(f"none of the rewards {', '.join(values)} applies to {reference}")
    return Score(min(1.0, max(0.0, total / weight + penalty)), values, response.count)


def group_rewards(scores: Sequence[Score], spec: RewardSpec) -> np.ndarray:
    """The scalar reward of each rollout of one group, as `spec.combine` says. float64 [G].

    "sum" gives the totals. "per_reward" gives sum_k w_k (r_k - mean_k) / (std_k + 1e-6) over the
    group (std with G - 1, as in verl), with weights that add up to 1; a part that is the same for
    all, or does not apply, adds 0. That value is centred and not bounded.

    Raises:
        RewardError: for "per_reward", if a part applies to some answers of the group only.
    """
    if spec.combine == "sum" or len(scores) < 2:
        return np.array([one.total for one in scores], np.float64)
    combined = np.zeros(len(scores))
    for part in spec.parts:
        column = [one.parts[part.name] for one in scores]
        applicable = [value for value in column if value is not None]
        if len(applicable) < len(column):
            if applicable:
                raise RewardError(
                    f"reward {part.name!r} returned None for {len(column) - len(applicable)} of "
                    f"{len(column)} answers to one question: whether it applies may depend on the "
                    "reference alone"
                )
            continue
        values = np.array(applicable, np.float64)
        combined += part.weight * (values - values.mean()) / (values.std(ddof=1) + 1e-6)
    return combined / sum(part.weight for part in spec.parts)


def load_reward(name: str) -> Reward:
    """The function behind a name of `REWARDS` or a dotted name `package.module:function`.

    Raises:
        ValueError: if there is no such reward, module or function, or if it cannot be called with
            a response and a reference.
    """
    if ":" not in name:
        if name in REWARDS:
            return REWARDS[name]
        nearest = difflib.get_close_matches(name, REWARDS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(REWARDS)}"
        raise ValueError(f"reward {name!r} is not known ({hint}, or give package.module:function)")
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ValueError(f"reward {name!r}: cannot import {module_name!r} ({error})") from error
    reward = getattr(module, function_name, None)
    if not callable(reward):
        raise ValueError(f"reward {name!r}: {module_name!r} has no function {function_name!r}")
    _check_signature(name, reward, {})
    return reward


def check_options(spec: RewardSpec) -> None:
    """Call those of our rewards that are given options once, so that a bad value shows at start-up.

    A user's own rewards are left to `check_reward`: what they cost, or do, is not known.

    Raises:
        ValueError: naming the reward, its options and what is wrong with them.
    """
    for part, reward in zip(spec.parts, _resolve(spec), strict=True):
        if not part.options or part.name not in REWARDS:
            continue
        try:
            _call(part, reward, parse(_probe_texts()[0]), _probe_references()[0])
        except RewardError as error:
            given = ", ".join(f"{key}={value!r}" for key, value in part.options)
            raise ValueError(f"reward {part.name!r} with {given}: {error.__cause__}") from error


def check_reward(
    name: str,
    *,
    is_penalty: bool | None = None,
    options: Mapping[str, Option] = MappingProxyType({}),
) -> RewardCheck:
    """Contract test of a reward: call it with every kind of answer and reference.

    The answers are right, wrong, malformed, empty, truncated and very long; the references hold
    all labels, some, and none. It has to return, for each, a finite number in its range or None,
    the same one when asked again.

    Args:
        name: A name of `REWARDS` or `package.module:function`.
        is_penalty: Whether its range is [-1, 0] instead of [0, 1]; None knows it for ours and
            takes a user's as a reward.
        options: Keyword arguments to call it with.

    Raises:
        ValueError: if it cannot be loaded, or does not take the options.
        RewardError: naming the reward, the answer and what it returned.
    """
    part = Part(name, 1.0, name in PENALTIES if is_penalty is None else is_penalty)
    reward = load_reward(name)
    _check_signature(name, reward, options)
    reward = partial(reward, **options)
    values: list[float | None] = []
    started = time.perf_counter()
    for text in _probe_texts():
        response = parse(text)
        for reference in _probe_references():
            value = _call(part, reward, response, reference)
            if value != _call(part, reward, response, reference):
                raise RewardError(
                    f"reward {name!r} gave two values for the answer {text[:80]!r}: it must not "
                    "depend on anything but its arguments"
                )
            values.append(value)
    seconds = (time.perf_counter() - started) / (2 * len(values))
    applied = [value for value in values if value is not None]
    return RewardCheck(
        name=name,
        num_calls=len(values),
        num_skipped=len(values) - len(applied),
        lowest=min(applied, default=None),
        highest=max(applied, default=None),
        seconds_per_call=seconds,
    )


# --- count rewards as parts


def _count_part(variant: str, default_evidence: str) -> Reward:
    def reward(
        response: ParsedResponse, reference: Reference, *, evidence: str = default_evidence
    ) -> float | None:
        return _count(variant, response, reference, evidence)

    reward.__name__ = variant
    reward.__doc__ = f"`rewards.count.{variant}`, scaled to [0, 1]; evidence={default_evidence!r}."
    return reward


def _count(
    variant: str, response: ParsedResponse, reference: Reference, evidence: str
) -> float | None:
    """A count reward as a part, in [0, 1]; None without a count.

    evidence="answer" looks at the answer tag alone, as published. evidence="worked" credits an
    answer with its working only: the reward is that of the WORST number claimed (answer, total,
    and the cycles, both listed and valid, where cycles are annotated or listed), 0 where one is
    missing or the reasoning says nothing, and at most that of an off-by-one where no listed cycle
    matches any annotated one. So a right answer beside a contradicting or invented list earns no
    more than an honest off-by-one, and every error is still graded.
    """
    if evidence not in ("answer", "worked"):
        raise ValueError(f"evidence={evidence!r}, expected 'answer' or 'worked'")
    if reference.count is None:
        return None
    target = reference.count
    if evidence == "answer":
        value = count_reward(variant, response.count, target)
    elif not form.has_reasoning(response, reference):
        value = 0.0
    else:
        value = _worst_claim(variant, response, reference, target)
    return value / MAX_VALUES[variant]


def _worst_claim(
    variant: str, response: ParsedResponse, reference: Reference, target: int
) -> float:
    valid = valid_cycles(response.cycles, reference)
    claims = [response.count, response.total]
    if response.cycles or reference.cycles:
        claims += [len(response.cycles), len(valid)]
    value = min(count_reward(variant, claim, target) for claim in claims)
    if reference.cycles and not (valid and close_pairs(valid, reference.cycles).any()):
        value = min(value, count_reward(variant, target + 1, target))
    return value


REWARDS: Final = MappingProxyType[str, Reward](
    {
        **{name: _count_part(name, "worked" if name == "obo" else "answer") for name in VARIANTS},
        "cycles": cycle_f1,
        "cycle_tiou": cycle_tiou,
        "consistency": consistency,
        "format": form.graded_format,
        "strict_format": form.strict_format,
        "think_answer": form.think_answer,
        "recognition": recognition,
        "overlong": form.overlong,
        "repetition": form.repetition,
        "copy": form.copy,
    }
)
PENALTIES: Final = frozenset({"overlong", "repetition", "copy"})


# --- building and calling


def _part(name: str, value: float | Mapping[str, Any]) -> Part | None:
    given = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight = given.pop("weight", None)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ValueError(f"{name}: weight={weight!r}, expected a number of at least 0")
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"{name}: weight={weight!r}, expected a number of at least 0")
    is_penalty = given.pop("penalty", name in PENALTIES)
    if not isinstance(is_penalty, bool) or (name in REWARDS and is_penalty != (name in PENALTIES)):
        raise ValueError(f"{name}: penalty={is_penalty!r}, expected {name in PENALTIES}")
    for key, option in given.items():
        if not isinstance(option, str | int | float | bool):
            raise ValueError(f"{name}: {key}={option!r}, expected a number, a string or a boolean")
    if weight == 0:
        return None
    return Part(name, float(weight), is_penalty, tuple(sorted(given.items())))


@cache
def _resolve(spec: RewardSpec) -> tuple[Reward, ...]:
    """The functions of a composition with their options bound; kept, as specs are few."""
    rewards = []
    for part in spec.parts:
        reward = load_reward(part.name)
        options = dict(part.options)
        _check_signature(part.name, reward, options)
        rewards.append(partial(reward, **options))
    return tuple(rewards)


def _check_signature(name: str, reward: Reward, options: Mapping[str, Option]) -> None:
    try:
        inspect.signature(reward).bind(None, None, **options)
    except TypeError as error:
        raise ValueError(
            f"reward {name!r} cannot be called as reward(response, reference"
            f"{''.join(f', {key}={value!r}' for key, value in options.items())}): {error}"
        ) from error


def _call(
    part: Part, reward: Reward, response: ParsedResponse, reference: Reference
) -> float | None:
    try:
        value = reward(response, reference)
    except Exception as error:
        raise RewardError(
            f"reward {part.name!r} raised {type(error).__name__}: {error} "
            f"(answer {response.text[:80]!r})",
            reason="raised",
        ) from error
    if value is None:
        return None
    low, high = (-1.0, 0.0) if part.is_penalty else (0.0, 1.0)
    is_number = isinstance(value, int | float | np.floating | np.integer)
    if not is_number or not low <= value <= high:  # a NaN is not in the range either
        raise RewardError(
            f"reward {part.name!r} returned {value!r} (answer {response.text[:80]!r}), expected "
            f"None or a number in [{low:g}, {high:g}]"
        )
    return float(value)


# --- answers and references of the contract test


@cache
def _probe_texts() -> tuple[str, ...]:
    cycles = ((0.5, 1.2), (1.2, 2.0))
    right = render(Response("A person squats.", "down and up", cycles, "evenly spaced", 2, 2))
    many = tuple((i / 2, i / 2 + 0.5) for i in range(60))
    return (
        right,
        render(
            Response("A person squats.", "down and up", cycles, "evenly", 2, 2), dialect="thinking"
        ),
        render(Response("A person squats.", "down and up", many, "evenly spaced", 60, 60)),
        render(Response("Nobody moves.", "down and up", (), "nothing repeats", 0, 0)),
        right.replace("<answer>2", "<answer>3"),
        right.replace("<answer>2", "<answer>about 2.5"),
        right.replace("1.2-2.0s", "2.0-1.2s"),
        right[: len(right) // 2],
        right + right,
        "",
        "2",
        "<answer>squat</answer>",
        "<think></think><answer></answer>",
        "</answer><answer></think><think>",
        "rep1: " * 2_000,
        "<think>" + "ab " * 5_000,
        "\x00\ud800 ２² <think>\n",
    )


@cache
def _probe_references() -> tuple[Reference, ...]:
    cycles = ((0.5, 1.2), (1.2, 2.0))
    return (
        Reference(
            count=2,
            cycles=cycles,
            duration_s=2.5,
            label="squat",
            aliases=("squats",),
            prompt="How often is the action repeated?",
            num_tokens=60,
            max_tokens=64,
        ),
        Reference(count=2),
        Reference(count=2, cycles=cycles),
        Reference(count=0, cycles=(), duration_s=1.0),
        Reference(label="squat"),
        Reference(),
    )


DEFAULT_SPEC: Final = RewardSpec.from_mapping({"obo": 0.5, "cycles": 0.4, "format": 0.1})

"""Composition: which rewards an answer is scored with, their weights, and the one total.

Rewards that apply are averaged by weight, so that a clip without marks is judged by what is known
about it; penalties that apply are added with their weight::

    total = clamp(sum(w r) / sum(w) + sum(w_p p), 0, 1)

The clamp only acts where penalties outweigh the rewards.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

import numpy as np

from rewards.catalogue import PENALTIES, REWARDS, load_reward
from rewards.contract import Part, Reward, RewardError, call_reward, check_signature
from rewards.grammar.read import ParsedResponse, parse
from rewards.reference import Reference


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
            dialect: One of `rewards.grammar.layout.DIALECTS`, or None.

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
        resolve(spec)
        return spec


@dataclass(frozen=True)
class Score:
    """The reward of one answer.

    Attributes:
        total: The weighted sum, in [0, 1].
        parts: Value of each part by name; None where it did not apply.
    """

    total: float
    parts: dict[str, float | None]


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
    return score_response(parse(text, dialect=spec.dialect), reference, spec)


def score_response(response: ParsedResponse, reference: Reference, spec: RewardSpec) -> Score:
    """Score an answer that was read already, in the composition's dialect; see `score`."""
    values = {
        part.name: call_reward(part, reward, response, reference)
        for part, reward in zip(spec.parts, resolve(spec), strict=True)
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
    return Score(min(1.0, max(0.0, total / weight + penalty)), values)


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


@cache
def resolve(spec: RewardSpec) -> tuple[Reward, ...]:
    """The functions of a composition with their options bound; kept, as specs are few."""
    rewards = []
    for part in spec.parts:
        reward = load_reward(part.name)
        options = dict(part.options)
        check_signature(part.name, reward, options)
        rewards.append(partial(reward, **options))
    return tuple(rewards)


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


DEFAULT_SPEC: Final = RewardSpec.from_mapping({"obo": 0.5, "cycles": 0.4, "format": 0.1})

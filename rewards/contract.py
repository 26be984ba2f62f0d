"""The contract that every reward keeps, ours or a user's, and one part of a composition.

A reward is a function

    reward(response: ParsedResponse, reference: Reference, **options) -> float | None

that returns a number in [0, 1] (or in [-1, 0], for a penalty), or None where it does not apply to
this reference.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rewards.grammar.read import ParsedResponse
from rewards.reference import Reference

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


def check_signature(name: str, reward: Reward, options: Mapping[str, Option]) -> None:
    """Raise ValueError if a reward cannot be called as the contract says."""
    try:
        inspect.signature(reward).bind(None, None, **options)
    except TypeError as error:
        raise ValueError(
            f"reward {name!r} cannot be called as reward(response, reference"
            f"{''.join(f', {key}={value!r}' for key, value in options.items())}): {error}"
        ) from error


def call_reward(
    part: Part, reward: Reward, response: ParsedResponse, reference: Reference
) -> float | None:
    """Call a reward and check what it returns.

    Raises:
        RewardError: if it raises, or returns something else than None or a number in its range.
    """
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

"""Contract test of rewards: a user's own with every kind of answer, and the options of ours."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from types import MappingProxyType

from rewards.catalogue import PENALTIES, REWARDS, load_reward
from rewards.compose import RewardSpec, resolve
from rewards.contract import Option, Part, RewardError, call_reward, check_signature
from rewards.grammar.read import parse
from rewards.grammar.write import Response, render
from rewards.reference import Reference


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
    check_signature(name, reward, options)
    reward = partial(reward, **options)
    values: list[float | None] = []
    started = time.perf_counter()
    for text in _probe_texts():
        response = parse(text)
        for reference in _probe_references():
            value = call_reward(part, reward, response, reference)
            if value != call_reward(part, reward, response, reference):
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


def check_options(spec: RewardSpec) -> None:
    """Call those of our rewards that are given options once, so that a bad value shows at start-up.

    A user's own rewards are left to `check_reward`: what they cost, or do, is not known.

    Raises:
        ValueError: naming the reward, its options and what is wrong with them.
    """
    for part, reward in zip(spec.parts, resolve(spec), strict=True):
        if not part.options or part.name not in REWARDS:
            continue
        try:
            call_reward(part, reward, parse(_probe_texts()[0]), _probe_references()[0])
        except RewardError as error:
            given = ", ".join(f"{key}={value!r}" for key, value in part.options)
            raise ValueError(f"reward {part.name!r} with {given}: {error.__cause__}") from error


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
        right.replace("A person", "A <|im_start|>person"),
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

"""A well-formed answer, and its text."""

import math
from dataclasses import dataclass
from typing import Final

from rewards.grammar.integers import MAX_COUNT
from rewards.grammar.layout import (
    CHECK_PREFIX,
    DEFINITION_PREFIX,
    DIALECTS,
    MAX_CYCLES,
    MAX_LINES,
    MAX_TIME_S,
    TOTAL_PREFIX,
    Cycle,
    check_dialect,
    section_of,
)
from rewards.grammar.tags import holds_special

JOIN_ABOVE: Final = 20
MAX_JOINED: Final = 10


@dataclass(frozen=True)
class Response:
    """A well-formed answer.

    Attributes:
        observation: What is seen; one or more lines.
        definition: What one repetition is; one line.
        cycles: (start, end) of each repetition in seconds from the start of the clip, one decimal,
            in order and without overlap; empty where the count is 0 or no marks exist.
        check: The temporal check; one line.
        total: The total that the reasoning ends with.
        answer: The integer in the answer tag. It may differ from `total` and from the number of
            cycles: whether the three agree is a matter of reward, not of grammar.

    Raises:
        ValueError: naming the field whose value cannot be written so that it reads back the same.
    """

    observation: str
    definition: str
    cycles: tuple[Cycle, ...]
    check: str
    total: int
    answer: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "cycles", tuple((float(a), float(b)) for a, b in self.cycles))
        for field in ("observation", "definition", "check"):
            _check_text(field, getattr(self, field))
        for field in ("total", "answer"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
                raise ValueError(f"{field}={value!r}, expected an integer from 0 to {MAX_COUNT}")
        _check_cycles(self.cycles)


def render(response: Response, *, dialect: str = "think", joined: bool | None = None) -> str:
    """Write an answer.

    Args:
        response: What to write.
        dialect: Name of the reasoning tag, one of `DIALECTS`.
        joined: Whether contiguous repetitions share a line; None joins those of lists of more than
            `JOIN_ABOVE`.

    Raises:
        ValueError: for an unknown dialect.
    """
    check_dialect(dialect)
    if joined is None:
        joined = len(response.cycles) > JOIN_ABOVE
    lines = [
        f"<{dialect}>",
        response.observation,
        f"{DEFINITION_PREFIX} {response.definition}",
        *_cycle_lines(response.cycles, MAX_JOINED if joined else 1),
        f"{CHECK_PREFIX} {response.check}",
        f"{TOTAL_PREFIX} {response.total}",
        f"</{dialect}>",
        f"<answer>{response.answer}</answer>",
    ]
    return "\n".join(lines)


def round_cycles(cycles: tuple[Cycle, ...]) -> tuple[Cycle, ...]:
    """Cycles with the one decimal that the grammar writes, still in order and without overlap.

    Raises:
        ValueError: if a cycle is so short that its two ends become the same.
    """
    rounded: list[Cycle] = []
    previous_end = 0.0
    for i, cycle in enumerate(cycles):
        # Ends that differ by float noise can round apart: never start before the last one ends.
        start, end = max(previous_end, round(cycle[0], 1)), round(cycle[1], 1)
        if end <= start:
            raise ValueError(f"cycles[{i}]={cycle}: nothing is left of it at 0.1 s")
        rounded.append((start, end))
        previous_end = end
    return tuple(rounded)


def _cycle_lines(cycles: tuple[Cycle, ...], most: int) -> list[str]:
    lines = []
    first = 0
    while first < len(cycles):
        last = first
        while (
            last + 1 < len(cycles)
            and last + 1 - first < most
            and cycles[last + 1][0] == cycles[last][1]
        ):
            last += 1
        label = f"rep{first + 1}" if last == first else f"rep{first + 1}-{last + 1}"
        bounds = [cycles[first][0], *(end for _, end in cycles[first : last + 1])]
        lines.append(f"{label}: {'-'.join(f'{bound:.1f}' for bound in bounds)}s")
        first = last + 1
    return lines


def _check_text(field: str, value: str) -> None:
    if not isinstance(value, str) or not value or value != value.strip():
        raise ValueError(f"{field}={value!r}, expected text without space at its ends")
    if any(f"<{slash}{name}>" in value for name in (*DIALECTS, "answer") for slash in ("", "/")):
        raise ValueError(f"{field}={value!r}, expected text without the answer's own tags")
    if holds_special(value):
        raise ValueError(f"{field}={value!r}, expected text without a special token like <|0|>")
    lines = value.split("\n")
    if field != "observation" and len(lines) > 1:
        raise ValueError(f"{field}={value!r}, expected one line")
    if len(lines) > MAX_LINES // 2:
        raise ValueError(f"{field} has {len(lines)} lines, expected at most {MAX_LINES // 2}")
    if field == "observation" and any(section_of(line.strip()) for line in lines):
        raise ValueError(f"{field}={value!r}, expected no line that starts another section")


def _check_cycles(cycles: tuple[Cycle, ...]) -> None:
    if len(cycles) > MAX_CYCLES:
        raise ValueError(f"cycles has {len(cycles)} entries, expected at most {MAX_CYCLES}")
    for i, (start, end) in enumerate(cycles):
        for time in (start, end):
            is_time = math.isfinite(time) and math.copysign(1.0, time) > 0 and time <= MAX_TIME_S
            if not is_time or time != round(time, 1):
                raise ValueError(
                    f"cycles[{i}]={cycles[i]}, expected seconds from 0 to {MAX_TIME_S} with one "
                    "decimal"
                )
        if end <= start:
            raise ValueError(f"cycles[{i}]={cycles[i]}, expected start < end")
        if i and start < cycles[i - 1][1]:
            raise ValueError(
                f"cycles[{i}]={cycles[i]}, expected it to start no earlier than cycles[{i - 1}] "
                f"ends ({cycles[i - 1][1]})"
            )

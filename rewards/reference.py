"""What is known about the right answer of one clip; every reward is given one."""

import math
from dataclasses import dataclass

from rewards.grammar.layout import Cycle

_SLACK_S = 1e-6  # differences of float arithmetic, far below one frame


@dataclass(frozen=True)
class Reference:
    """The labels of one clip, and what a reward may need to know about the rollout's limits.

    A reward whose label is None here is not applicable: it returns None and is re-weighted.

    Attributes:
        count: Number of repetitions.
        cycles: (start, end) of each repetition in seconds from the start of the clip, in order and
            without overlap; None where the clip has no marks. As many as `count`: marks that do
            not agree with the count are no evidence (`usable_cycles` leaves them out).
        duration_s: Length of the clip in seconds.
        label: The right class, for recognition.
        aliases: Other names of `label` that are as right.
        prompt: Text of the question, for the guards against copying it.
        num_tokens: Tokens of the answer that is scored.
        max_tokens: Most tokens that the answer could have.

    Raises:
        ValueError: naming the field and value that cannot be right.
    """

    count: int | None = None
    cycles: tuple[Cycle, ...] | None = None
    duration_s: float | None = None
    label: str | None = None
    aliases: tuple[str, ...] = ()
    prompt: str | None = None
    num_tokens: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_integer("count", self.count, 0)
        _check_integer("num_tokens", self.num_tokens, 0)
        _check_integer("max_tokens", self.max_tokens, 1)
        duration = self.duration_s
        if duration is not None and not (math.isfinite(duration) and duration > 0):
            raise ValueError(f"duration_s={duration!r}, expected seconds above 0")
        if self.label is not None and not self.label.strip():
            raise ValueError(f"label={self.label!r}, expected the name of a class")
        if self.cycles is None:
            return
        if problem := _cycles_problem(self.cycles):
            raise ValueError(problem)
        if self.count is not None and len(self.cycles) != self.count:
            raise ValueError(
                f"cycles has {len(self.cycles)} entries and count={self.count}, expected as many: "
                "give cycles=None where the marks do not agree with the count"
            )


def usable_cycles(
    count: int, cycles: tuple[Cycle, ...] | None
) -> tuple[tuple[Cycle, ...] | None, str | None]:
    """The marks that a `Reference` takes: (cycles, None), or (None, why they are left out).

    For annotated sets, where some rows hold fewer marks than repetitions, or zero-length ones.
    """
    if cycles is None:
        return None, "no marks"
    if problem := _cycles_problem(cycles):
        return None, problem
    if len(cycles) != count:
        return None, f"{len(cycles)} marks for a count of {count}"
    return cycles, None


def _check_integer(field: str, value: int | None, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{field}={value!r}, expected an integer of at least {least}")


def _cycles_problem(cycles: tuple[Cycle, ...]) -> str | None:
    previous_end = 0.0
    for i, (start, end) in enumerate(cycles):
        if not (math.isfinite(start) and math.isfinite(end) and start >= -_SLACK_S):
            return f"cycles[{i}]={cycles[i]}, expected seconds of at least 0"
        if end <= start:
            return f"cycles[{i}]={cycles[i]}, expected start < end"
        if start < previous_end - _SLACK_S:
            return f"cycles[{i}]={cycles[i]}, expected no overlap with the one before it"
        previous_end = end
    return None

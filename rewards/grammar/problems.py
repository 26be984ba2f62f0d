"""What can be wrong with an answer, and where."""

from dataclasses import dataclass
from typing import Final

MAX_PROBLEMS: Final = 32  # problems kept


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an answer.

    Attributes:
        code: What is wrong, for example "unclosed_think", "bad_cycle" or "answer_decimal".
        start: Offset of its first character in the text.
        end: Offset after its last character; equal to `start` for something that is missing.
    """

    code: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.code} at {self.start}-{self.end}"


def add_problem(problems: list[Problem], code: str, start: int, end: int) -> None:
    """Append a problem, unless there are `MAX_PROBLEMS` already."""
    if len(problems) < MAX_PROBLEMS:
        problems.append(Problem(code, start, end))

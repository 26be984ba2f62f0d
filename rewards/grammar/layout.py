"""Names, order and limits of the answer's parts, which writing and reading keep to."""

from typing import Final

Cycle = tuple[float, float]

DIALECTS: Final = ("think", "thinking")
SECTIONS: Final = ("observation", "definition", "cycles", "check", "total", "answer")
REQUIRED_SECTIONS: Final = frozenset(SECTIONS) - {"cycles"}

MAX_TIME_S: Final = 99_999.9
MAX_CYCLES: Final = 1_000  # repetitions read from one answer; the longest real set has 151
MAX_LINES: Final = 4_096  # lines read inside the reasoning

DEFINITION_PREFIX: Final = "One repetition:"
CHECK_PREFIX: Final = "Check:"
TOTAL_PREFIX: Final = "Total:"


def section_of(line: str) -> str | None:
    """The section that a stripped line belongs to, by how it starts."""
    if line.startswith("rep") and line[3:4] in "0123456789" and len(line) > 3:
        return "cycles"
    if line.startswith(DEFINITION_PREFIX):
        return "definition"
    if line.startswith(CHECK_PREFIX):
        return "check"
    return "total" if line.startswith(TOTAL_PREFIX) else None


def check_dialect(dialect: str) -> None:
    """Raise ValueError for a dialect that is not one of `DIALECTS`."""
    if dialect not in DIALECTS:
        raise ValueError(f"dialect={dialect!r}, expected one of {', '.join(DIALECTS)}")

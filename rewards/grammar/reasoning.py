"""The lines between the reasoning's tags, read one by one."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from rewards.grammar.integers import read_integer
from rewards.grammar.layout import MAX_CYCLES, MAX_LINES, Cycle, section_of
from rewards.grammar.problems import Problem, add_problem

_RANKS: Final = {"definition": 0, "cycles": 1, "check": 2, "total": 3}  # order in the reasoning
_TIME = r"[0-9]{1,5}(?:\.[0-9]{1,3})?"
_CYCLE_LINE = re.compile(rf"rep([0-9]{{1,6}})(?:-([0-9]{{1,6}}))?: *({_TIME}(?:-{_TIME})*)s")


class Reasoning:
    """What was read between the reasoning's tags."""

    def __init__(self) -> None:
        self.observation: str | None = None
        self.definition: str | None = None
        self.cycles: list[Cycle] = []
        self.cycle_spans: list[tuple[int, int]] = []
        self.check: str | None = None
        self.total: int | None = None
        self.seen: set[str] = set()
        self.rank = -1


def read_reasoning(text: str, start: int, end: int, problems: list[Problem]) -> Reasoning:
    """Read text[start:end], at most `MAX_LINES` lines of it, and report what is wrong."""
    body = Reasoning()
    observation_end = end
    at = start
    for _ in range(MAX_LINES):
        if at >= end:
            break
        line_end = text.find("\n", at, end)
        if line_end < 0:
            line_end = end
        raw = text[at:line_end]
        line = raw.strip()
        kind = section_of(line)
        if kind is None:
            if line and body.rank >= 0:
                add_problem(problems, "stray_text", at, line_end)
        else:
            observation_end = min(observation_end, at)
            begin = at + len(raw) - len(raw.lstrip())
            _read_section(body, kind, line, (begin, line_end), problems)
        at = line_end + 1
    else:
        if at < end:
            add_problem(problems, "too_many_lines", at, end)
    body.observation = text[start:observation_end].strip() or None
    return body


def _read_section(
    body: Reasoning, kind: str, line: str, where: tuple[int, int], problems: list[Problem]
) -> None:
    rank = _RANKS[kind]
    if rank < body.rank:
        add_problem(problems, "section_order", *where)
    body.rank = max(body.rank, rank)
    if kind == "cycles":
        _read_cycles(body, line, where, problems)
        return
    if kind in body.seen:
        add_problem(problems, "repeated_section", *where)
        return
    body.seen.add(kind)
    value = line[line.index(":") + 1 :].strip()
    if kind == "total":
        body.total, problem = read_integer(value)
        if problem is not None:
            add_problem(problems, f"total_{problem}", *where)
    elif not value:
        add_problem(problems, f"empty_{kind}", *where)
    else:
        setattr(body, kind, value)


def _read_cycles(
    body: Reasoning, line: str, where: tuple[int, int], problems: list[Problem]
) -> None:
    cycles = body.cycles
    if len(cycles) + line.count("-") > MAX_CYCLES + 2:  # bounds the time that one line can take
        add_problem(problems, "too_many_cycles", *where)
        return
    match = _CYCLE_LINE.fullmatch(line)
    if match is None:
        add_problem(problems, "bad_cycle", *where)
        return
    first = int(match[1])
    last = int(match[2] or match[1])
    written = match[3].split("-")
    bounds = [float(time) for time in written]
    if len(bounds) - 1 != last - first + 1 or len(bounds) < 2:
        add_problem(problems, "bad_cycle", *where)
        return
    if len(cycles) + len(bounds) - 1 > MAX_CYCLES:
        add_problem(problems, "too_many_cycles", *where)
        return
    if first != len(cycles) + 1:
        add_problem(problems, "cycle_number", *where)
    if any(len(time) - time.find(".") != 2 or "." not in time for time in written):
        add_problem(problems, "time_precision", *where)
    if any(b <= a for a, b in pairwise(bounds)):
        add_problem(problems, "empty_cycle", *where)
    if cycles and bounds[0] < cycles[-1][1]:
        add_problem(problems, "cycle_overlap", *where)
    cycles.extend(pairwise(bounds))
    body.cycle_spans += _spans_of(match, written, where[0])


def _spans_of(match: re.Match[str], written: list[str], at: int) -> Iterator[tuple[int, int]]:
    """From where to where each repetition of a line is written: its end alone after the first."""
    begin, end = at, at + match.start(3) + len(written[0])
    for number, time in enumerate(written[1:], start=1):
        end += 1 + len(time)
        yield begin, end + (number == len(written) - 1)  # the last one takes the "s"
        begin = end

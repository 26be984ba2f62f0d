"""What a text holds of an answer, and what is wrong with it.

`parse` never raises on text and takes linear time: tags are found by plain string search, lines
are read one by one, and every kind of thing is read up to a stated number of times. What a chat
template writes before the model's first token (often `<think>`) belongs to the answer: prepend it.
"""

from dataclasses import dataclass

from rewards.grammar.integers import read_integer
from rewards.grammar.layout import REQUIRED_SECTIONS, Cycle, check_dialect
from rewards.grammar.problems import Problem, add_problem
from rewards.grammar.reasoning import Reasoning, read_reasoning
from rewards.grammar.tags import (
    check_outside,
    check_special,
    choose_dialect,
    find_answer,
    find_reasoning,
    find_tags,
)


@dataclass(frozen=True)
class ParsedResponse:
    """What an answer holds, and what is wrong with it.

    Attributes:
        text: The text that was read.
        dialect: The name of the reasoning tag that was found, or None.
        observation: Text before the first section line of the reasoning, or None.
        definition: What one repetition is, or None.
        cycles: The repetitions that could be read, as listed: possibly empty, overlapping or
            outside the clip.
        check: The temporal check, or None.
        total: The total of the reasoning, or None where it is absent or not an integer.
        count: The integer in the answer tag, or None.
        answer_text: The text of the one answer tag, stripped, or None where there is not exactly
            one, outside the reasoning.
        answer_problem: Why `count` is None: "missing", "unopened", "unclosed", "several",
            "nested", "empty", "too_large", "negative", "decimal", "range", "approximate" or
            "not_integer". None where `count` is given.
        sections: Those of `SECTIONS` that are present and could be read.
        problems: Everything that is wrong, in order of position; at most `MAX_PROBLEMS`.
        cycle_spans: Where each of `cycles` is written: (first character, the one after).
    """

    text: str
    dialect: str | None
    observation: str | None
    definition: str | None
    cycles: tuple[Cycle, ...]
    check: str | None
    total: int | None
    count: int | None
    answer_text: str | None
    answer_problem: str | None
    sections: frozenset[str]
    problems: tuple[Problem, ...]
    cycle_spans: tuple[tuple[int, int], ...] = ()

    @property
    def is_well_formed(self) -> bool:
        """Whether nothing is wrong and every section is there (the list may be empty)."""
        return not self.problems and self.sections >= REQUIRED_SECTIONS

    def has_problem(self, *codes: str) -> bool:
        """Whether one of these codes is among the problems."""
        return any(problem.code in codes for problem in self.problems)


def parse(text: str, *, dialect: str | None = None) -> ParsedResponse:
    """Read an answer; any text gives a result, in time linear in its length.

    Args:
        text: The answer, with whatever the chat template opened before it.
        dialect: The one dialect to accept; None accepts either.

    Raises:
        ValueError: for an unknown dialect.
    """
    if dialect is not None:
        check_dialect(dialect)
    problems: list[Problem] = []
    tags = find_tags(text)
    found, tags = choose_dialect(tags, dialect, problems)
    think = find_reasoning(text, tags, problems)
    answer, answer_problem = find_answer(text, tags, think, problems)
    check_outside(text, think, answer, problems)
    check_special(text, problems)
    body = read_reasoning(text, think.start, think.end, problems) if think else Reasoning()
    answer_text, count = None, None
    if answer is not None:
        answer_text = text[answer.start : answer.end].strip()
        count, answer_problem = read_integer(answer_text)
        if answer_problem is not None:
            add_problem(problems, f"answer_{answer_problem}", answer.start, answer.end)
    fields = {
        "observation": body.observation,
        "definition": body.definition,
        "cycles": tuple(body.cycles) or None,
        "check": body.check,
        "total": body.total,
        "answer": count,
    }
    return ParsedResponse(
        text=text,
        dialect=found,
        observation=body.observation,
        definition=body.definition,
        cycles=tuple(body.cycles),
        check=body.check,
        total=body.total,
        count=count,
        answer_text=answer_text,
        answer_problem=answer_problem,
        sections=frozenset(name for name, value in fields.items() if value is not None),
        problems=tuple(sorted(problems, key=lambda problem: (problem.start, problem.end))),
        cycle_spans=tuple(body.cycle_spans),
    )

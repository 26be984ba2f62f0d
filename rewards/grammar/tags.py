"""The tags of an answer: which there are, in which dialect, and what lies inside and outside.

Tags are found by plain string search, in time linear in the text.
"""

import re
from dataclasses import dataclass
from typing import Final

from rewards.grammar.layout import DIALECTS
from rewards.grammar.problems import Problem, add_problem

MAX_TAGS: Final = 32  # tags read of each kind
_SPECIAL: Final = re.compile(r"<\|\w{1,64}\|>")


@dataclass(frozen=True)
class Tag:
    """An opening or closing tag and its offsets in the text."""

    name: str
    is_open: bool
    start: int
    end: int


@dataclass(frozen=True)
class Span:
    """Content of a pair of tags, without (start, end) and with (outer_*) the tags themselves."""

    start: int
    end: int
    outer_start: int
    outer_end: int
    is_closed: bool = True


def find_tags(text: str) -> list[Tag]:
    """The tags of both dialects and of the answer, by position; at most `MAX_TAGS` of each."""
    tags = []
    for name in (*DIALECTS, "answer"):
        for is_open in (True, False):
            literal = f"<{name}>" if is_open else f"</{name}>"
            at = text.find(literal)
            for _ in range(MAX_TAGS):
                if at < 0:
                    break
                tags.append(Tag(name, is_open, at, at + len(literal)))
                at = text.find(literal, at + len(literal))
    return sorted(tags, key=lambda tag: tag.start)


def choose_dialect(
    tags: list[Tag], demanded: str | None, problems: list[Problem]
) -> tuple[str | None, list[Tag]]:
    """The dialect in use, and the tags without those of the other one, which are reported."""
    names = [tag.name for tag in tags if tag.name != "answer"]
    used = demanded or (names[0] if names else None)
    foreign = [tag for tag in tags if tag.name not in (used, "answer")]
    if foreign:
        code = "wrong_dialect" if demanded else "mixed_dialect"
        add_problem(problems, code, foreign[0].start, foreign[0].end)
    found = used if used in names else None
    return found, [tag for tag in tags if tag.name in (used, "answer")]


def find_reasoning(text: str, tags: list[Tag], problems: list[Problem]) -> Span | None:
    """What lies between the reasoning's tags; it ends at the answer where it is not closed."""
    opens = [tag for tag in tags if tag.name != "answer" and tag.is_open]
    closes = [tag for tag in tags if tag.name != "answer" and not tag.is_open]
    if not opens:
        if closes:
            add_problem(problems, "unopened_think", closes[0].start, closes[0].end)
        else:
            add_problem(problems, "missing_think", 0, 0)
        return None
    first = opens[0]
    extra = [*opens[1:], *closes[1:], *(tag for tag in closes if tag.start < first.start)]
    if extra:
        add_problem(problems, "repeated_think", extra[0].start, extra[0].end)
    for tag in closes:
        if tag.start > first.start:
            return Span(first.end, tag.start, first.start, tag.end)
    add_problem(problems, "unclosed_think", first.start, first.end)
    after = [tag.start for tag in tags if tag.name == "answer" and tag.start > first.start]
    end = after[0] if after else len(text)
    return Span(first.end, end, first.start, end, is_closed=False)


def find_answer(
    text: str, tags: list[Tag], think: Span | None, problems: list[Problem]
) -> tuple[Span | None, str | None]:
    """The one answer, or None and why there is not one."""
    opens = [tag for tag in tags if tag.name == "answer" and tag.is_open]
    closes = [tag for tag in tags if tag.name == "answer" and not tag.is_open]
    start, end = len(text), len(text)
    if not opens and not closes:
        problem = "missing"
    elif not opens:
        problem, start, end = "unopened", closes[0].start, closes[0].end
    elif len(opens) > 1 or len(closes) > 1:
        extra = opens[1] if len(opens) > 1 else closes[1]
        problem, start, end = "several", extra.start, extra.end
    elif not closes or closes[0].start < opens[0].end:
        problem, start, end = "unclosed", opens[0].start, opens[0].end
    else:
        span = Span(opens[0].end, closes[0].start, opens[0].start, closes[0].end)
        is_inside = think and think.is_closed and think.start <= span.outer_start < think.end
        has_tag = any(span.start <= tag.start < span.end for tag in tags)
        if not is_inside and not has_tag:
            if think and span.outer_start < think.outer_start:
                add_problem(problems, "answer_first", span.outer_start, span.outer_end)
            return span, None
        problem, start, end = "nested", span.outer_start, span.outer_end
    add_problem(problems, f"answer_{problem}", start, end)
    return None, problem


def holds_special(text: str) -> bool:
    """Whether a text holds a special token of a chat model."""
    return _SPECIAL.search(text) is not None


def check_special(text: str, problems: list[Problem]) -> None:
    """Report the first special token of a chat model, such as `<|im_start|>`: no answer has one."""
    if found := _SPECIAL.search(text):
        add_problem(problems, "special_token", found.start(), found.end())


def check_outside(
    text: str, think: Span | None, answer: Span | None, problems: list[Problem]
) -> None:
    """Report the first text outside the tags."""
    spans = sorted((span.outer_start, span.outer_end) for span in (think, answer) if span)
    at = 0
    for start, end in (*spans, (len(text), len(text))):
        between = text[at:start]
        if stripped := between.strip():
            offset = at + between.index(stripped[0])
            add_problem(problems, "text_outside", offset, offset + len(stripped))
            return
        at = max(at, end)

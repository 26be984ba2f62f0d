"""The answer grammar: the one place that writes answers and reads them back.

An answer, in the dialect `think` (the dialect `thinking` only renames the first pair of tags)::

    <think>
    A person lowers and rises in front of a wall.
    One repetition: from standing, down, and back to standing
    rep1: 0.5-1.2s
    rep2: 1.2-2.0s
    Check: the two repetitions last about as long as each other
    Total: 2
    </think>
    <answer>2</answer>

Times are seconds from the start of the clip with one decimal. Lists of more than `GROUP_ABOVE`
repetitions are written in grouped form: contiguous repetitions share their bounds, at most
`GROUP_SIZE` to a line, and a line ends where a gap begins. `repI-J` is followed by the J-I+2
bounds of the repetitions I to J, so the line of a single repetition is the same form with two::

    rep1-3: 0.5-1.2-2.0-2.7s
    rep4: 3.1-3.8s

`parse` never raises on text and takes linear time: tags are found by plain string search, lines
are read one by one, and every kind of thing is read up to a stated number of times. What a chat
template writes before the model's first token (often `<think>`) belongs to the answer: prepend it.
"""

import math
import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Final

Cycle = tuple[float, float]

DIALECTS: Final = ("think", "thinking")
SECTIONS: Final = ("observation", "definition", "cycles", "check", "total", "answer")
REQUIRED_SECTIONS: Final = frozenset(SECTIONS) - {"cycles"}

MAX_COUNT: Final = 999_999  # larger integers are reported as "too_large"
MAX_TIME_S: Final = 99_999.9
MAX_CYCLES: Final = 1_000  # repetitions read from one answer; the longest real set has 151
MAX_LINES: Final = 4_096  # lines read inside the reasoning
MAX_TAGS: Final = 32  # tags read of each kind
MAX_PROBLEMS: Final = 32  # problems kept
GROUP_ABOVE: Final = 20
GROUP_SIZE: Final = 10

_DEFINITION: Final = "One repetition:"
_CHECK: Final = "Check:"
_TOTAL: Final = "Total:"
_RANKS: Final = {"definition": 0, "cycles": 1, "check": 2, "total": 3}  # order in the reasoning

_TIME = r"[0-9]{1,5}(?:\.[0-9]{1,3})?"
_CYCLE_LINE = re.compile(rf"rep([0-9]{{1,6}})(?:-([0-9]{{1,6}}))?: *({_TIME}(?:-{_TIME})*)s")
_FULL_WIDTH = str.maketrans("０１２３４５６７８９", "0123456789")
_UNITS: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS: Final = "twenty thirty forty fifty sixty seventy eighty ninety"
_APPROXIMATE = re.compile(
    r"(about|around|approx|roughly|nearly|almost|circa|ca\.|at least|at most|over|under"
    r"|more than|less than|~|≈|>|<)"
)


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

    @property
    def is_well_formed(self) -> bool:
        """Whether nothing is wrong and every section is there (the list may be empty)."""
        return not self.problems and self.sections >= REQUIRED_SECTIONS

    def has_problem(self, *codes: str) -> bool:
        """Whether one of these codes is among the problems."""
        return any(problem.code in codes for problem in self.problems)

    def to_response(self) -> Response:
        """The answer as a `Response`, so that `parse(render(x)).to_response() == x`.

        Raises:
            ValueError: if the text is not well formed, naming its first problem.
        """
        if not self.is_well_formed:
            missing = sorted(REQUIRED_SECTIONS - self.sections)
            what = str(self.problems[0]) if self.problems else f"no {missing[0]}"
            raise ValueError(f"the answer is not well formed: {what}")
        assert self.observation is not None
        assert self.definition is not None
        assert self.check is not None
        assert self.total is not None
        assert self.count is not None
        return Response(
            self.observation, self.definition, self.cycles, self.check, self.total, self.count
        )


def render(response: Response, *, dialect: str = "think", grouped: bool | None = None) -> str:
    """Write an answer.

    Args:
        response: What to write.
        dialect: Name of the reasoning tag, one of `DIALECTS`.
        grouped: Whether contiguous repetitions share a line; None groups lists of more than
            `GROUP_ABOVE`.

    Raises:
        ValueError: for an unknown dialect.
    """
    _check_dialect(dialect)
    if grouped is None:
        grouped = len(response.cycles) > GROUP_ABOVE
    lines = [
        f"<{dialect}>",
        response.observation,
        f"{_DEFINITION} {response.definition}",
        *_cycle_lines(response.cycles, GROUP_SIZE if grouped else 1),
        f"{_CHECK} {response.check}",
        f"{_TOTAL} {response.total}",
        f"</{dialect}>",
        f"<answer>{response.answer}</answer>",
    ]
    return "\n".join(lines)


def parse(text: str, *, dialect: str | None = None) -> ParsedResponse:
    """Read an answer; any text gives a result, in time linear in its length.

    Args:
        text: The answer, with whatever the chat template opened before it.
        dialect: The one dialect to accept; None accepts either.

    Raises:
        ValueError: for an unknown dialect.
    """
    if dialect is not None:
        _check_dialect(dialect)
    problems: list[Problem] = []
    tags = _find_tags(text)
    found, tags = _choose_dialect(tags, dialect, problems)
    think = _find_think(text, tags, problems)
    answer, answer_problem = _find_answer(text, tags, think, problems)
    _check_outside(text, think, answer, problems)
    body = _read_reasoning(text, think.start, think.end, problems) if think else _Reasoning()
    answer_text, count = None, None
    if answer is not None:
        answer_text = text[answer.start : answer.end].strip()
        count, answer_problem = read_integer(answer_text)
        if answer_problem is not None:
            _add(problems, f"answer_{answer_problem}", answer.start, answer.end)
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
    )


def dialect_of_template(chat_template: str) -> str:
    """The dialect that a model's chat template uses: "thinking" if it writes that tag."""
    return (
        "thinking" if "<thinking>" in chat_template or "</thinking>" in chat_template else "think"
    )


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


def read_integer(text: str) -> tuple[int | None, str | None]:
    """Read an integer from 0 to `MAX_COUNT`: (value, None), or (None, what it is instead).

    Digits, full-width digits ("１２") and English number words ("twenty-one") are read. Everything
    else is named and not guessed at: "empty", "too_large", "negative" ("-5"), "decimal" ("3.5"),
    "range" ("12 to 15"), "approximate" ("about 12"), or "not_integer" ("2²", "10 reps").
    """
    stripped = text.strip()
    if not stripped:
        return None, "empty"
    value = _plain_integer(stripped)
    if value is not None:
        return (value, None) if value <= MAX_COUNT else (None, "too_large")
    if len(stripped) > 64:  # no number is written so long, and classifying it is not worth the time
        return None, "not_integer"
    lowered = stripped.lower()
    if re.match(r"(?:[-−–]\s*|minus |negative )", lowered):
        rest = re.sub(r"^(?:[-−–]\s*|minus |negative )", "", lowered)
        return None, "negative" if _is_number(rest) else "not_integer"
    if _is_number(lowered):
        return None, "decimal"
    match = re.fullmatch(r"(.+?)\s*(?:\bto\b|\bor\b|-|–|—|\.\.+)\s*(.+)", lowered)
    if match and _is_number(match[1]) and _is_number(match[2]):
        return None, "range"
    if match := _APPROXIMATE.match(lowered):
        return None, "approximate"
    return None, "not_integer"


# --- writing


def _cycle_lines(cycles: tuple[Cycle, ...], group_size: int) -> list[str]:
    lines = []
    first = 0
    while first < len(cycles):
        last = first
        while (
            last + 1 < len(cycles)
            and last + 1 - first < group_size
            and cycles[last + 1][0] == cycles[last][1]
        ):
            last += 1
        label = f"rep{first + 1}" if last == first else f"rep{first + 1}-{last + 1}"
        bounds = [cycles[first][0], *(end for _, end in cycles[first : last + 1])]
        lines.append(f"{label}: {'-'.join(f'{bound:.1f}' for bound in bounds)}s")
        first = last + 1
    return lines


def _check_dialect(dialect: str) -> None:
    if dialect not in DIALECTS:
        raise ValueError(f"dialect={dialect!r}, expected one of {', '.join(DIALECTS)}")


def _check_text(field: str, value: str) -> None:
    if not isinstance(value, str) or not value or value != value.strip():
        raise ValueError(f"{field}={value!r}, expected text without space at its ends")
    if any(f"<{slash}{name}>" in value for name in (*DIALECTS, "answer") for slash in ("", "/")):
        raise ValueError(f"{field}={value!r}, expected text without the answer's own tags")
    lines = value.split("\n")
    if field != "observation" and len(lines) > 1:
        raise ValueError(f"{field}={value!r}, expected one line")
    if len(lines) > MAX_LINES // 2:
        raise ValueError(f"{field} has {len(lines)} lines, expected at most {MAX_LINES // 2}")
    if field == "observation" and any(_kind(line.strip()) for line in lines):
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


# --- reading the tags


@dataclass(frozen=True)
class _Tag:
    name: str
    is_open: bool
    start: int
    end: int


@dataclass(frozen=True)
class _Span:
    """Content of a pair of tags, without (start, end) and with (outer_*) the tags themselves."""

    start: int
    end: int
    outer_start: int
    outer_end: int
    is_closed: bool = True


def _add(problems: list[Problem], code: str, start: int, end: int) -> None:
    if len(problems) < MAX_PROBLEMS:
        problems.append(Problem(code, start, end))


def _find_tags(text: str) -> list[_Tag]:
    tags = []
    for name in (*DIALECTS, "answer"):
        for is_open in (True, False):
            literal = f"<{name}>" if is_open else f"</{name}>"
            at = text.find(literal)
            for _ in range(MAX_TAGS):
                if at < 0:
                    break
                tags.append(_Tag(name, is_open, at, at + len(literal)))
                at = text.find(literal, at + len(literal))
    return sorted(tags, key=lambda tag: tag.start)


def _choose_dialect(
    tags: list[_Tag], demanded: str | None, problems: list[Problem]
) -> tuple[str | None, list[_Tag]]:
    """The dialect in use, and the tags without those of the other one, which are reported."""
    names = [tag.name for tag in tags if tag.name != "answer"]
    used = demanded or (names[0] if names else None)
    foreign = [tag for tag in tags if tag.name not in (used, "answer")]
    if foreign:
        code = "wrong_dialect" if demanded else "mixed_dialect"
        _add(problems, code, foreign[0].start, foreign[0].end)
    found = used if used in names else None
    return found, [tag for tag in tags if tag.name in (used, "answer")]


def _find_think(text: str, tags: list[_Tag], problems: list[Problem]) -> _Span | None:
    opens = [tag for tag in tags if tag.name != "answer" and tag.is_open]
    closes = [tag for tag in tags if tag.name != "answer" and not tag.is_open]
    if not opens:
        if closes:
            _add(problems, "unopened_think", closes[0].start, closes[0].end)
        else:
            _add(problems, "missing_think", 0, 0)
        return None
    first = opens[0]
    extra = [*opens[1:], *closes[1:], *(tag for tag in closes if tag.start < first.start)]
    if extra:
        _add(problems, "repeated_think", extra[0].start, extra[0].end)
    for tag in closes:
        if tag.start > first.start:
            return _Span(first.end, tag.start, first.start, tag.end)
    _add(problems, "unclosed_think", first.start, first.end)
    after = [tag.start for tag in tags if tag.name == "answer" and tag.start > first.start]
    end = after[0] if after else len(text)
    return _Span(first.end, end, first.start, end, is_closed=False)


def _find_answer(
    text: str, tags: list[_Tag], think: _Span | None, problems: list[Problem]
) -> tuple[_Span | None, str | None]:
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
        span = _Span(opens[0].end, closes[0].start, opens[0].start, closes[0].end)
        is_inside = think and think.is_closed and think.start <= span.outer_start < think.end
        has_tag = any(span.start <= tag.start < span.end for tag in tags)
        if not is_inside and not has_tag:
            if think and span.outer_start < think.outer_start:
                _add(problems, "answer_first", span.outer_start, span.outer_end)
            return span, None
        problem, start, end = "nested", span.outer_start, span.outer_end
    _add(problems, f"answer_{problem}", start, end)
    return None, problem


def _check_outside(
    text: str, think: _Span | None, answer: _Span | None, problems: list[Problem]
) -> None:
    """Report the first text outside the tags."""
    spans = sorted((span.outer_start, span.outer_end) for span in (think, answer) if span)
    at = 0
    for start, end in (*spans, (len(text), len(text))):
        between = text[at:start]
        if stripped := between.strip():
            offset = at + between.index(stripped[0])
            _add(problems, "text_outside", offset, offset + len(stripped))
            return
        at = max(at, end)


# --- reading the reasoning


class _Reasoning:
    """What was read between the reasoning's tags."""

    def __init__(self) -> None:
        self.observation: str | None = None
        self.definition: str | None = None
        self.cycles: list[Cycle] = []
        self.check: str | None = None
        self.total: int | None = None
        self.seen: set[str] = set()
        self.rank = -1


def _kind(line: str) -> str | None:
    """The section that a stripped line belongs to, by how it starts."""
    if line.startswith("rep") and line[3:4] in "0123456789" and len(line) > 3:
        return "cycles"
    if line.startswith(_DEFINITION):
        return "definition"
    if line.startswith(_CHECK):
        return "check"
    return "total" if line.startswith(_TOTAL) else None


def _read_reasoning(text: str, start: int, end: int, problems: list[Problem]) -> _Reasoning:
    body = _Reasoning()
    observation_end = end
    at = start
    for _ in range(MAX_LINES):
        if at >= end:
            break
        line_end = text.find("\n", at, end)
        if line_end < 0:
            line_end = end
        line = text[at:line_end].strip()
        kind = _kind(line)
        if kind is None:
            if line and body.rank >= 0:
                _add(problems, "stray_text", at, line_end)
        else:
            observation_end = min(observation_end, at)
            _read_section(body, kind, line, (at, line_end), problems)
        at = line_end + 1
    else:
        if at < end:
            _add(problems, "too_many_lines", at, end)
    body.observation = text[start:observation_end].strip() or None
    return body


def _read_section(
    body: _Reasoning, kind: str, line: str, where: tuple[int, int], problems: list[Problem]
) -> None:
    rank = _RANKS[kind]
    if rank < body.rank:
        _add(problems, "section_order", *where)
    body.rank = max(body.rank, rank)
    if kind == "cycles":
        _read_cycles(body.cycles, line, where, problems)
        return
    if kind in body.seen:
        _add(problems, "repeated_section", *where)
        return
    body.seen.add(kind)
    value = line[line.index(":") + 1 :].strip()
    if kind == "total":
        body.total, problem = read_integer(value)
        if problem is not None:
            _add(problems, f"total_{problem}", *where)
    elif not value:
        _add(problems, f"empty_{kind}", *where)
    else:
        setattr(body, kind, value)


def _read_cycles(
    cycles: list[Cycle], line: str, where: tuple[int, int], problems: list[Problem]
) -> None:
    if len(cycles) + line.count("-") > MAX_CYCLES + 2:  # bounds the time that one line can take
        _add(problems, "too_many_cycles", *where)
        return
    match = _CYCLE_LINE.fullmatch(line)
    if match is None:
        _add(problems, "bad_cycle", *where)
        return
    first = int(match[1])
    last = int(match[2] or match[1])
    written = match[3].split("-")
    bounds = [float(time) for time in written]
    if len(bounds) - 1 != last - first + 1 or len(bounds) < 2:
        _add(problems, "bad_cycle", *where)
        return
    if len(cycles) + len(bounds) - 1 > MAX_CYCLES:
        _add(problems, "too_many_cycles", *where)
        return
    if first != len(cycles) + 1:
        _add(problems, "cycle_number", *where)
    if any(len(time) - time.find(".") != 2 or "." not in time for time in written):
        _add(problems, "time_precision", *where)
    if any(b <= a for a, b in pairwise(bounds)):
        _add(problems, "empty_cycle", *where)
    if cycles and bounds[0] < cycles[-1][1]:
        _add(problems, "cycle_overlap", *where)
    cycles.extend(pairwise(bounds))


# --- reading integers


def _plain_integer(text: str) -> int | None:
    """The value of digits or number words; anything above `MAX_COUNT` for a longer digit string."""
    digits = text.translate(_FULL_WIDTH)
    if digits.isascii() and digits.isdigit():
        significant = digits.lstrip("0") or "0"
        return int(significant) if len(significant) <= 6 else MAX_COUNT + 1
    return _number_word(text) if len(text) <= 64 else None


def _is_number(text: str) -> bool:
    folded = text.strip().translate(_FULL_WIDTH)
    is_decimal = re.fullmatch(r"[0-9]+(?:[.,][0-9]+)?|[.,][0-9]+", folded)
    return is_decimal is not None or _number_word(folded) is not None


def _number_word(text: str) -> int | None:
    """The value of an English number word below a million, for example "one hundred and five"."""
    words = " ".join(text.lower().replace("-", " ").split())
    thousands, separator, rest = words.partition(" thousand")
    below = _words_below_thousand()
    if not separator:
        return below.get(words)
    high = below.get(thousands)
    low = below.get(rest.strip().removeprefix("and ")) if rest else 0
    return None if not high or low is None or (rest and not low) else high * 1000 + low


@cache
def _words_below_thousand() -> dict[str, int]:
    units, tens = _UNITS.split(), _TENS.split()
    words = {word: i for i, word in enumerate(units)}
    for i, ten in enumerate(tens, start=2):
        words[ten] = 10 * i
        words.update({f"{ten} {units[j]}": 10 * i + j for j in range(1, 10)})
    small = [(word, value) for word, value in words.items() if value]
    for i in range(1, 10):
        hundred = f"{units[i]} hundred"
        words[hundred] = 100 * i
        for word, value in small:
            words[f"{hundred} {word}"] = words[f"{hundred} and {word}"] = 100 * i + value
    return words

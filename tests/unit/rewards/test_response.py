"""The answer grammar: layout, round trip, and a defined result for everything malformed."""

import string
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.grammar.integers import MAX_COUNT, read_integer
from rewards.grammar.layout import MAX_CYCLES, REQUIRED_SECTIONS
from rewards.grammar.problems import Problem
from rewards.grammar.read import ParsedResponse, parse
from rewards.grammar.write import JOIN_ABOVE, Response, render, round_cycles

ResponseOf = Callable[[ParsedResponse], Response]

SQUATS = Response(
    observation="A person squats.",
    definition="down and up",
    cycles=((0.5, 1.2), (1.2, 2.0)),
    check="evenly spaced",
    total=2,
    answer=2,
)
SQUATS_TEXT = """<think>
A person squats.
One repetition: down and up
rep1: 0.5-1.2s
rep2: 1.2-2.0s
Check: evenly spaced
Total: 2
</think>
<answer>2</answer>"""


def codes(text: str) -> list[str]:
    return [problem.code for problem in parse(text).problems]


# --- writing


def test_layout_is_exact() -> None:
    assert render(SQUATS) == SQUATS_TEXT
    assert render(SQUATS, dialect="thinking") == SQUATS_TEXT.replace("think>", "thinking>")


@pytest.mark.parametrize("joined", [False, True])
def test_it_is_known_where_each_repetition_is_written(joined: bool) -> None:
    contiguous = tuple((i / 2, i / 2 + 0.5) for i in range(11))
    response = Response("a man rows", "pull", (*contiguous, (6.0, 6.5)), "even", 12, 12)
    text = render(response, joined=joined).replace("rep12", "  rep12")
    read = parse(text)
    written = [text[first:end] for first, end in read.cycle_spans]
    assert len(written) == len(read.cycles) == 12
    assert written[-1] == "rep12: 6.0-6.5s"
    if joined:
        assert written[:2] == ["rep1-10: 0.0-0.5", "-1.0"]
        assert written[9:11] == ["-5.0s", "rep11: 5.0-5.5s"]
    else:
        assert written[1] == "rep2: 0.5-1.0s"


def test_grouped_layout_breaks_at_gaps_and_after_ten() -> None:
    contiguous = tuple((i / 2, i / 2 + 0.5) for i in range(11))
    response = Response("a man rows", "pull", (*contiguous, (6.0, 6.5)), "even", 12, 12)
    assert render(response, joined=True).split("\n")[3:6] == [
        "rep1-10: 0.0-0.5-1.0-1.5-2.0-2.5-3.0-3.5-4.0-4.5-5.0s",
        "rep11: 5.0-5.5s",
        "rep12: 6.0-6.5s",
    ]


@pytest.mark.parametrize(("num_cycles", "num_lines"), [(JOIN_ABOVE, 20), (JOIN_ABOVE + 1, 3)])
def test_long_lists_are_grouped_by_default(num_cycles: int, num_lines: int) -> None:
    cycles = tuple((float(i), i + 1.0) for i in range(num_cycles))
    text = render(Response("a man rows", "pull", cycles, "even", num_cycles, num_cycles))
    assert sum(line.startswith("rep") for line in text.split("\n")) == num_lines


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"observation": ""}, "observation"),
        ({"observation": " a"}, "observation"),
        ({"observation": "a\n rep1: soon"}, "observation"),
        ({"observation": "Total: 3"}, "observation"),
        ({"definition": "a\nb"}, "definition"),
        ({"definition": "see <answer>"}, "definition"),
        ({"observation": "<|0|>"}, "observation"),
        ({"definition": "once<|im_end|>"}, "definition"),
        ({"check": "</think>"}, "check"),
        ({"check": ""}, "check"),
        ({"total": -1}, "total"),
        ({"total": True}, "total"),
        ({"answer": MAX_COUNT + 1}, "answer"),
        ({"answer": 2.0}, "answer"),
        ({"cycles": ((0.0, 0.0),)}, "cycles"),
        ({"cycles": ((1.0, 0.5),)}, "cycles"),
        ({"cycles": ((0.0, 1.0), (0.9, 2.0))}, "cycles"),
        ({"cycles": ((0.0, 0.25),)}, "cycles"),
        ({"cycles": ((-0.0, 1.0),)}, "cycles"),
        ({"cycles": ((0.0, float("nan")),)}, "cycles"),
        ({"cycles": ((0.0, float("inf")),)}, "cycles"),
        ({"cycles": ((0.0, 1e5),)}, "cycles"),
        ({"cycles": tuple((float(i), i + 1.0) for i in range(MAX_CYCLES + 1))}, "cycles"),
    ],
)
def test_what_cannot_be_written_is_refused(change: dict[str, Any], field: str) -> None:
    values = {name: getattr(SQUATS, name) for name in SQUATS.__dataclass_fields__} | change
    with pytest.raises(ValueError, match=field):
        Response(**values)


def test_unknown_dialect_is_refused() -> None:
    with pytest.raises(ValueError, match="reason"):
        render(SQUATS, dialect="reason")
    with pytest.raises(ValueError, match="reason"):
        parse("", dialect="reason")


def test_round_cycles() -> None:
    assert round_cycles(((0.04, 0.96), (0.96, 2.0))) == ((0.0, 1.0), (1.0, 2.0))
    noisy = ((-1e-9, 1.2500001), (1.25, 2.0))  # the ends differ by float noise and round apart
    assert round_cycles(noisy) == ((0.0, 1.3), (1.3, 2.0))
    with pytest.raises(ValueError, match=r"cycles\[0\]"):
        round_cycles(((1.01, 1.04),))


# --- round trip


@st.composite
def responses(draw: st.DrawFn) -> Response:
    def is_writable(field: str) -> bool:
        return not any(text in field for text in ("think", "answer", "<|"))

    line = (
        st.text(st.characters(exclude_characters="\n"), min_size=1)
        .map(str.strip)
        .filter(bool)
        .filter(is_writable)
    )
    keyword = ("rep", "Check:", "Total:", "One repetition:")
    prose = st.lists(line.filter(lambda x: not x.startswith(keyword)), min_size=1, max_size=4)
    steps = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 99)), max_size=45))
    cycles, at = [], 0
    for gap, length in steps:
        start = at + gap * draw(st.booleans())
        at = start + length
        cycles.append((start / 10, at / 10))
    count = st.integers(0, MAX_COUNT)
    return Response(
        observation="\n".join(draw(prose)),
        definition=draw(line),
        cycles=tuple(cycles),
        check=draw(line),
        total=draw(count),
        answer=draw(count),
    )


@settings(max_examples=300)
@given(
    response=responses(),
    dialect=st.sampled_from(["think", "thinking"]),
    joined=st.sampled_from([None, True, False]),
)
def test_what_is_written_reads_back_the_same(
    response_of: ResponseOf, response: Response, dialect: str, joined: bool | None
) -> None:
    parsed = parse(render(response, dialect=dialect, joined=joined))
    assert parsed.problems == ()
    assert parsed.dialect == dialect
    assert response_of(parsed) == response


@settings(max_examples=300)
@given(text=st.text())
def test_any_text_has_a_result(response_of: ResponseOf, text: str) -> None:
    parsed = parse(text)
    assert parsed.is_well_formed is False or response_of(parsed)
    assert (parsed.count is None) == (parsed.answer_problem is not None)
    assert all(0 <= p.start <= p.end <= len(text) for p in parsed.problems)


# --- reading


def test_fields_of_a_well_formed_answer() -> None:
    parsed = parse(SQUATS_TEXT)
    assert parsed.observation == "A person squats."
    assert parsed.definition == "down and up"
    assert parsed.cycles == ((0.5, 1.2), (1.2, 2.0))
    assert parsed.check == "evenly spaced"
    assert (parsed.total, parsed.count, parsed.answer_text) == (2, 2, "2")
    assert parsed.sections == {"observation", "definition", "cycles", "check", "total", "answer"}
    assert parsed.is_well_formed


def test_a_demanded_dialect_refuses_the_other() -> None:
    assert parse(SQUATS_TEXT, dialect="think").is_well_formed
    other = parse(SQUATS_TEXT, dialect="thinking")
    assert other.dialect is None
    assert Problem("wrong_dialect", 0, 7) in other.problems
    assert other.observation is None
    assert other.count == 2


@pytest.mark.parametrize(
    ("old", "new", "code", "at"),
    [
        ("rep1: 0.5-1.2s", "rep1: 0.5 to 1.2s", "bad_cycle", "rep1: 0.5 to"),
        ("rep1: 0.5-1.2s", "rep1: 0.5-1.2", "bad_cycle", "rep1"),
        ("rep1: 0.5-1.2s", "rep1-3: 0.5-1.2s", "bad_cycle", "rep1"),
        ("rep1: 0.5-1.2s", "rep1: 0.5s", "bad_cycle", "rep1"),
        ("rep2:", "rep3:", "cycle_number", "rep3"),
        ("1.2-2.0s", "1.2-1.2s", "empty_cycle", "rep2"),
        ("1.2-2.0s", "1.1-2.0s", "cycle_overlap", "rep2"),
        ("1.2-2.0s", "1.25-2.0s", "time_precision", "rep2"),
        ("1.2-2.0s", "1.2-2s", "time_precision", "rep2"),
        ("Total: 2", "Total: 2\nSo two.", "stray_text", "So two."),
        ("Total: 2", "Total: 2\nTotal: 3", "repeated_section", "Total: 3"),
        ("Check: evenly spaced\n", "Check:\n", "empty_check", "Check:"),
        ("Total: 2", "Total: 2.5", "total_decimal", "Total"),
        ("Total: 2", "Total: 2\nCheck: again", "section_order", "Check: again"),
        ("</think>\n", "</think>\nSo ", "text_outside", "So"),
        ("</think>\n", "", "unclosed_think", "<think>"),
        ("</think>", "</think></think>", "repeated_think", "</think>\n<a"),
        ("<answer>2", "<answer>-2", "answer_negative", "-2<"),
        ("</answer>", "", "answer_unclosed", "<answer>"),
        ("<answer>2", "2", "answer_unopened", "</answer>"),
        ("</answer>", "</answer><answer>3</answer>", "answer_several", "<answer>3"),
        ("evenly", "evenly <|im_start|>", "special_token", "<|im_start|>"),
        ("Total: 2\n</think>", "</think>\n", "", ""),
    ],
)
def test_problems_are_named_with_their_place(old: str, new: str, code: str, at: str) -> None:
    text = SQUATS_TEXT.replace(old, new)
    parsed = parse(text)
    assert not parsed.is_well_formed
    assert (
        parsed.problems if code else parsed.sections == REQUIRED_SECTIONS - {"total"} | {"cycles"}
    )
    if code:
        [problem] = [p for p in parsed.problems if p.code == code]
        assert text[problem.start : problem.end].startswith(at[: problem.end - problem.start])
        assert text.startswith(at, problem.start)


@pytest.mark.parametrize(
    ("text", "count", "problem"),
    [
        ("", None, "missing"),
        ("12", None, "missing"),
        ("<answer>12</answer>", 12, None),
        ("<answer>\n 12 \n</answer>", 12, None),
        ("<answer>3</answer><answer>3</answer>", None, "several"),
        ("<answer>3</answer> or <answer>4</answer>", None, "several"),
        ("<answer><answer>3</answer></answer>", None, "several"),
        ("<answer>3", None, "unclosed"),
        ("3</answer>", None, "unopened"),
        ("</answer>3<answer>", None, "unclosed"),
        ("<think>a <answer>3</answer> b</think>", None, "nested"),
        ("<answer><think>a</think>3</answer>", None, "nested"),
        ("<think>a<answer>3</answer>", 3, None),
        ("<answer>3</answer><think>a</think>", 3, None),
        ("<answer></answer>", None, "empty"),
        ("<ANSWER>3</ANSWER>", None, "missing"),
    ],
)
def test_structure_of_the_answer_tag(text: str, count: int | None, problem: str | None) -> None:
    parsed = parse(text)
    assert (parsed.count, parsed.answer_problem) == (count, problem)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("7", 7),
        ("007", 7),
        ("999999", 999_999),
        ("0" * 10_000 + "7", 7),
        ("１２", 12),
        ("zero", 0),
        ("Seven", 7),
        ("twenty-one", 21),
        ("TWENTY ONE", 21),
        ("one hundred", 100),
        ("one hundred and five", 105),
        ("three hundred forty-two", 342),
        ("two thousand", 2_000),
        ("twelve thousand and three", 12_003),
    ],
)
def test_integers_that_are_read(text: str, value: int) -> None:
    assert read_integer(text) == (value, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("3.5", "decimal"),
        ("3,5", "decimal"),
        (".5", "decimal"),
        ("-5", "negative"),
        ("−5", "negative"),
        ("minus five", "negative"),
        ("12 to 15", "range"),
        ("12-15", "range"),
        ("12–15", "range"),
        ("twelve or thirteen", "range"),
        ("about 12", "approximate"),
        ("approximately twelve", "approximate"),
        ("~12", "approximate"),
        ("at least 3", "approximate"),
        ("1000000", "too_large"),
        ("9" * 10_000, "too_large"),
        ("²", "not_integer"),
        ("2²", "not_integer"),
        ("٣", "not_integer"),
        ("Ⅻ", "not_integer"),
        ("①", "not_integer"),
        ("10 reps", "not_integer"),
        ("+5", "not_integer"),
        ("1e3", "not_integer"),
        ("0x10", "not_integer"),
        ("1_000", "not_integer"),
        ("5.", "not_integer"),
        ("twenty-eleven", "range"),
        ("one two", "not_integer"),
        ("thousand", "not_integer"),
        ("a" * 10_000, "not_integer"),
        ("squat", "not_integer"),
    ],
)
def test_what_is_not_an_integer_is_named(text: str, problem: str) -> None:
    assert read_integer(text) == (None, problem)
    assert parse(f"<answer>{text}</answer>").answer_problem == problem


def test_partial_answers_keep_what_is_there() -> None:
    truncated = parse(SQUATS_TEXT[: SQUATS_TEXT.index("Check")])
    assert truncated.cycles == SQUATS.cycles
    assert truncated.sections == {"observation", "definition", "cycles"}
    assert [p.code for p in truncated.problems] == ["unclosed_think", "answer_missing"]


def test_limits_are_reported() -> None:
    lines = "".join(f"rep{i}: {i}.0-{i}.5s\n" for i in range(1, MAX_CYCLES + 3))
    parsed = parse(f"<think>\n{lines}</think>")
    assert len(parsed.cycles) == MAX_CYCLES
    assert "too_many_cycles" in codes(f"<think>\n{lines}</think>")
    assert "too_many_lines" in codes("<think>" + "\n" * 10_000 + "</think>")
    assert "too_many_cycles" in codes("<think>\nrep1-9999: 0.1" + "-0.2" * 9_999 + "s</think>")


# --- linear time

ADVERSARIAL = {
    "open brackets": "<",
    "half tags": "</thinking",
    "tags": "<think>",
    "answers": "<answer>",
    "cycles": "rep1: 0.0-0.1s\n",
    "bounds": "-1.2",
    "line breaks": "\n",
    "spaces": " ",
    "definitions": "One repetition: x\n",
    "totals": "Total: 9\n",
    "digits": "9",
    "words": "twenty-one ",
}


@pytest.mark.parametrize("unit", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
@pytest.mark.parametrize("frame", ["{}", "<think>\n{}\n</think>\n<answer>3</answer>", "<answer>{}"])
def test_a_megabyte_costs_no_more_than_a_few_readings(unit: str, frame: str) -> None:
    """CPU time against that of looking at every character once (about 13 ms a megabyte)."""
    text = frame.format((unit * (1_000_000 // len(unit) + 1))[:1_000_000])

    def reading() -> int:
        return sum(1 for character in text if character in string.digits)

    def seconds(job: object) -> float:
        started = time.process_time()
        job()  # type: ignore[operator]
        return time.process_time() - started

    ratios = []
    for _ in range(5):
        ratios.append(seconds(lambda: parse(text)) / seconds(reading))
        if ratios[-1] < 2.0:
            break
    assert min(ratios) < 2.0

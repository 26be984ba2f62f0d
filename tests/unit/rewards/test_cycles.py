"""Cycle rewards, with hand-computed matchings."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.cycles import (
    best_matching,
    consistency,
    cycle_f1,
    cycle_tiou,
    matched_tiou,
    valid_cycles,
)
from rewards.grammar.layout import Cycle
from rewards.grammar.read import ParsedResponse, parse
from rewards.reference import Reference, usable_cycles

MARKS = ((1.0, 2.0), (2.0, 3.0), (4.0, 6.0))
REFERENCE = Reference(count=3, cycles=MARKS, duration_s=8.0)


def answer(*cycles: Cycle, total: int | None = None, count: int | None = None) -> ParsedResponse:
    lines = "".join(f"rep{i}: {a:.1f}-{b:.1f}s\n" for i, (a, b) in enumerate(cycles, start=1))
    total = len(cycles) if total is None else total
    count = total if count is None else count
    return parse(f"<think>\n{lines}Total: {total}\n</think>\n<answer>{count}</answer>")


@pytest.mark.parametrize(
    ("cycles", "f1", "tiou"),
    [
        (MARKS, 1.0, 1.0),
        # tolerance 0.4 of the cycle: 0.4 s for the first two, 0.8 s for the third
        (((1.4, 2.0), (2.0, 3.0), (4.0, 6.0)), 1.0, (0.6 + 1 + 1) / 3),
        (((1.5, 2.0), (2.0, 3.0), (4.0, 6.0)), 2 / 3, (0.5 + 1 + 1) / 3),
        (((1.0, 2.0), (2.0, 3.0), (4.8, 6.8)), 1.0, (1 + 1 + 1.2 / 2.8) / 3),
        (((1.0, 2.0), (2.0, 3.0), (4.9, 6.9)), 2 / 3, (1 + 1 + 1.1 / 2.9) / 3),
        # one too few, one too many
        (((1.0, 2.0), (2.0, 3.0)), 2 * 2 / 5, 2 / 3),
        ((*MARKS, (6.0, 7.0)), 2 * 3 / 7, 3 / 4),
        # merged: the union is the same and only the third is a repetition
        (((1.0, 3.0), (4.0, 6.0)), 2 * 1 / 5, (0.5 + 1.0) / 3),
        # one interval over the whole clip
        (((0.0, 8.0),), 0.0, (2 / 8) / 3),
        # nothing near
        (((7.0, 7.2),), 0.0, 0.0),
        # empty intervals match nothing and count as listed
        (((0.0, 0.0), (0.0, 0.0), (0.0, 0.0)), 0.0, 0.0),
        # out of order: the third starts before the second ends
        (((1.0, 2.0), (4.0, 6.0), (2.0, 3.0)), 2 * 2 / 6, 2 / 3),
        # the same repetition twice
        (((1.0, 2.0), (1.0, 2.0), (2.0, 3.0)), 2 * 2 / 6, 2 / 3),
        # backwards
        (((2.0, 1.0), (2.0, 3.0), (4.0, 6.0)), 2 * 2 / 6, 2 / 3),
        # outside the clip of 8 s
        (((1.0, 2.0), (2.0, 3.0), (4.0, 8.2)), 2 * 2 / 6, 2 / 3),
        ((), 0.0, 0.0),
    ],
)
def test_hand_computed(cycles: tuple[Cycle, ...], f1: float, tiou: float) -> None:
    response = answer(*cycles)
    assert cycle_f1(response, REFERENCE) == pytest.approx(f1)
    assert cycle_tiou(response, REFERENCE) == pytest.approx(tiou)


def test_tolerance_scales_with_the_cycle_down_to_the_resolution() -> None:
    reference = Reference(count=1, cycles=((1.0, 1.2),))
    assert cycle_f1(answer((1.1, 1.3)), reference) == 1.0  # 0.1 s, though 0.4 * 0.2 s is less
    assert cycle_f1(answer((1.2, 1.4)), reference) == 0.0
    assert cycle_f1(answer((1.2, 1.4)), Reference(count=1, cycles=((1.0, 2.0),))) == 0.0
    assert cycle_f1(answer((1.2, 2.2)), Reference(count=1, cycles=((1.0, 2.0),))) == 1.0
    strict = cycle_f1(answer((1.2, 2.2)), Reference(count=1, cycles=((1.0, 2.0),)), tolerance=0.1)
    assert strict == 0.0
    with pytest.raises(ValueError, match="tolerance"):
        cycle_f1(answer((1.2, 2.2)), reference, tolerance=0.0)


@pytest.mark.parametrize("cycles", [None, ()])
def test_not_applicable_without_marks(cycles: tuple[Cycle, ...] | None) -> None:
    reference = Reference(count=0, cycles=cycles)
    assert cycle_f1(answer((1.0, 2.0)), reference) is None
    assert cycle_tiou(answer((1.0, 2.0)), reference) is None


def test_a_contradicted_list_is_evidence_for_nothing() -> None:
    for response in (answer(*MARKS, count=4), answer(*MARKS, total=4, count=3)):
        assert cycle_f1(response, REFERENCE) == 0.0
        assert cycle_tiou(response, REFERENCE) == 0.0
        assert cycle_f1(response, REFERENCE, require_consistent=False) == 1.0
        assert cycle_tiou(response, REFERENCE, require_consistent=False) == 1.0
        assert consistency(response, REFERENCE) == 0.0


def test_consistency() -> None:
    assert consistency(answer(*MARKS), REFERENCE) == 1.0
    assert consistency(answer((0.0, 0.0), (0.0, 0.0)), REFERENCE) == 0.0  # no valid cycle
    assert consistency(answer(), REFERENCE) == 1.0  # none listed, 0 answered
    assert consistency(answer(total=3), REFERENCE) == 0.0
    assert consistency(answer(total=3), Reference(count=3)) == 1.0  # no marks: no list needed
    assert consistency(parse("<answer>3</answer>"), Reference(count=3)) == 0.0  # no total


def test_valid_cycles_end_with_the_clip() -> None:
    cycles = ((0.0, 1.0), (1.0, 2.1), (2.1, 3.0))
    assert valid_cycles(cycles, Reference(duration_s=2.0)) == cycles[:2]
    assert valid_cycles(cycles, Reference(duration_s=1.9)) == cycles[:1]
    assert valid_cycles(cycles, Reference()) == cycles
    marked = Reference(duration_s=1.9, cycles=((0.0, 3.0),))  # marks may end a frame after the clip
    assert valid_cycles(cycles, marked) == cycles


def brute_force(values: np.ndarray) -> float:
    rows, columns = values.shape
    best = 0.0
    for k in range(1, min(rows, columns) + 1):
        for r in itertools.combinations(range(rows), k):
            for c in itertools.combinations(range(columns), k):
                best = max(best, float(sum(values[i, j] for i, j in zip(r, c, strict=True))))
    return best


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5))
def test_matching_is_optimal(seed: int, rows: int, columns: int) -> None:
    values = np.random.default_rng(seed).random((rows, columns))
    assert best_matching(values) == pytest.approx(brute_force(values))
    assert best_matching(np.round(values)) == brute_force(np.round(values))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"count": -1}, "count=-1"),
        ({"count": 2.0}, r"count=2\.0"),
        ({"count": True}, "count=True"),
        ({"duration_s": 0.0}, "duration_s"),
        ({"duration_s": float("nan")}, "duration_s"),
        ({"label": " "}, "label"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"cycles": ((1.0, 1.0),)}, r"cycles\[0\]"),
        ({"cycles": ((-1.0, 1.0),)}, r"cycles\[0\]"),
        ({"cycles": ((0.0, float("nan")),)}, r"cycles\[0\]"),
        ({"cycles": ((0.0, 2.0), (1.0, 3.0))}, r"cycles\[1\]"),
        ({"cycles": ((0.0, 2.0),), "count": 2}, "1 entries and count=2"),
    ],
)
def test_bad_reference_is_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Reference(**values)


def test_usable_cycles_says_why_not() -> None:
    assert usable_cycles(3, MARKS) == (MARKS, None)
    assert usable_cycles(3, None) == (None, "no marks")
    assert usable_cycles(4, MARKS) == (None, "3 marks for a count of 4")
    cycles, reason = usable_cycles(1, ((899.0, 899.0),))
    assert cycles is None
    assert reason is not None
    assert "start < end" in reason


# --- what each listed repetition is worth


@pytest.mark.parametrize(
    ("cycles", "each"),
    [
        (MARKS, [1, 1, 1]),
        (((1.4, 2.0), (2.0, 3.0), (7.0, 7.5)), [0.6, 1, 0]),
        # merged: half of it is the first or the second, and one of them is left over
        (((1.0, 3.0), (4.0, 6.0)), [0.5, 1]),
        # the same twice: the second one starts before the first ends, and is nothing
        (((1.0, 2.0), (1.0, 2.0), (2.0, 3.0)), [1, 0, 1]),
        # the 2nd listed is nearer to the 1st mark than the 1st listed: 1/10 + 1 against 9/10
        (((0.0, 1.1), (1.1, 2.0)), [0, 0.9]),
        ((), []),
    ],
)
def test_each_listed_repetition_by_hand(cycles: tuple[Cycle, ...], each: list[float]) -> None:
    found = matched_tiou(answer(*cycles), REFERENCE)
    assert found is not None
    assert found.tolist() == pytest.approx(each)


def test_without_marks_no_repetition_is_worth_anything() -> None:
    assert matched_tiou(answer((1.0, 2.0)), Reference(count=1)) is None


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=7),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=7),
)
def test_their_sum_is_that_of_the_best_matching(
    listed: list[tuple[int, int]], gaps: list[tuple[int, int]]
) -> None:
    marks, at = [], 0
    for pause, length in gaps:
        marks.append(((at + pause) / 10, (at + pause + length) / 10))
        at += pause + length
    reference = Reference(count=len(marks), cycles=tuple(marks), duration_s=9.0)
    response = answer(*((start / 10, (start + length) / 10) for start, length in listed))
    found, tiou = matched_tiou(response, reference), cycle_tiou(response, reference)
    assert found is not None
    assert tiou is not None
    assert found.sum() / max(len(listed), len(marks)) == pytest.approx(tiou, abs=1e-9)

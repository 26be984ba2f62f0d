"""Stretches of repetitions: where they are, what a model says of each, how they are named."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from actrep_ray.counting.long_video import Span, add_windows
from actrep_ray.counting.panel import describe
from actrep_ray.counting.record import VideoCount
from actrep_ray.counting.segments import named_by_action, named_by_sight, plan_segments
from actrep_ray.counting.votes import vote
from actrep_ray.evaluation.predictions import prediction_of_text
from tests.unit.test_long_video import TASK, in_a_row, source

CYCLES = [*in_a_row(0.5, 1, 4), *in_a_row(10, 1, 6), *in_a_row(20, 1, 9)]
SPANS = [Span(0.0, 5.5, 0.0, 5.5), Span(9.0, 17.0, 9.0, 17.0), Span(19.0, 30.0, 19.0, 30.0)]


def test_each_stretch_is_shown_alone_with_a_second_around_it() -> None:
    # Before 0.5 s there is half a second, behind 29 s one to the end.
    assert plan_segments(CYCLES, 30.0, 16.0) == SPANS
    near = [*in_a_row(1, 1, 2), *in_a_row(6.2, 1, 2)]  # 3.2 s between: 1 s on either side
    assert [one.end_s for one in plan_segments(near, 20.0, 16.0)] == [4.0, 9.2]
    assert plan_segments([], 30.0, 16.0) == []


def test_a_long_stretch_is_shown_in_windows() -> None:
    spans = plan_segments(in_a_row(10, 1, 20), 60.0, 16.0)
    assert spans[0].start_s == 9.0
    assert spans[-1].end_s == 31.0
    assert len(spans) == 2
    assert spans[0].end_s == spans[1].start_s == 25.0  # the last repetition that ends before 25


def said(sight: str, number: int, start_s: float = 0.5) -> str:
    times = in_a_row(start_s, 1, number)
    lines = [f"rep{i}: {a:.1f}-{b:.1f}s" for i, (a, b) in enumerate(times, start=1)]
    return (
        f"<think>\n{sight}\nOne repetition: there and back\n" + "".join(f"{x}\n" for x in lines)
        + f"Check: in order\nTotal: {number}\n</think>\n<answer>{number}</answer>"
    )  # fmt: skip


def counted(texts: Sequence[Sequence[str]], action: str = "unknown") -> VideoCount:
    votes = [vote([prediction_of_text("a", one, TASK) for one in some], TASK) for some in texts]
    return replace(add_windows(source(30.0), SPANS, votes), model=Path("m"), action=action)


def test_a_stretch_is_named_by_what_is_seen_there() -> None:
    texts = [
        [said("A person squats.", 4)],
        [said("A ball bounces.\nIt is red.", 6)],
        ["<answer>9</answer>"],
    ]
    found = named_by_sight(counted(texts))
    assert [window.name for window in found.windows] == [
        "A person squats", "A ball bounces", "unnamed",
    ]  # fmt: skip
    assert found.count == 19
    record = json.loads(json.dumps(found.to_json()))
    assert record["segments"][1] == {
        "start_s": 9.0, "end_s": 17.0, "count": 6, "name": "A ball bounces",
    }  # fmt: skip
    unread = named_by_sight(counted([texts[0], texts[1], ["I cannot tell."]])).to_json()
    assert unread["segments"][2]["count"] is None
    told = describe(found)
    assert "segment    9.0 s  to   17.0 s: A ball bounces, 6 repetitions (consistent" in told
    assert "in all: A person squats 4, A ball bounces 6, unnamed 9" in told


def test_of_several_actions_the_surest_names_a_stretch() -> None:
    four, five, none = said("Moves.", 4), said("Moves.", 5), said("Rests.", 0)
    squat = counted([[four] * 3, [four, five, none], [none] * 3], "squat")
    lunge = counted([[four, five, none], [five] * 3, [none] * 3], "lunge")
    found = named_by_action([squat, lunge])
    assert [(window.name, window.count) for window in found.windows] == [
        ("squat", 4), ("lunge", 5), ("unnamed", 0),
    ]  # fmt: skip
    assert found.count == 9
    assert found.reason == ("1 of 3 windows, the first at 19.0 s: none of them is repeated")
    assert "in all: squat 4, lunge 5, unnamed 0" in describe(found)


def test_actions_that_are_equally_sure_are_a_doubt() -> None:
    once = [[said("Moves.", 4)]] * 3
    found = named_by_action([counted(once, "squat"), counted(once, "lunge")])
    assert {window.name for window in found.windows} == {"squat or lunge"}
    assert not found.is_sure
    assert "squat and lunge are equally sure" in found.reason


@pytest.mark.parametrize("sight", ["x" * 200, "<script>\x1b[2J"])
def test_a_name_is_one_short_line(sight: str) -> None:
    found = named_by_sight(counted([[said(sight, 4)]] * 3))
    assert all(0 < len(window.name) <= 60 for window in found.windows)

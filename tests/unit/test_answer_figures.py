"""pass@k, majority and the rest against hand-computed numbers, enumeration and their bounds."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actrep_ray.evaluation.answer_figures import (
    Answers,
    answer_figures,
    answers_of,
    blind_by_prompt,
    figures_by_prompt,
    majority,
    pass_at_k,
    pass_curve,
    reading_rows,
)
from actrep_ray.records import Prompt, Reading, RolloutGroup
from actrep_ray.tasks.loading import load_task
from data_prep.video import FramePlan
from rewards.reference import Reference


def answers(truth: Reading, *readings: Reading | None) -> Answers:
    return Answers(readings, np.array([reading == truth for reading in readings]), truth)


readings_of_prompts = st.integers(1, 6).flatmap(
    lambda k: st.lists(
        st.tuples(
            st.integers(0, 4), st.lists(st.none() | st.integers(0, 4), min_size=k, max_size=k)
        ),
        min_size=1,
        max_size=6,
    )
)


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)  # 3 of 10 pairs hold no right one
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(4, 1, 4) == 1.0
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    # C(1000, 500) has 300 digits
    assert pass_at_k(2000, 1000, 1000) == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_of_what_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {c} right answers in {n}"):
        pass_at_k(n, c, k)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(sizes: tuple[int, int]) -> None:
    n, c = sizes
    shares = []
    for k in range(1, n + 1):
        draws = list(combinations([True] * c + [False] * (n - c), k))
        shares.append(pass_at_k(n, c, k))
        assert shares[-1] == pytest.approx(np.mean([any(draw) for draw in draws]))
    assert shares == sorted(shares)


def test_majority_by_hand() -> None:
    assert majority(answers(3, 3, 3, 5)) == 1.0
    assert majority(answers(3, 3, 5, 5)) == 0.0
    assert majority(answers(3, 3, 3, 5, 5, 7)) == 0.5  # a tie of two is a coin's
    assert majority(answers(4, None, None, None, 4)) == 1.0  # what cannot be read has no vote
    assert majority(answers(4, None, None)) == 0.0


def test_figures_of_two_prompts_by_hand() -> None:
    asked = [answers(3, 3, 5, None, 3), answers(1, 2, 2, 1, 0)]
    assert answer_figures(asked, 2) == pytest.approx(
        {
            "pass_at_1": (2 / 4 + 1 / 4) / 2,
            "pass_at_k": ((1 - 1 / 6) + (1 - 3 / 6)) / 2,
            "majority": (1 + 0) / 2,
            "parse_rate": (3 / 4 + 1) / 2,
        }
    )
    assert pass_curve(asked) == pytest.approx({1: 0.375, 2: 2 / 3, 4: 1.0})
    assert list(pass_curve([answers(1, *[1] * 6)])) == [1, 2, 4, 6]
    assert answer_figures([], 2) == {}


def test_blind_answers_by_hand() -> None:
    asked = [answers(3, 3, 3), answers(2, 3, 2), answers(9, 3, None)]
    # The 4 answers of the others: 3 twice; 2 never; 9 never.
    assert blind_by_prompt(asked).tolist() == [0.5, 0.0, 0.0]
    assert np.isnan(blind_by_prompt(asked[:1])).all()


def test_answers_that_never_look_are_no_better_than_blind_ones() -> None:
    asked = [answers(truth, 4, 4) for truth in (4, 4, 4, 4, 2, 7, 1, 3)]
    assert answer_figures(asked, 1)["pass_at_1"] == 0.5
    assert blind_by_prompt(asked).mean() == 0.5


def test_a_count_that_is_never_answered_shows() -> None:
    asked = [answers(3, 3, 5), answers(11, 5, None), answers(3, 3, 3)]
    rows = reading_rows(asked)
    told = [(row.reading, row.num_prompts, row.num_answers, row.num_right) for row in rows]
    assert told == [(3, 2, 3, 3), (5, 0, 2, 0), (11, 1, 0, 0)]
    assert [row.reading for row in rows if row.is_never_answered] == [11]
    words = reading_rows([answers("run", "sit", "run")])
    assert [row.reading for row in words] == ["run", "sit"]


def test_a_group_whose_scoring_failed_is_left_out() -> None:
    asked = Prompt("p", "clip", "How many?", FramePlan("a.mp4", 1, (0, 1), 4.0, 32, 32), "1-5")
    labels, task = {"clip": Reference(4, None, 5.0, "squat")}, load_task("counting")
    claims = (
        {"answer": 4, "total": 4, "list": 4},
        {"answer": 5, "total": 5, "list": 4},
        {"answer": None, "total": 4, "list": 4},
    )
    whole = RolloutGroup(asked, (), 3, readings=(4, 5, None), claims=claims)
    failed = RolloutGroup(asked, (), 3, failure="reward_raised")
    (found,) = answers_of([whole, failed], labels, task)
    assert found.is_consistent is not None
    assert found.is_consistent.tolist() == [True, False, False]
    assert found.readings == (4, 5, None)
    assert found.is_right.tolist() == [True, False, False]
    assert found.truth == 4


def test_each_group_has_its_own_consistent_answers() -> None:
    plan = FramePlan("a.mp4", 1, (0, 1), 4.0, 32, 32)
    labels = {name: Reference(4, None, 5.0, "squat") for name in "ab"}
    agree, differ = ({"answer": 2, "total": 2, "list": n} for n in (2, 3))
    groups = [
        RolloutGroup(Prompt("1", "a", "?", plan), (), 3, readings=(2, 2), claims=(agree, differ)),
        RolloutGroup(Prompt("2", "b", "?", plan), (), 3, readings=(2, 2), claims=(agree, agree)),
    ]
    asked, task = answers_of(groups, labels, load_task("counting")), load_task("counting")
    assert figures_by_prompt(asked, 1)["consistent"].tolist() == [0.5, 1.0]
    assert answer_figures(asked, 1)["consistent"] == 0.75
    bare = [
        replace(group, claims=({"answer": 2, "total": None, "list": None},) * 2) for group in groups
    ]
    assert "consistent" not in answer_figures(answers_of(bare, labels, task), 1)


@given(readings_of_prompts)
def test_bounds_of_all_figures(prompts: list[tuple[int, list[int | None]]]) -> None:
    asked = [answers(truth, *readings) for truth, readings in prompts]
    most = len(prompts[0][1])
    for k in range(1, most + 1):
        columns = figures_by_prompt(asked, k)
        assert all(((column >= 0) & (column <= 1)).all() for column in columns.values())
        assert (columns["pass_at_1"] <= columns["pass_at_k"] + 1e-12).all()
        assert (columns["pass_at_1"] <= columns["parse_rate"] + 1e-12).all()
    of_all = figures_by_prompt(asked, most)  # some answer is right where all of them are drawn
    assert (of_all["majority"] <= of_all["pass_at_k"]).all()
    more_than_half = of_all["pass_at_1"] > 0.5
    assert (of_all["majority"][more_than_half] == 1).all()
    rows = reading_rows(asked)
    assert sum(row.num_prompts for row in rows) == len(asked)
    assert sum(row.num_right for row in rows) == sum(one.num_right for one in asked)
    assert all(row.num_right <= row.num_answers for row in rows)
    if len(asked) > 1:
        assert ((blind_by_prompt(asked) >= 0) & (blind_by_prompt(asked) <= 1)).all()

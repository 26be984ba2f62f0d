"""Composition: weights, skipped parts, penalties, user rewards and their contract."""

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.catalogue import PENALTIES, REWARDS, load_reward
from rewards.check import check_reward
from rewards.compose import DEFAULT_SPEC, RewardSpec, Score, group_rewards, score
from rewards.contract import Part, RewardError
from rewards.grammar.read import ParsedResponse
from rewards.grammar.write import Response, render, round_cycles
from rewards.reference import Reference

CYCLES = ((0.5, 1.2), (1.2, 2.0))
MARKED = Reference(count=2, cycles=CYCLES, duration_s=2.5)
RIGHT = render(Response("A person squats.", "down and up", CYCLES, "evenly spaced", 2, 2))


# --- users' rewards, loaded by dotted name


def brevity(response: ParsedResponse, reference: Reference, *, limit: int = 100) -> float:
    return min(1.0, limit / max(1, len(response.text)))


def silence(response: ParsedResponse, reference: Reference) -> float | None:
    return None if response.text else 1.0


def shouting(response: ParsedResponse, reference: Reference) -> float:
    return -1.0 if response.text.isupper() else 0.0


def raises(response: ParsedResponse, reference: Reference) -> float:
    return 1.0 / len(response.cycles)


def gives_nan(response: ParsedResponse, reference: Reference) -> float:
    return float("nan")


def gives_text(response: ParsedResponse, reference: Reference) -> str:
    return "1.0"


def gives_two(response: ParsedResponse, reference: Reference) -> float:
    return 2.0


def takes_one(response: ParsedResponse) -> float:
    return 1.0


class Counter:
    calls = 0


def forgets(response: ParsedResponse, reference: Reference) -> float:
    Counter.calls += 1
    return 1.0 / Counter.calls


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests are not a package: let `user_rewards:name` find the functions above."""
    import sys

    monkeypatch.setitem(sys.modules, "user_rewards", sys.modules[__name__])


# --- totals


def test_a_right_answer_earns_everything() -> None:
    assert score(RIGHT, MARKED) == Score(1.0, {"obo": 1.0, "cycles": 1.0, "format": 1.0})


@given(
    st.lists(st.tuples(st.floats(-1e-7, 3.0), st.floats(0.11, 5.0)), max_size=60),
    st.booleans(),
    st.sampled_from(["think", "thinking"]),
)
def test_the_rendered_labels_earn_everything(
    steps: list[tuple[float, float]], has_gaps: bool, dialect: str
) -> None:
    cycles: list[tuple[float, float]] = []
    at = 0.0
    for gap, length in steps:
        start = at + gap * (has_gaps or not cycles)
        cycles.append((start, start + length))
        at = start + length
    reference = Reference(count=len(steps), cycles=tuple(cycles), duration_s=at + 0.01)
    written = round_cycles(tuple(cycles))
    response = Response("A man rows.", "one pull", written, "even", len(steps), len(steps))
    assert score(render(response, dialect=dialect), reference).total == 1.0


def test_total_is_the_weighted_mean() -> None:
    # Answer 1, one of two cycles listed: obo 0.95 exp(-1.5) = 0.211974, F1 2/3, format 1.
    text = render(Response("A person squats.", "down and up", CYCLES[:1], "even", 1, 1))
    result = score(text, MARKED)
    assert result.parts == pytest.approx(
        {"obo": 0.211974, "cycles": 2 / 3, "format": 1.0}, abs=1e-6
    )
    assert result.total == pytest.approx(0.5 * 0.211974 + 0.4 * 2 / 3 + 0.1, abs=1e-6)


def test_parts_that_do_not_apply_are_skipped_and_the_rest_re_weighted() -> None:
    text = render(Response("A person squats.", "down and up", (), "evenly spaced", 3, 3))
    result = score(text, Reference(count=2))
    assert result.parts["cycles"] is None
    assert result.total == pytest.approx((0.5 * 0.211974 + 0.1 * 1.0) / 0.6, abs=1e-6)


def test_it_is_an_error_if_nothing_applies() -> None:
    with pytest.raises(RewardError, match="obo"):
        score(RIGHT, Reference(label="squat"), RewardSpec.from_mapping({"obo": 1.0}))


def test_published_variants_are_scaled_by_their_maximum() -> None:
    spec = RewardSpec.from_mapping({"hybrid": 1.0, "think_answer": 0.5})
    assert score("<think>it squats</think><answer>2</answer>", MARKED, spec).total == 1.0
    # 1.384673 / 1.5 at e = 1, g = 10
    assert score("<answer>9</answer>", Reference(count=10), spec).parts == pytest.approx(
        {"hybrid": 0.923115, "think_answer": 0.0}, abs=1e-6
    )


def test_penalties_are_added_and_the_total_is_clamped() -> None:
    spec = RewardSpec.from_mapping({"format": 1.0, "overlong": 0.5})
    reference = Reference(num_tokens=90, max_tokens=100)
    assert score(RIGHT, reference, spec).total == pytest.approx(1.0 - 0.5 * 0.5)
    assert score("", reference, spec) == Score(0.0, {"format": 0.0, "overlong": -0.5})
    assert score(RIGHT, Reference(), spec).total == 1.0


def test_evidence_of_a_count_can_be_chosen() -> None:
    bare = "<answer>2</answer>"
    worked = RewardSpec.from_mapping({"gaussian": {"weight": 1.0, "evidence": "worked"}})
    answer = RewardSpec.from_mapping({"obo": {"weight": 1, "evidence": "answer"}})
    assert score(bare, MARKED, worked).total == 0.0
    assert score(bare, MARKED, answer).total == 1.0


def test_a_demanded_dialect() -> None:
    spec = RewardSpec.from_mapping({"format": 1.0}, dialect="thinking")
    assert score(RIGHT, MARKED, spec).total < 0.5
    assert score(RIGHT.replace("think>", "thinking>"), MARKED, spec).total == 1.0


def test_spec_travels_and_the_default_is_that_of_the_documentation() -> None:
    assert pickle.loads(pickle.dumps(DEFAULT_SPEC)) == DEFAULT_SPEC
    assert DEFAULT_SPEC.parts == (Part("obo", 0.5), Part("cycles", 0.4), Part("format", 0.1))
    assert RewardSpec.from_mapping({"obo": 1, "cycles": 0}).parts == (Part("obo", 1.0),)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ({}, "expected a reward"),
        ({"obo": 0.0}, "expected a reward"),
        ({"overlong": 1.0}, "expected a reward"),
        ({"obo": -1.0}, "obo: weight=-1.0"),
        ({"obo": float("nan")}, "obo: weight=nan"),
        ({"obo": True}, "obo: weight=True"),
        ({"obo": "1"}, "obo: weight='1'"),
        ({"obo": {"tolerance": 0.3}}, "obo: weight=None"),
        ({"oboe": 1.0}, "did you mean 'obo'"),
        ({"cycles": {"weight": 1, "tolerence": 0.3}}, "tolerence"),
        ({"cycles": {"weight": 1, "tolerance": [0.3]}}, "tolerance"),
        ({"obo": {"weight": 1, "penalty": True}}, "penalty=True"),
        ({"obo": 1.0, "no_such_module:score": 1.0}, "no_such_module"),
        ({"obo": 1.0, "json:no_such": 1.0}, "no function 'no_such'"),
    ],
)
def test_bad_compositions_are_refused(weights: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RewardSpec.from_mapping(weights)


def test_bad_combination_and_dialect_are_refused() -> None:
    with pytest.raises(ValueError, match="combine='mean'"):
        RewardSpec.from_mapping({"obo": 1.0}, combine="mean")
    with pytest.raises(ValueError, match="dialect='cot'"):
        RewardSpec.from_mapping({"obo": 1.0}, dialect="cot")


# --- users' rewards


def test_a_user_reward_with_options() -> None:
    spec = RewardSpec.from_mapping({"user_rewards:brevity": {"weight": 1.0, "limit": 50}})
    assert score("x" * 200, MARKED, spec).parts == {"user_rewards:brevity": 0.25}
    penalty: dict[str, Any] = {
        "format": 1.0,
        "user_rewards:shouting": {"weight": 0.25, "penalty": True},
    }
    assert score("A", MARKED, RewardSpec.from_mapping(penalty)).parts["user_rewards:shouting"] == -1
    check_reward("user_rewards:brevity")
    check_reward("user_rewards:shouting", is_penalty=True)
    assert check_reward("user_rewards:silence").num_skipped > 0


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("raises", "raised ZeroDivisionError"),
        ("gives_nan", "returned nan"),
        ("gives_text", "returned '1.0'"),
        ("gives_two", "returned 2.0"),
        ("forgets", "two values"),
    ],
)
def test_a_broken_reward_names_itself(name: str, match: str) -> None:
    with pytest.raises(RewardError, match=f"(?s)user_rewards:{name}.*{match}"):
        check_reward(f"user_rewards:{name}")


def test_a_penalty_has_to_be_declared() -> None:
    with pytest.raises(RewardError, match=r"overlong.* returned -0\.687.*\[0, 1\]"):
        check_reward("overlong", is_penalty=False)


def test_a_wrong_signature_is_found_before_the_first_answer() -> None:
    with pytest.raises(ValueError, match="takes_one"):
        load_reward("user_rewards:takes_one")
    with pytest.raises(ValueError, match="module"):
        load_reward(":score")


@pytest.mark.parametrize("name", REWARDS)
def test_our_rewards_keep_the_contract(name: str) -> None:
    check = check_reward(name)
    assert check.num_calls > 50
    if name in PENALTIES:
        assert check.highest is not None
        assert check.highest <= 0.0
    else:
        assert check.highest == 1.0
        assert check.lowest == 0.0


# --- groups


def test_group_rewards() -> None:
    scores = [Score(t, {"obo": t, "format": 1.0, "cycles": None}) for t in (0.0, 1.0, 0.5)]
    weights = {"obo": 3.0, "format": 0.5, "cycles": 0.5}
    summed = RewardSpec.from_mapping(weights)
    np.testing.assert_allclose(group_rewards(scores, summed), [0.0, 1.0, 0.5])
    # obo: mean 0.5, std 0.5, so -1, 1, 0 times 3/4; format has no spread, cycles do not apply
    gdpo = RewardSpec.from_mapping(weights, combine="per_reward")
    np.testing.assert_allclose(group_rewards(scores, gdpo), [-0.75, 0.75, 0.0], atol=1e-5)
    np.testing.assert_allclose(group_rewards(scores[1:2], gdpo), [1.0])


def test_per_reward_combination_is_that_of_each_part() -> None:
    # Two parts of different scale: after normalising, both have the same say.
    values = [(0.0, 0.50), (1.0, 0.51), (0.0, 0.51), (1.0, 0.50)]
    scores = [Score(0.0, {"obo": a, "format": b}) for a, b in values]
    spec = RewardSpec.from_mapping({"obo": 1.0, "format": 1.0}, combine="per_reward")
    third = 3**0.5 / 2  # (1 - 0.5) / std of (0, 1, 0, 1) with n - 1 = 0.57735
    np.testing.assert_allclose(group_rewards(scores, spec), [-third, third, 0, 0], atol=1e-3)

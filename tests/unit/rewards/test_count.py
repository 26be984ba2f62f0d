"""Count rewards against values worked out from the published formulas with 30-digit decimals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.count import MAX_VALUES, VARIANTS, count_reward

ERRORS = (0, 1, 2, 5)
# variant -> g -> value at each of ERRORS
TABLE = {
    "gaussian": {
        0: (1.000000, 0.606531, 0.135335, 0.000004),
        1: (1.000000, 0.606531, 0.135335, 0.000004),
        2: (1.000000, 0.606531, 0.135335, 0.000004),
        3: (1.000000, 0.606531, 0.135335, 0.000004),
        10: (1.000000, 0.882497, 0.606531, 0.043937),
        50: (1.000000, 0.995012, 0.980199, 0.882497),
    },
    "linear": {
        0: (1.000000, 0.000000, 0.000000, 0.000000),
        1: (1.000000, 0.000000, 0.000000, 0.000000),
        2: (1.000000, 0.500000, 0.000000, 0.000000),
        3: (1.000000, 0.666667, 0.333333, 0.000000),
        10: (1.000000, 0.900000, 0.800000, 0.500000),
        50: (1.000000, 0.980000, 0.960000, 0.900000),
    },
    "fixed_gaussian": {
        0: (1.000000, 0.945959, 0.800737, 0.249352),
        1: (1.000000, 0.945959, 0.800737, 0.249352),
        2: (1.000000, 0.945959, 0.800737, 0.249352),
        3: (1.000000, 0.945959, 0.800737, 0.249352),
        10: (1.000000, 0.945959, 0.800737, 0.249352),
        50: (1.000000, 0.945959, 0.800737, 0.249352),
    },
    "hybrid": {
        0: (1.500000, 0.500000, 0.000000, 0.000000),
        1: (1.500000, 0.500033, 0.000000, 0.000000),
        2: (1.500000, 0.558750, 0.000012, 0.000000),
        3: (1.500000, 0.772333, 0.005501, 0.000000),
        10: (1.500000, 1.384673, 0.612536, 0.046727),
        50: (1.500000, 1.495032, 0.980277, 0.882937),
    },
    "fuzzy": {
        0: (1.500000, 0.000000, 0.000000, 0.000000),
        1: (1.500000, 0.000000, 0.000000, 0.000000),
        2: (1.500000, 0.000000, 0.000000, 0.000000),
        3: (1.500000, 1.166667, 0.000000, 0.000000),
        10: (1.500000, 1.400000, 1.300000, 0.000000),
        50: (1.500000, 1.480000, 1.460000, 1.400000),
    },
    "exact": {
        0: (1.000000, 0.000000, 0.000000, 0.000000),
        1: (1.000000, 0.000000, 0.000000, 0.000000),
        2: (1.000000, 0.000000, 0.000000, 0.000000),
        3: (1.000000, 0.000000, 0.000000, 0.000000),
        10: (1.000000, 0.000000, 0.000000, 0.000000),
        50: (1.000000, 0.000000, 0.000000, 0.000000),
    },
    "obo": {
        0: (1.000000, 0.047298, 0.001859, 0.000000),
        1: (1.000000, 0.047298, 0.001859, 0.000000),
        2: (1.000000, 0.211974, 0.037340, 0.000415),
        3: (1.000000, 0.349485, 0.101501, 0.005053),
        10: (1.000000, 0.703777, 0.411609, 0.167348),
        50: (1.000000, 0.894676, 0.665190, 0.555614),
    },
}
CASES = [
    (variant, g, e, value)
    for variant, rows in TABLE.items()
    for g, values in rows.items()
    for e, value in zip(ERRORS, values, strict=True)
]


def test_table_is_complete() -> None:
    assert TABLE.keys() == VARIANTS.keys()
    assert len(CASES) == 7 * 6 * 4


@pytest.mark.parametrize(("variant", "g", "e", "value"), CASES)
def test_table(variant: str, g: int, e: int, value: float) -> None:
    assert count_reward(variant, g + e, g) == pytest.approx(value, abs=6e-7)
    if e <= g:
        assert count_reward(variant, g - e, g) == pytest.approx(value, abs=6e-7)


def test_hand_worked_points() -> None:
    # e = 1 at g = 10 is n = 1 / 10.1: exp(-n^2 / 0.08) = exp(-0.12254) = 0.88467, and the bonus.
    assert count_reward("hybrid", 9, 10) == pytest.approx(1.38467, abs=1e-5)
    # 0.95 exp(-3 / 50) = 0.95 * 0.941765
    assert count_reward("obo", 51, 50) == pytest.approx(0.894676, abs=1e-6)
    # the widest published gaussian that is still flat: s = max(1, 0.2 * 5) = 1
    assert count_reward("gaussian", 6, 5) == pytest.approx(0.606531, abs=1e-6)
    assert count_reward("fuzzy", 14, 10) == pytest.approx(1.1)
    assert count_reward("fuzzy", 15, 10) == 0.0  # an error of 50% is not below 50%


@pytest.mark.parametrize("variant", VARIANTS)
def test_missing_prediction_is_worth_nothing(variant: str) -> None:
    assert count_reward(variant, None, 0) == 0.0
    assert count_reward(variant, None, 7) == 0.0


@pytest.mark.parametrize("variant", VARIANTS)
@given(predicted=st.integers(0, 10**400), target=st.integers(0, 10**400))
def test_range_and_best_at_the_target(variant: str, predicted: int, target: int) -> None:
    value = count_reward(variant, predicted, target)
    assert 0.0 <= value <= MAX_VALUES[variant]
    assert count_reward(variant, target, target) == MAX_VALUES[variant]
    assert value <= count_reward(variant, target, target)


@given(target=st.integers(0, 1_000), error=st.integers(0, 100))
def test_obo_falls_strictly_where_it_is_not_yet_zero(target: int, error: int) -> None:
    value = count_reward("obo", target + error, target)
    further = count_reward("obo", target + error + 1, target)
    assert further < value or value < 1e-12


def test_obo_scales_off_by_one() -> None:
    values = [count_reward("obo", g + 1, g) for g in (1, 2, 5, 10, 20, 50, 100)]
    assert values == sorted(values)
    assert values[0] < 0.05
    assert 0.85 < values[5] < 0.95
    assert values[-1] < 0.95  # exact stays apart by at least 0.05


@pytest.mark.parametrize("target", [-1, 2.0, True, "3"])
def test_bad_target_is_refused(target: object) -> None:
    with pytest.raises(ValueError, match="target="):
        count_reward("obo", 3, target)  # type: ignore[arg-type]


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="gausian"):
        count_reward("gausian", 3, 3)

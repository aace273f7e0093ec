from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmidd.robust_scores import augmentation_robust_score, label_robust_score, scaled

SHARES = st.floats(0, 1)
MIDDLE = (1 - math.exp(-1)) / (math.e - math.exp(-1))  # 0.2689


def test_no_difference_is_the_middle_of_the_scale() -> None:
    assert scaled(0) == MIDDLE == pytest.approx(0.26894142)
    assert label_robust_score(0.4, 0.7, 0.4, 0.7) == MIDDLE
    assert augmentation_robust_score(0.5, 0.3, 0.5, 0.3) == MIDDLE


def test_the_ends_of_the_scale() -> None:
    assert label_robust_score(own=0, hard=0, random=1, real=1) == 0
    assert label_robust_score(own=1, hard=1, random=0, real=0) == 1
    assert augmentation_robust_score(0, 0, 1, 1) == 0
    assert augmentation_robust_score(1, 1, 0, 0) == 1


def test_the_numbers_of_an_example() -> None:
    # alpha = 0.5 (0.65 - 0.35) - 0.5 (0.85 - 0.45) = -0.05
    expected = (math.exp(-0.05) - math.exp(-1)) / (math.e - math.exp(-1))
    found = label_robust_score(own=0.65, hard=0.45, random=0.35, real=0.85)
    assert found == pytest.approx(expected) == pytest.approx(0.2481915, rel=1e-6)
    # alpha = 0.8 0.3 - 0.2 0.4 = 0.16
    found = label_robust_score(own=0.65, hard=0.45, random=0.35, real=0.85, weight=0.8)
    assert found == pytest.approx(scaled(0.16))
    # beta = 0.25 (0.6 - 0.4) + 0.75 (0.5 - 0.2) = 0.275
    found = augmentation_robust_score(
        augmented=0.6, plain=0.5, random_augmented=0.4, random_plain=0.2, weight=0.25
    )
    assert found == pytest.approx(scaled(0.275)) == pytest.approx(0.4036123, rel=1e-6)


def test_percentages_in_the_place_of_shares_collapse_or_explode() -> None:
    collapsed = -math.exp(-1) / (math.e - math.exp(-1))
    assert scaled(-20) == pytest.approx(collapsed) == pytest.approx(-0.1565, abs=1e-4)
    assert scaled(20) > 1e8


@pytest.mark.parametrize("name", ["own", "hard", "random", "real", "weight"])
@pytest.mark.parametrize("value", [45.1, -0.1, math.nan])
def test_what_is_no_share_is_refused(name: str, value: float) -> None:
    shares: dict[str, Any] = dict.fromkeys(("own", "hard", "random", "real"), 0.5)
    with pytest.raises(ValueError, match=f"^{name}: expected a share from 0 to 1, got {value:g}$"):
        label_robust_score(**{**shares, name: value})
    with pytest.raises(ValueError, match=f"^plain: expected a share from 0 to 1, got {value:g}$"):
        augmentation_robust_score(0.5, value, 0.5, 0.5)


@given(SHARES, SHARES, SHARES, SHARES, SHARES, SHARES)
def test_scores_are_shares_and_grow_with_the_set(
    own: float, hard: float, random: float, real: float, weight: float, more: float
) -> None:
    found = label_robust_score(own, hard, random, real, weight)
    assert 0 <= found <= 1
    better = max(own, more), max(hard, more)
    assert label_robust_score(*better, random, real, weight) >= found - 1e-12
    of_augmentation = augmentation_robust_score(own, hard, random, real, weight)
    assert 0 <= of_augmentation <= 1
    assert augmentation_robust_score(*better, random, real, weight) >= of_augmentation - 1e-12

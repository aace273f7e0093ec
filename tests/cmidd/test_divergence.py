from __future__ import annotations

import math

import pytest

from cmidd.divergence import signs_of_divergence


@pytest.mark.parametrize(
    ("largest", "losses", "signs"),
    [
        (3.0, [], []),
        (19.9, [2.0, 1.0, 199.0], []),
        (5.8e7, [1.0], ["images left the range of the data: the largest value is 5.8e+07"]),
        (1.0, [2.0, 1.0, 201.0], ["the loss grew from 2 to 201"]),
        (1.0, [2.0, 999.0, 1.0], []),
        (21.0, [1.0, math.inf, 1e9], ["images left", "the loss grew from 1 to 1e+09"]),
        (1.0, [0.0, 1.0], []),
    ],
)
def test_signs_of_divergence(largest: float, losses: list[float], signs: list[str]) -> None:
    found = signs_of_divergence(largest, losses)
    assert len(found) == len(signs)
    assert all(one.startswith(expected) for one, expected in zip(found, signs, strict=True))

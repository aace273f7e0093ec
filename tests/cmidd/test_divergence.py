from __future__ import annotations

import math

import pytest

from cmidd.divergence import signs_of_divergence

IMAGES = "images left the range of the data: the largest value is 5.8e+07 standard deviations "
LOSS = "the loss grew from 0.5 to 50.1"


@pytest.mark.parametrize(
    ("largest", "losses", "expected"),
    [
        (20.0, [0.5, 50.0], []),
        (3.0, [], []),
        (3.0, [50.1, 0.5], []),
        (3.0, [0.0, 1.0], []),  # which no factor leads from one to the other
        (5.8e7, [1.1, 1.1], [f"{IMAGES}from the mean"]),
        (3.0, [0.5, 7.0, 50.1], [LOSS]),
        (3.0, [math.inf, 0.5, 50.1, math.nan], [LOSS]),
        (5.8e7, [0.5, 50.1], [f"{IMAGES}from the mean", LOSS]),
    ],
)
def test_a_run_whose_images_or_loss_exploded_has_signs_of_it(
    largest: float, losses: list[float], expected: list[str]
) -> None:
    assert signs_of_divergence(largest, [{"loss": loss} for loss in losses]) == expected


def test_where_the_distance_in_a_loss_is_logged_it_alone_counts() -> None:
    older = {"loss": 0.1}
    log = [older, {"loss": 0.5, "distance": 0.5}, {"loss": 400.0, "distance": 0.7}]
    assert signs_of_divergence(3.0, log) == []
    log.append({"loss": 400.0, "distance": 50.1})
    assert signs_of_divergence(3.0, log) == ["the distance grew from 0.5 to 50.1"]

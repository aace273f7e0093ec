"""The oracle of the tests is right, on its own authority."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.support.oracle import Oracle
from tests.support.tables import REDUCTIONS, make_features, make_labels, make_probabilities


def test_two_mirrored_rows_of_two_channels_by_hand() -> None:
    p = 0.9
    z = torch.tensor([[math.log(p), math.log(1 - p)], [math.log(1 - p), math.log(p)]]).double()
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    oracle = Oracle(z, torch.tensor([0, 0]))
    assert float(oracle.value) == pytest.approx(math.log(2) - entropy, rel=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("given", [False, True], ids=["own centroids", "given centroids"])
def test_gradient_is_the_limit_of_differences(reduction: str, given: bool) -> None:
    labels = make_labels((3, 1, 4), shuffle_seed=0)
    centroids = make_probabilities((3, 5)) if given else None
    z = make_features(8, 5, dtype=torch.float64)
    options: dict[str, Any] = {
        "centroids": centroids,
        "temperature": 0.7,
        "weight": -3.0,
        "reduction": reduction,
    }
    at_z = Oracle(z, labels, **options)
    grad_value = make_features(1, at_z.value.numel(), dtype=torch.float64, seed=5).view_as(
        at_z.value
    )
    direction = make_features(8, 5, dtype=torch.float64, seed=9)
    step = 1e-5
    ahead = Oracle(z + step * direction, labels, **options).value
    behind = Oracle(z - step * direction, labels, **options).value
    slope = float((grad_value * (ahead - behind)).sum()) / (2 * step)
    expected = float((at_z.gradient(grad_value) * direction).sum())
    assert slope == pytest.approx(expected, rel=1e-7)

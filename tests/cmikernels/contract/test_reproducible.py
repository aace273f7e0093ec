"""The same call gives the same bits, on any number of threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cmikernels import class_centroids
from tests.support.compare import value_and_gradient
from tests.support.tables import (
    DEVICE_OF,
    DTYPES,
    FUSED,
    INTERPRETED,
    REDUCTIONS,
    make_features,
    make_labels,
)

# Few large classes are split over threads, many small ones dealt out to them.
SHAPES = {
    "one large class": ((3001,), 260),
    "two large, uneven": ((2500, 90), 129),
    "many small": ((7, 3, 1, 0, 12) * 60, 130),
    "wide": ((3, 2), 70_000),
    "one among many": ((2000, *(2,) * 200), 64),
}
# The same kinds, for backends that take a hundredth of a second for every block of rows.
SMALL_SHAPES = {
    "one large class": ((301,), 260),
    "two large, uneven": ((300, 90), 129),
    "many small": ((7, 3, 1, 0, 12) * 2, 130),
    "wide": ((2, 1), 8_200),
    "one among many": ((500, *(2,) * 8), 64),
}


def everything(backend: str, dtype: torch.dtype, name: str, reduction: str) -> list[Tensor]:
    sizes, channels = (SMALL_SHAPES if backend in INTERPRETED else SHAPES)[name]
    features = make_features(sum(sizes), channels, 3.0, dtype)
    labels = make_labels(sizes, shuffle_seed=0)
    results: list[Tensor] = []
    for classes in (labels, labels.sort().values):
        options: dict[str, Any] = {"num_classes": len(sizes), "temperature": 0.9}
        results += value_and_gradient(backend, features, classes, reduction=reduction, **options)
        device = DEVICE_OF[backend]
        own = class_centroids(features.to(device), classes.to(device), backend=backend, **options)
        results.append(own.cpu())
    return results


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_twice_the_same_bits(backend: str, name: str, reduction: str) -> None:
    first = everything(backend, torch.float32, name, reduction)
    second = everything(backend, torch.float32, name, reduction)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("fused", [name for name in FUSED if name == "cpu"])
def test_any_number_of_threads_gives_the_same_bits(
    fused: str, name: str, dtype: torch.dtype, reduction: str
) -> None:
    torch.set_num_threads(1)
    alone = everything(fused, dtype, name, reduction)
    for threads in (2, 3, 4, 13):
        torch.set_num_threads(threads)
        together = everything(fused, dtype, name, reduction)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True)), threads


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("fused", [name for name in FUSED if name == "cpu"])
def test_the_number_of_torch_threads_is_left_alone(fused: str) -> None:
    torch.set_num_threads(3)
    everything(fused, torch.float32, "many small", "mean")
    assert torch.get_num_threads() == 3

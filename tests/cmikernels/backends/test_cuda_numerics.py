"""The CUDA kernels on emulated GPUs, given features that are hard on float32.

Rows with a large common part, rows that differ in kind within a class, channels of probability 0,
the largest finite numbers, weights far from 1 and centroids without mass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.compare import assert_gradient, assert_value, value_and_gradient
from tests.support.emulated_gpu import Case
from tests.support.oracle import Oracle, torch_gradient
from tests.support.tables import make_features, make_labels

pytestmark = pytest.mark.usefixtures("nan_filled_empty")

# Each kind and form of a plan, and rows that several warps share.
CASES = {
    "full": Case("tiny", 4, 12, 256),
    "packed": Case("tiny", 4, 12, 200),
    "any": Case("tiny", 4, 12, 131),
    "slots": Case("tiny", 2, 40, 512),
    "warps": Case("roomy", 2, 12, 2048),
    "wide": Case("tiny", 2, 7, 2300),
    "bfloat16": Case("tiny", 4, 12, 256, torch.bfloat16),
    "float16": Case("tiny", 4, 12, 256, torch.float16),
}
LARGE = 3e38  # near the largest float32
every_form = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_float32 = pytest.mark.parametrize(
    "case", [case for case in CASES.values() if case.dtype == torch.float32], ids=list(CASES)[:6]
)


def rows_of(case: Case, spread: float, *common: float) -> tuple[Tensor, Tensor]:
    """Features whose rows take turns to have one of the common parts, and labels."""
    labels = make_labels(case.unequal)
    z = make_features(len(labels), case.channels, spread, torch.float64)
    turns = torch.tensor(common, dtype=torch.float64)[torch.arange(len(z)) % len(common)]
    return (z + turns[:, None]).to(case.dtype), labels


def check(
    case: Case, z: Tensor, labels: Tensor, grad_value: Tensor | None = None, **options: Any
) -> None:
    """Value and gradient are finite and the oracle's."""
    options["num_classes"] = len(case.unequal)
    value, gradient = value_and_gradient("cuda", z, labels, grad_value, **options)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    oracle = Oracle(z, labels, **options)
    assert_value(value, oracle.value, case.dtype)
    by_torch = None
    if grad_value is None and options.get("reduction") in ("sum", "none") and z.isfinite().all():
        by_torch = torch_gradient(z, labels) * len(z)
    assert_gradient(gradient, oracle.gradient(grad_value), case.dtype, by_torch)


every_common_part = pytest.mark.parametrize(
    "common", [(0.0,), (5.0,), (5.0, -7.0, 500.0, -2000.0, 1e4)], ids=["none", "5", "mixed"]
)


@every_common_part
@pytest.mark.parametrize(
    ("spread", "reduction"), [(0.1, "class"), (1.0, "none"), (3.0, "sum")], ids=str
)
@every_form
def test_a_common_part_of_rows_costs_no_accuracy(
    emulate: Callable[..., None],
    case: Case,
    spread: float,
    reduction: str,
    common: tuple[float, ...],
) -> None:
    emulate(case.chip)
    check(case, *rows_of(case, spread, *common), reduction=reduction)


@every_common_part
@every_float32
def test_nor_where_rows_are_nearly_alike(
    emulate: Callable[..., None], case: Case, common: tuple[float, ...]
) -> None:
    emulate(case.chip)
    check(case, *rows_of(case, 1e-3, *common), reduction="sum")


@every_float32
def test_channels_of_probability_0_leave_small_values_accurate(
    emulate: Callable[..., None], case: Case
) -> None:
    emulate(case.chip)
    z, labels = rows_of(case, 0.01, 500.0, -700.0)
    z[::2, : case.channels // 8] = -math.inf
    check(case, z, labels, reduction="none")


@pytest.mark.parametrize("temperature", [0.05, 20.0])
@every_float32
def test_finite_features_of_any_size_give_numbers(
    emulate: Callable[..., None], case: Case, temperature: float
) -> None:
    emulate(case.chip)
    z, labels = rows_of(case, 30.0, 0.0, 1e4)
    z[0] *= 1e30
    z[1, ::3] = -LARGE
    z[2, 5] = LARGE
    z[3] = LARGE
    z[4] = -LARGE
    z[5, ::2], z[5, 1::2] = LARGE, -LARGE
    z[6, : case.channels - 1] = -math.inf
    options: dict[str, Any] = {"reduction": "class", "num_classes": len(case.unequal)}
    options["temperature"] = temperature
    value, gradient = value_and_gradient("cuda", z, labels, **options)
    assert_value(value, Oracle(z, labels, **options).value, case.dtype)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("weight", [1e-30, 1e30])
@every_float32
def test_weights_far_from_1_scale_the_gradient(
    emulate: Callable[..., None], case: Case, weight: float, reduction: str
) -> None:
    emulate(case.chip)
    z, labels = rows_of(case, 1.0, 5.0, 2000.0)
    z[1, :9], z[3, ::2] = -math.inf, -LARGE
    check(case, z, labels, weight=weight, reduction=reduction)


@every_float32
def test_rows_of_one_class_may_have_weights_far_apart(
    emulate: Callable[..., None], case: Case
) -> None:
    emulate(case.chip)
    z, labels = rows_of(case, 1.0, 5.0, 2000.0)
    exponents = 60 * torch.rand(len(z), generator=torch.Generator().manual_seed(1)) - 30
    exponents[labels == 1] = 0  # whose only row has no gradient, which float64 misses by 1e-16
    check(case, z, labels, 10**exponents, reduction="none")


@every_form
def test_a_given_centroid_of_nothing_gives_numbers(
    emulate: Callable[..., None], case: Case
) -> None:
    emulate(case.chip)
    z, labels = rows_of(case, 1.0, 5.0)
    centroids = torch.zeros(len(case.unequal), case.channels)
    centroids[0] = 1 / case.channels
    check(case, z, labels, centroids=centroids, reduction="class")


@every_form
def test_no_schedule_changes_rows_that_differ_in_kind(
    emulate: Callable[..., None], case: Case
) -> None:
    z, labels = rows_of(case, 0.1, 0.0, 5.0, 2000.0)
    z[-1, ::3] = -math.inf
    expected: list[Tensor] = []
    for seed in range(4):
        emulate(case.chip, seed)
        results = value_and_gradient("cuda", z, labels, reduction="none")
        expected = expected or list(results)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True)), seed

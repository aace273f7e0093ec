"""No NaN or Inf out of finite features, and torch's softmax's own answer for the others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cmikernels import fused_cmi
from tests.support.compare import assert_gradient, assert_value, relative_error, value_and_gradient
from tests.support.oracle import Oracle, torch_gradient
from tests.support.tables import (
    DEVICE_OF,
    DTYPES,
    HALF,
    INTERPRETED,
    REDUCTIONS,
    make_features,
    make_labels,
)

pytestmark = pytest.mark.usefixtures("nan_filled_empty")

LABELS = make_labels((8, 5, 1))


def check_against_oracle(backend: str, features: Tensor, labels: Tensor = LABELS) -> None:
    """Finite, and right: a published expression that gives NaN is no excuse."""
    oracle = Oracle(features, labels)
    value, gradient = value_and_gradient(backend, features, labels)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert_value(value, oracle.value, features.dtype)
    assert_gradient(gradient, oracle.gradient(), features.dtype)


@pytest.mark.parametrize("gap", [80, 88, 95, 103, 104, 110, 200, 745, 1000, 30_000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_channels_far_below_the_row_maximum_in_a_whole_class(
    backend: str, dtype: torch.dtype, gap: int
) -> None:
    features = make_features(14, 40, dtype=dtype)
    features[:, ::3] -= gap
    check_against_oracle(backend, features)


def test_the_published_expression_is_nan_at_a_gap_of_104() -> None:
    """What the test above is about: torch's own float32 fails there."""
    features = make_features(14, 40)
    features[:, ::3] -= 110
    assert torch_gradient(features, LABELS, published=True).isnan().any()


@pytest.mark.parametrize("gap", [90, 104, 300, 1000])
def test_channels_far_below_in_all_rows_of_a_class_but_one(backend: str, gap: int) -> None:
    features = make_features(14, 40)
    features[1:8, ::3] -= gap
    check_against_oracle(backend, features)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_largest_and_smallest_numbers_side_by_side(
    backend: str, dtype: torch.dtype, temperature: float, reduction: str
) -> None:
    largest = torch.finfo(dtype).max
    features = make_features(14, 40, dtype=dtype)
    features[0, 0], features[0, 1] = largest, -largest
    features[1, 0], features[1, 1] = -largest, largest
    features[2, ::2], features[2, 1::2] = largest, -largest
    features[3] = largest
    features[4] = -largest
    features[5, 3] = -largest
    options: dict[str, Any] = {"temperature": temperature, "reduction": reduction}
    oracle = Oracle(features, LABELS, **options)
    value, gradient = value_and_gradient(backend, features, LABELS, **options)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert_value(value, oracle.value, dtype)
    assert relative_error(gradient, oracle.gradient()) < 2e-2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_denormal_features(backend: str, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    features = (make_features(14, 40).double() * tiny / 4).to(dtype)
    value, gradient = value_and_gradient(backend, features, LABELS)
    assert 0 <= float(value) < 1e-6
    assert gradient.isfinite().all()


@pytest.mark.parametrize("constant", [0.0, 1e-42, -7.5, 1e4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_all_equal_have_no_information(
    backend: str, dtype: torch.dtype, constant: float
) -> None:
    features = torch.full((14, 41), constant, dtype=dtype)
    value, gradient = value_and_gradient(backend, features, LABELS)
    assert abs(float(value)) < 1e-12
    assert float(gradient.abs().max()) < 1e-8


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("offset", [100.0, -1000.0])
@pytest.mark.parametrize("per_row", [False, True], ids=["common", "per row"])
def test_a_shift_of_a_row_changes_nothing(
    backend: str, per_row: bool, offset: float, spread: float
) -> None:
    plain = make_features(60, 300, spread)
    labels = make_labels((20, 40))
    shift = torch.linspace(-1, 1, 60)[:, None] if per_row else torch.ones(60, 1)
    features = plain + offset * shift
    # The sum is rounded to float32: judge by the rounded inputs and, loosely, by the plain ones.
    oracle = Oracle(features, labels)
    value, gradient = value_and_gradient(backend, features, labels)
    assert relative_error(value, oracle.value) < 1e-5
    by_torch = torch_gradient(features, labels)
    assert_gradient(gradient, oracle.gradient(), features.dtype, by_torch)
    assert relative_error(value, Oracle(plain, labels).value) < 1e-3


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("common", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("spread", [0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.85])
def test_the_value_keeps_its_accuracy_where_its_form_changes(
    backend: str, spread: float, common: float, reduction: str
) -> None:
    """KL from 0.01 to 0.4; rows of a class share a mean that is `common` times a normal vector."""
    sizes, channels = (4, 8, 20), 64 if backend in INTERPRETED else 512
    labels, means = make_labels(sizes), make_features(len(sizes), channels, common, seed=1)
    features = means[labels] + make_features(sum(sizes), channels, spread)
    oracle = Oracle(features, labels, reduction=reduction)
    value, _ = value_and_gradient(backend, features, labels, reduction=reduction)
    assert_value(value, oracle.value, features.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", ["entries", "whole column of a class", "all but one channel"])
def test_minus_infinity_is_probability_zero(backend: str, dtype: torch.dtype, where: str) -> None:
    features = make_features(14, 40, dtype=dtype)
    if where == "entries":
        features[::2, 3::5] = -torch.inf
    elif where == "whole column of a class":
        features[:8, 3::5] = -torch.inf
    else:
        features[:8, 1:] = -torch.inf
    check_against_oracle(backend, features)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_minus_infinity_gets_no_gradient(backend: str, reduction: str) -> None:
    features = make_features(14, 40)
    features[:8, 7] = -torch.inf
    features[9, 8] = -torch.inf
    _, gradient = value_and_gradient(backend, features, LABELS, reduction=reduction)
    assert gradient.isfinite().all()
    assert not gradient[:8, 7].any()
    assert gradient[9, 8] == 0


def test_minus_infinity_against_given_centroids(backend: str) -> None:
    features, centroids = make_features(14, 40), make_features(3, 40, seed=3).softmax(1)
    features[:8, 3::5] = -torch.inf
    centroids[:, 4] = 0
    centroids /= centroids.sum(1, keepdim=True)
    oracle = Oracle(features, LABELS, centroids=centroids)
    value, gradient = value_and_gradient(backend, features, LABELS, centroids=centroids)
    assert_value(value, oracle.value, features.dtype)
    assert_gradient(gradient, oracle.gradient(), features.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=["nan", "inf", "-inf row"])
@pytest.mark.parametrize("shuffle_seed", [None, 1], ids=["sorted", "shuffled"])
def test_a_bad_row_makes_its_class_nan_and_no_other(
    backend: str, shuffle_seed: int | None, bad: float, dtype: torch.dtype
) -> None:
    features = make_features(14, 40, dtype=dtype)
    labels = make_labels((8, 5, 1), shuffle_seed)
    sick = int((labels == 1).nonzero()[2])
    features[sick, slice(None) if bad == -math.inf else 17] = bad
    value, gradient = value_and_gradient(backend, features, labels, reduction="class")
    assert value.isnan().tolist() == [False, True, False]
    assert gradient[labels == 1].isnan().all()
    healthy = labels != 1
    oracle = Oracle(features, labels, reduction="class")
    assert_value(value[[0, 2]], oracle.value[[0, 2]], dtype)
    expected = oracle.gradient()[healthy]
    allowed = 1e-5 + (relative_error(expected.to(dtype), expected) if dtype in HALF else 0)
    assert relative_error(gradient[healthy], expected) <= 1.01 * allowed


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=["nan", "inf", "-inf row"])
def test_a_bad_row_against_given_centroids_is_nan_alone(backend: str, bad: float) -> None:
    features, centroids = make_features(14, 40), make_features(3, 40, seed=3).softmax(1)
    features[3, slice(None) if bad == -math.inf else 17] = bad
    value, gradient = value_and_gradient(
        backend, features, LABELS, centroids=centroids, reduction="none"
    )
    assert value.isnan().nonzero().tolist() == [[3]]
    assert gradient[3].isnan().all()
    assert gradient[torch.arange(14) != 3].isfinite().all()


def test_a_bad_row_makes_the_mean_nan(backend: str) -> None:
    features = make_features(14, 40)
    features[3, 17] = torch.nan
    value, _ = value_and_gradient(backend, features, LABELS)
    assert value.isnan()


@pytest.mark.parametrize("temperature", [1e-30, 1e-4, 1e4, 1e30])
def test_extreme_temperatures_stay_finite(backend: str, temperature: float) -> None:
    features = make_features(14, 40)
    oracle = Oracle(features, LABELS, temperature=temperature)
    value, gradient = value_and_gradient(backend, features, LABELS, temperature=temperature)
    assert gradient.isfinite().all()
    assert float(value) == pytest.approx(float(oracle.value), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [7, 16, 64])
def test_a_nan_row_makes_its_whole_class_nan_row_by_row(
    backend: str, dtype: torch.dtype, channels: int
) -> None:
    features = make_features(14, channels, dtype=dtype)
    features[2, 3] = math.nan
    value, gradient = value_and_gradient(backend, features, LABELS, reduction="none")
    assert value.isnan().tolist() == [True] * 8 + [False] * 6
    assert gradient.isnan().all(dim=1).tolist() == [True] * 8 + [False] * 6


def test_nan_in_a_given_centroid_makes_its_class_nan(backend: str) -> None:
    features = make_features(14, 64)
    centroids = torch.full((3, 64), 1 / 64)
    centroids[0, 5] = math.nan
    value, gradient = value_and_gradient(
        backend, features, LABELS, reduction="class", centroids=centroids
    )
    assert value.isnan().tolist() == [True, False, False]
    assert gradient.isnan().any(dim=1).tolist() == [True] * 8 + [False] * 6


@pytest.mark.parametrize("channels", [8, 64])
@pytest.mark.parametrize("temperature", [1.0, 1e-19])
def test_large_incoming_gradients_meet_impossible_channels(
    backend: str, channels: int, temperature: float
) -> None:
    features = make_features(14, channels)
    features[:, ::3] = -math.inf
    z = features.to(DEVICE_OF[backend]).requires_grad_()
    options: dict[str, Any] = {"temperature": temperature, "reduction": "none", "backend": backend}
    value = fused_cmi(z, LABELS.to(z.device), **options)
    ramp = torch.linspace(1, 2, value.numel(), device=z.device)
    (gradient,) = torch.autograd.grad(value, z, ramp * 1e10)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("sizes", [(8, 5, 1), (50,), (700, 3)], ids=str)
@pytest.mark.parametrize("channels", [64, 256])
def test_features_far_above_zero_beside_rows_that_are_not_there(
    backend: str, channels: int, sizes: tuple[int, ...]
) -> None:
    """In widths that fill a tile, whose rows beyond the class's last must stay without effect."""
    features = make_features(sum(sizes), channels) + 200
    check_against_oracle(backend, features, make_labels(sizes))

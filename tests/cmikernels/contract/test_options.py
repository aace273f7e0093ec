"""Centroids, temperature, weight and reduction, each against float64 and each differentiable."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cmikernels import class_centroids
from tests.support.compare import assert_gradient, assert_value, relative_error, value_and_gradient
from tests.support.oracle import Oracle
from tests.support.tables import (
    CLASS_SIZES,
    DEVICE_OF,
    DTYPES,
    REDUCTIONS,
    make_features,
    make_labels,
    make_probabilities,
)

pytestmark = pytest.mark.usefixtures("nan_filled_empty")

SIZES = (4, 1, 0, 9, 6)
LABELS = make_labels(SIZES, shuffle_seed=1)


def random_grad(value_shape: torch.Size, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(value_shape, generator=generator)


def check(backend: str, features: torch.Tensor, labels: torch.Tensor, **options: Any) -> None:
    """Value, and gradient for a random incoming gradient, within their bounds of the oracle."""
    oracle = Oracle(features, labels, **options)
    grad_value = random_grad(oracle.value.shape)
    value, gradient = value_and_gradient(backend, features, labels, grad_value, **options)
    assert_value(value, oracle.value, features.dtype)
    assert_gradient(gradient, oracle.gradient(grad_value), features.dtype)


@pytest.mark.parametrize(
    ("sizes", "channels"),
    [((4, 1, 5), 8), ((20, 13), 512), ((300, 211), 260), ((3, 0, 4), 8200)],
    ids=["tiny", "small", "large", "wide"],
)
@pytest.mark.parametrize("given", [False, True], ids=["own centroids", "given centroids"])
def test_row_weights_times_a_weight_at_every_size(
    backend: str, sizes: tuple[int, ...], channels: int, given: bool
) -> None:
    features = make_features(sum(sizes), channels, 2.0)
    centroids = make_probabilities((len(sizes), channels)) if given else None
    options: dict[str, Any] = {"weight": 3.0, "temperature": 0.7, "centroids": centroids}
    labels = make_labels(sizes, shuffle_seed=1)
    check(backend, features, labels, num_classes=len(sizes), reduction="none", **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_reduction_has_a_gradient(backend: str, dtype: torch.dtype, reduction: str) -> None:
    check(backend, make_features(20, 50, dtype=dtype), LABELS, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("sizes", CLASS_SIZES.values(), ids=CLASS_SIZES)
def test_every_reduction_over_every_make_up_of_classes(
    backend: str, sizes: tuple[int, ...], reduction: str
) -> None:
    check(backend, make_features(sum(sizes), 37), make_labels(sizes), reduction=reduction)


def test_row_weights_that_differ_within_a_class_reach_the_centroid(backend: str) -> None:
    """The rho term: without it the gradient would be that of a given centroid."""
    features, labels = make_features(8, 10), make_labels((8,))
    oracle = Oracle(features, labels, reduction="none")
    grad_value = torch.arange(8.0)
    _, gradient = value_and_gradient(backend, features, labels, grad_value, reduction="none")
    assert_gradient(gradient, oracle.gradient(grad_value), features.dtype)
    constant_q = Oracle(features, labels, reduction="none", centroids=oracle.log_q.exp())
    assert relative_error(gradient, constant_q.gradient(grad_value)) > 0.1


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("temperature", [0.1, 1, 7.0])
def test_every_temperature(backend: str, temperature: float, reduction: str) -> None:
    check(backend, make_features(20, 50), LABELS, temperature=temperature, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [2000.0, 0.0, -1.5, 3])
def test_every_weight(backend: str, weight: float, reduction: str) -> None:
    check(backend, make_features(20, 50), LABELS, weight=weight, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("centroid_dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_given_centroids(
    backend: str, centroid_dtype: torch.dtype, dtype: torch.dtype, reduction: str
) -> None:
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    centroids = make_probabilities((5, 50)).to(centroid_dtype).to(arithmetic)
    features = make_features(20, 50, dtype=dtype)
    check(backend, features, LABELS, centroids=centroids, reduction=reduction)
    same = value_and_gradient(
        backend, features, LABELS, centroids=centroids.to(centroid_dtype), reduction=reduction
    )
    assert_value(
        same[0], Oracle(features, LABELS, centroids=centroids, reduction=reduction).value, dtype
    )


@pytest.mark.usefixtures("any_centroids")
@pytest.mark.parametrize("scale", [0.01, 0.5, 40.0])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_given_centroids_need_not_sum_to_one(
    backend: str, scale: float, temperature: float
) -> None:
    centroids = make_probabilities((5, 50)) * scale
    check(backend, make_features(20, 50), LABELS, centroids=centroids, temperature=temperature)


@pytest.mark.usefixtures("any_centroids")
@pytest.mark.parametrize("scale", [1.01, 3.0, 1e4])
@pytest.mark.parametrize("smallest", [0.0, 1.2e-38, 1e-37])
def test_given_centroids_above_one_beside_zeros(
    backend: str, smallest: float, scale: float
) -> None:
    """Not to be scaled down: the smallest normal number has nothing below it."""
    centroids = torch.full((5, 50), scale)
    centroids[:, ::3] = smallest
    check(backend, make_features(20, 50), LABELS, centroids=centroids)


@pytest.mark.usefixtures("any_centroids")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("smaller", [0.0, 1e-40, -0.25])
def test_given_centroids_are_floored_at_the_smallest_normal(
    backend: str, smaller: float, dtype: torch.dtype
) -> None:
    centroids = make_probabilities((5, 50)).double()
    centroids[:, ::3] = smaller
    centroids[1] = 0
    if dtype == torch.float64 and 0 < smaller < 1e-39:
        centroids[:, ::3] = 1e-310
    check(backend, make_features(20, 50, dtype=dtype), LABELS, centroids=centroids)


def test_given_centroids_of_a_class_without_rows_are_ignored(backend: str) -> None:
    features, centroids = make_features(20, 50), make_probabilities((5, 50))
    with_nan = centroids.clone()
    with_nan[2] = torch.nan
    plain = value_and_gradient(backend, features, LABELS, centroids=centroids)
    ignoring = value_and_gradient(backend, features, LABELS, centroids=with_nan)
    assert torch.equal(plain[0], ignoring[0])
    assert torch.equal(plain[1], ignoring[1])


@pytest.mark.usefixtures("any_centroids")
def test_given_centroids_may_be_strided(backend: str) -> None:
    features, centroids = make_features(20, 50), make_probabilities((50, 5)).t()
    assert not centroids.is_contiguous()
    check(backend, features, LABELS, centroids=centroids)


def test_centroids_tell_the_number_of_classes(backend: str) -> None:
    centroids = make_probabilities((9, 50))
    value, _ = value_and_gradient(
        backend, make_features(20, 50), LABELS, centroids=centroids, reduction="class"
    )
    assert value.shape == (9,)


@pytest.mark.parametrize("per_network", [False, True], ids=["C,M", "L,C,M"])
def test_given_centroids_of_several_networks(backend: str, per_network: bool) -> None:
    features = make_features((2, 3, 4), 10)
    centroids = make_probabilities((2, 3, 10) if per_network else (3, 10))
    value, gradient = value_and_gradient(backend, features, centroids=centroids)
    full = centroids.expand(2, 3, 10).reshape(6, 10)
    oracle = Oracle(features.view(24, 10), make_labels([4] * 6), centroids=full)
    assert_value(value, oracle.value, features.dtype)
    assert_gradient(gradient, oracle.gradient(), features.dtype)


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_own_centroids_handed_back_change_nothing(backend: str, spread: float) -> None:
    features, device = make_features(20, 50, spread), DEVICE_OF[backend]
    own = class_centroids(features.to(device), LABELS.to(device), backend=backend)
    value, gradient = value_and_gradient(backend, features, LABELS)
    given = value_and_gradient(backend, features, LABELS, centroids=own)
    # Q rounded to float32 moves every KL by up to 6e-8.
    torch.testing.assert_close(given[0], value, rtol=1e-5, atol=1e-7)
    assert relative_error(given[1], gradient) < 1e-4


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_class_centroids_are_the_mean_probabilities(
    backend: str, dtype: torch.dtype, temperature: float
) -> None:
    features, device = make_features(20, 50, dtype=dtype), DEVICE_OF[backend]
    own = class_centroids(
        features.to(device), LABELS.to(device), temperature=temperature, backend=backend
    ).cpu()
    expected = Oracle(features, LABELS, temperature=temperature).log_q.exp()
    assert own.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert own.shape == (5, 50)
    assert not own[2].any(), "a class without rows gets zeros"
    assert relative_error(own, expected) < (1e-13 if dtype == torch.float64 else 1e-6)


def test_class_centroids_of_several_networks_keep_the_leading_axis(backend: str) -> None:
    features = make_features((2, 3, 4), 10)
    own = class_centroids(features.to(DEVICE_OF[backend]), backend=backend).cpu()
    assert own.shape == (2, 3, 10)
    assert relative_error(own, features.double().softmax(-1).mean(-2)) < 1e-6


def test_class_centroids_are_differentiable(backend: str) -> None:
    device = DEVICE_OF[backend]
    z = make_features(20, 10, dtype=torch.float64).to(device).requires_grad_()
    own = class_centroids(z, LABELS.to(device), backend=backend)
    (gradient,) = torch.autograd.grad(own[3].square().sum(), z)
    p = z.softmax(1)
    (expected,) = torch.autograd.grad(p[(LABELS == 3).to(device)].mean(0).square().sum(), z)
    torch.testing.assert_close(gradient, expected)


def test_classes_are_separable(backend: str) -> None:
    """A subset of the classes alone gives those classes' values and gradients, bit for bit."""
    features, labels = make_features(60, 33), make_labels((20, 13, 27), shuffle_seed=0)
    value, gradient = value_and_gradient(backend, features, labels, reduction="class")
    keep = labels != 1
    alone = value_and_gradient(backend, features[keep], labels[keep], reduction="class")
    torch.testing.assert_close(alone[0][[0, 2]], value[[0, 2]], rtol=1e-6, atol=0)
    torch.testing.assert_close(alone[1], gradient[keep], rtol=1e-5, atol=1e-9)


def test_order_of_rows_only_permutes_the_gradient(backend: str) -> None:
    features, labels = make_features(60, 33), make_labels((20, 13, 27))
    value, gradient = value_and_gradient(backend, features, labels)
    shuffle = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = value_and_gradient(backend, features[shuffle], labels[shuffle])
    torch.testing.assert_close(shuffled[0], value, rtol=1e-6, atol=0)
    assert relative_error(shuffled[1], gradient[shuffle]) < 1e-5

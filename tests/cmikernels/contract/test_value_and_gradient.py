"""Value and gradient against float64: every spread, dtype, width and way of making up classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, cmi_value_and_grad, fused_cmi
from tests.support.compare import assert_gradient, assert_value, value_and_gradient
from tests.support.oracle import Oracle, torch_gradient
from tests.support.tables import (
    CHANNELS,
    CLASS_SIZES,
    DEVICE_OF,
    DTYPES,
    INTEGERS,
    INTERPRETED,
    SPREADS,
    WIDE_CHANNELS,
    make_features,
    make_labels,
)

pytestmark = pytest.mark.usefixtures("nan_filled_empty")


def check(backend: str, features: Tensor, labels: Tensor) -> None:
    """Value and gradient of the mean, both within their bounds of the oracle."""
    oracle = Oracle(features, labels)
    value, gradient = value_and_gradient(backend, features, labels)
    assert_value(value, oracle.value, features.dtype)
    by_torch = torch_gradient(features, labels)
    assert_gradient(gradient, oracle.gradient(), features.dtype, by_torch)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_spread(backend: str, dtype: torch.dtype, spread: float) -> None:
    check(backend, make_features(60, 200, spread, dtype), make_labels((20, 40), shuffle_seed=1))


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(
    ("rows_per_class", "classes", "channels"), [(50, 4, 2048), (700, 1, 512), (10, 30, 640)]
)
def test_every_spread_at_working_sizes(
    backend: str, rows_per_class: int, classes: int, channels: int, spread: float
) -> None:
    if backend in INTERPRETED:
        channels //= 8
    labels = make_labels([rows_per_class] * classes)
    check(backend, make_features(rows_per_class * classes, channels, spread), labels)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_width(backend: str, dtype: torch.dtype, channels: int) -> None:
    check(backend, make_features(12, channels, dtype=dtype), make_labels((5, 1, 6)))


@pytest.mark.parametrize("channels", WIDE_CHANNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_wide_width(backend: str, dtype: torch.dtype, channels: int) -> None:
    if backend in INTERPRETED:
        channels = min(channels, 9_001)  # still several tiles
    check(backend, make_features(7, channels, dtype=dtype), make_labels((3, 4), shuffle_seed=0))


@pytest.mark.parametrize("shuffle_seed", [None, 3], ids=["sorted", "shuffled"])
@pytest.mark.parametrize("channels", [1, 5, 33, 260])
@pytest.mark.parametrize("sizes", CLASS_SIZES.values(), ids=CLASS_SIZES)
def test_every_make_up_of_classes(
    backend: str, sizes: tuple[int, ...], channels: int, shuffle_seed: int | None
) -> None:
    check(backend, make_features(sum(sizes), channels), make_labels(sizes, shuffle_seed))


def test_many_rows_of_one_channel_are_zero(backend: str) -> None:
    value, gradient = value_and_gradient(
        backend, make_features(5000, 1, 30.0), make_labels((4000, 1000))
    )
    assert float(value) == 0
    assert torch.equal(gradient, torch.zeros(5000, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_single_row_classes_are_exactly_zero(backend: str, dtype: torch.dtype) -> None:
    features = make_features(9, 77, 10.0, dtype)
    value, gradient = value_and_gradient(backend, features, torch.arange(9))
    assert float(value) == 0
    assert not gradient.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "class", "none"])
def test_no_rows_give_zero(backend: str, dtype: torch.dtype, reduction: str) -> None:
    features = torch.empty(0, 12, dtype=dtype)
    labels = torch.empty(0, dtype=torch.int64)
    value, gradient = value_and_gradient(
        backend, features, labels, num_classes=3, reduction=reduction
    )
    assert value.shape == {"class": (3,), "none": (0,)}.get(reduction, ())
    assert not value.any()
    assert gradient.shape == (0, 12)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_labels_of_every_integer_dtype(backend: str, dtype: torch.dtype) -> None:
    features, labels = make_features(30, 20), make_labels((11, 0, 19), shuffle_seed=2)
    value, gradient = value_and_gradient(backend, features, labels.to(dtype))
    oracle = Oracle(features, labels)
    assert_value(value, oracle.value, features.dtype)
    assert_gradient(gradient, oracle.gradient(), features.dtype)


@pytest.mark.parametrize("channels", [8, 100])
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)], ids=["C", "LC", "KLC"])
@pytest.mark.parametrize("rows_per_class", [1, 2, 9])
def test_grouped_features_equal_labelled_rows(
    backend: str, leading: tuple[int, ...], rows_per_class: int, channels: int
) -> None:
    features = make_features((*leading, 4, rows_per_class), channels)
    classes = features.numel() // (rows_per_class * channels)
    rows, labels = features.view(-1, channels), make_labels([rows_per_class] * classes)
    value, gradient = value_and_gradient(backend, features)
    oracle = Oracle(rows, labels)
    assert_value(value, oracle.value, features.dtype)
    assert gradient.shape == features.shape
    assert_gradient(gradient, oracle.gradient(), features.dtype)


@pytest.mark.parametrize("shape", [(0, 5, 8), (3, 0, 8), (2, 0, 5, 8), (0, 3, 5, 8)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "class", "none"])
def test_grouped_features_without_rows_give_zero(
    backend: str, shape: tuple[int, ...], reduction: str
) -> None:
    value, gradient = value_and_gradient(backend, torch.empty(shape), reduction=reduction)
    assert value.shape == {"class": shape[:-2], "none": shape[:-1]}.get(reduction, ())
    assert not value.any()
    assert gradient.shape == shape


@pytest.mark.parametrize("shuffle_seed", [None, 4], ids=["sorted", "shuffled"])
def test_class_index_equals_its_labels(backend: str, shuffle_seed: int | None) -> None:
    features, labels = make_features(40, 30), make_labels((13, 0, 27), shuffle_seed)
    by_labels = value_and_gradient(backend, features, labels)
    by_index = value_and_gradient(backend, features, ClassIndex(labels))
    assert torch.equal(by_labels[0], by_index[0])
    assert torch.equal(by_labels[1], by_index[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "class", "none"])
def test_value_and_grad_equals_autograd(backend: str, dtype: torch.dtype, reduction: str) -> None:
    features, labels = make_features(40, 30, dtype=dtype), make_labels((13, 27), shuffle_seed=5)
    options: dict[str, Any] = {"weight": 3.0, "temperature": 2.0, "reduction": reduction}
    device = DEVICE_OF[backend]
    value, gradient = cmi_value_and_grad(
        features.to(device),
        labels.to(device),
        backend=backend,
        **options,
    )
    through_autograd = value_and_gradient(backend, features, labels, **options)
    torch.testing.assert_close(value.cpu(), through_autograd[0], rtol=1e-6, atol=0)
    assert not gradient.requires_grad
    assert gradient.shape == features.shape
    torch.testing.assert_close(gradient.cpu(), through_autograd[1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "class", "none"])
def test_value_is_the_same_without_a_gradient(backend: str, reduction: str) -> None:
    features, labels = make_features(40, 30), make_labels((13, 27), shuffle_seed=5)
    with_gradient, _ = value_and_gradient(backend, features, labels, reduction=reduction)
    device = DEVICE_OF[backend]
    alone = fused_cmi(features.to(device), labels.to(device), reduction=reduction, backend=backend)
    assert not alone.requires_grad
    torch.testing.assert_close(alone.cpu(), with_gradient, rtol=1e-6, atol=0)


def test_leading_axes_shape_the_class_and_row_values(backend: str) -> None:
    features = make_features((2, 3, 4), 5)
    by_class, _ = value_and_gradient(backend, features, reduction="class")
    by_row, _ = value_and_gradient(backend, features, reduction="none")
    assert by_class.shape == (2, 3)
    assert by_row.shape == (2, 3, 4)
    torch.testing.assert_close(by_row.mean(-1), by_class)


@pytest.mark.parametrize("backend_dtype", DTYPES, ids=str)
def test_more_classes_than_a_16_bit_grid_axis(backend: str, backend_dtype: torch.dtype) -> None:
    classes = 7_000 if backend in INTERPRETED else 70_000  # an interpreter's grid has no axes
    features = make_features((classes, 2), 3, dtype=backend_dtype)
    value, gradient = value_and_gradient(backend, features)
    p = features.double().softmax(-1)
    d = p.log() - p.mean(1, keepdim=True).log()
    kl = (p * d).sum(-1, keepdim=True)
    assert_value(value, kl.mean(), backend_dtype)
    assert_gradient(gradient, p * (d - kl) / (2 * classes), backend_dtype)

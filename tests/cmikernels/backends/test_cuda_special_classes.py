"""The CUDA kernels on emulated GPUs: classes of one row, of none, of bad rows; unit gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cmikernels import ClassIndex, class_centroids
from cmikernels.backends import cuda, operations
from tests.support.compare import assert_gradient, value_and_gradient
from tests.support.emulated_gpu import Case, every_way
from tests.support.tables import make_features, make_labels, make_probabilities

pytestmark = pytest.mark.usefixtures("nan_filled_empty")


@pytest.mark.parametrize("weighted", [False, True], ids=["one weight", "a weight for each row"])
@every_way
def test_a_class_of_one_row_is_exactly_zero(
    emulate: Callable[..., None], case: Case, weighted: bool
) -> None:
    emulate(case.chip)
    rows, channels = case.rows, case.channels
    labels = make_labels((rows, 1, rows))
    z = make_features(len(labels), channels, 10.0, case.dtype)
    options = {"reduction": "none" if weighted else "class"}
    grad_value = make_features(1, len(labels), seed=3)[0] if weighted else None
    value, gradient = value_and_gradient("cuda", z, labels, grad_value, **options)
    assert value[rows if weighted else 1] == 0
    assert not gradient[rows].any()
    assert gradient[0].any()


@every_way
def test_an_empty_class_is_zero_and_disturbs_no_other(
    emulate: Callable[..., None], case: Case
) -> None:
    emulate(case.chip)
    rows, channels = case.rows, case.channels
    z = make_features(2 * rows, channels, dtype=case.dtype)
    full = ClassIndex(make_labels((rows, rows)))
    gappy = ClassIndex(make_labels((0, rows, 0, 0, rows, 0)), 6)
    expected, expected_gradient = value_and_gradient("cuda", z, full, reduction="class")
    value, gradient = value_and_gradient("cuda", z, gappy, reduction="class")
    assert value[[0, 2, 3, 5]].tolist() == [0] * 4
    assert not class_centroids(z, gappy, backend="cuda")[[0, 2, 3, 5]].any()
    # Not to the bit: the plan need not be the same.
    torch.testing.assert_close(value[[1, 4]], expected, rtol=1e-6, atol=0)
    assert_gradient(gradient, expected_gradient.double(), case.dtype)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=["nan", "inf", "-inf row"])
@pytest.mark.parametrize("shuffle_seed", [None, 8], ids=["sorted", "shuffled"])
@every_way
def test_a_bad_row_makes_its_class_nan_and_no_other(
    emulate: Callable[..., None], case: Case, shuffle_seed: int | None, bad: float
) -> None:
    emulate(case.chip)
    classes, rows, channels = case.classes, case.rows, case.channels
    labels = make_labels([rows] * classes, shuffle_seed)
    z = make_features(len(labels), channels, dtype=case.dtype)
    last = int((labels == 1).nonzero()[-1])
    z[last, slice(None) if bad == -math.inf else channels // 2] = bad
    value, gradient = value_and_gradient("cuda", z, labels, reduction="class")
    assert value.isnan().tolist() == [y == 1 for y in range(classes)]
    assert gradient[labels == 1].isnan().all()
    assert gradient[labels != 1].isfinite().all()


@every_way
def test_a_bad_row_against_given_centroids_is_nan_alone(
    emulate: Callable[..., None], case: Case
) -> None:
    emulate(case.chip)
    classes, rows, channels = case.classes, case.rows, case.channels
    z = make_features(classes * rows, channels, dtype=case.dtype)
    z[3, channels - 1] = math.nan
    options: dict[str, Any] = {"centroids": make_probabilities((classes, channels))}
    labels = make_labels([rows] * classes)
    value, gradient = value_and_gradient("cuda", z, labels, reduction="none", **options)
    assert value.isnan().nonzero().tolist() == [[3]]
    assert gradient.isnan().all(1).nonzero().tolist() == [[3]]
    assert gradient[torch.arange(len(z)) != 3].isfinite().all()


@every_way
def test_an_incoming_gradient_of_one_leaves_the_gradient_alone(
    emulate: Callable[..., None], case: Case
) -> None:
    from cmikernels.problem import Problem

    emulate(case.chip)
    classes, rows, channels = case.classes, case.rows, case.channels
    z = make_features((classes, rows), channels, dtype=case.dtype)
    problem = Problem(None, classes * rows, classes, None, 1.0, 1.0, "class")
    incoming = torch.ones(classes)
    incoming[1] = 2.0
    marked = torch.full_like(z, 7.0)
    assert operations.scale(cuda, marked, z, problem, incoming) is marked
    assert (marked[[0, 2]] == 7).all(), "it was made anew"
    assert torch.equal(marked[1], operations.backward(cuda, z, problem, incoming)[1])

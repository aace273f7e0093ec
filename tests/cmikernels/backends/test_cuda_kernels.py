"""The CUDA kernels on emulated GPUs: every way of the plan is right, whatever order threads run in.

A barrier that a kernel lacks shows as other bits under another schedule of its threads
(csrc/cuda/emulated/emulator.hpp).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, class_centroids
from tests.support.compare import assert_gradient, assert_value, value_and_gradient
from tests.support.emulated_gpu import WAYS, WAYS_TAKEN, Case, every_case, results_on
from tests.support.oracle import Oracle, torch_gradient
from tests.support.tables import DTYPES, HALF, make_features, make_labels, make_probabilities

pytestmark = pytest.mark.usefixtures("nan_filled_empty")


def test_every_way_is_taken() -> None:
    def taken(name: str) -> set[tuple[Any, ...]]:
        return {way[1:] for way in WAYS_TAKEN if way[0] == name}

    both = (False, True)
    kinds = ("classes", "slots", "wide", "tiny")
    assert taken("dtype") == set(itertools.product(kinds, DTYPES))
    assert {case.plan["kind"] for case in WAYS} == set(kinds)
    assert {cluster for _, cluster, _ in taken("cluster")} == {1, 2, 4, 8, 16}
    assert {stages for stages, _ in taken("stages")} == {0, 1, 2, 4}
    assert taken("copied in bulk") >= set(itertools.product((True,), DTYPES, both))
    assert taken("slots") >= {("slots", True), ("wide", True)}
    assert taken("several rows a team") == set(itertools.product(both, ("lanes", "warps"), both))
    forms = {(kind, form) for kind, form, *_ in taken("form") if kind != "wide"}
    assert forms == set(itertools.product(kinds[:2], ("full", "packed", "any"))) | {
        ("tiny", "full")
    }
    assert taken("halves") == set(itertools.product((4, 8), DTYPES))
    assert taken("teams without rows") == {(False,), (True,)}
    assert {lanes for kind, lanes in taken("lanes") if kind == "classes"} >= {1, 2, 4, 8, 32, 64}


def check(case: Case, z: Tensor, labels: Tensor, grouped: bool = False, **options: Any) -> None:
    """Value and gradient are the oracle's."""
    grad_value = options.pop("grad_value", None)
    classes = options.get("num_classes", int(labels.max()) + 1)
    features = z.view(classes, -1, z.shape[1]) if grouped else z
    if grouped:
        value, gradient = value_and_gradient("cuda", features, None, grad_value, **options)
    else:
        value, gradient = value_and_gradient("cuda", features, labels, grad_value, **options)
    oracle = Oracle(z, labels, **options)
    assert_value(value, oracle.value, z.dtype)
    plain = grad_value is None and "centroids" not in options and z.dtype not in HALF
    by_torch = torch_gradient(z, labels) if plain and "reduction" not in options else None
    expected = oracle.gradient(grad_value)
    assert_gradient(gradient.reshape(z.shape), expected, z.dtype, by_torch)


def misaligned(z: Tensor) -> Tensor:
    """The same numbers, one element beyond a multiple of 16 bytes."""
    moved = torch.cat([z.new_zeros(1), z.flatten()])[1:].view(z.shape)
    assert moved.data_ptr() % 16
    return moved


def with_gaps(z: Tensor) -> Tensor:
    """The same numbers, 16 bytes between rows."""
    gap = z.new_zeros(z.shape[0], 16 // z.itemsize)
    return torch.cat([z, gap], 1)[:, : z.shape[1]]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda z: z,
    "transposed": lambda z: z.t().contiguous().t(),
    "misaligned": misaligned,
    "with gaps": with_gaps,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@every_case
def test_equal_classes(
    emulate: Callable[..., None], case: Case, layout: Callable[[Tensor], Tensor]
) -> None:
    classes, rows, channels = case.classes, case.rows, case.channels
    emulate(case.chip)
    z = layout(make_features(classes * rows, channels, dtype=case.dtype))
    check(case, z, make_labels([rows] * classes), grouped=z.is_contiguous())


@pytest.mark.parametrize("layout", ["contiguous", "with gaps"])
@pytest.mark.parametrize("shuffle_seed", [None, 1], ids=["sorted", "shuffled"])
@every_case
def test_unequal_classes(
    emulate: Callable[..., None], case: Case, shuffle_seed: int | None, layout: str
) -> None:
    emulate(case.chip)
    z = LAYOUTS[layout](make_features(sum(case.unequal), case.channels, dtype=case.dtype))
    labels = make_labels(case.unequal, shuffle_seed)
    check(case, z, labels, num_classes=len(case.unequal))


@every_case
def test_a_value_for_each_class(emulate: Callable[..., None], case: Case) -> None:
    emulate(case.chip)
    z = make_features(sum(case.unequal), case.channels, dtype=case.dtype)
    grad_value = torch.linspace(-1, 2, len(case.unequal))
    options: dict[str, Any] = {"num_classes": len(case.unequal), "reduction": "class"}
    check(case, z, make_labels(case.unequal, 2), grad_value=grad_value, weight=1.5, **options)


@pytest.mark.parametrize("ragged", [False, True], ids=["equal", "unequal"])
@every_case
def test_a_weight_for_each_row(emulate: Callable[..., None], case: Case, ragged: bool) -> None:
    classes, rows, channels = case.classes, case.rows, case.channels
    emulate(case.chip)
    sizes = case.unequal if ragged else (rows,) * classes
    z = make_features(sum(sizes), channels, dtype=case.dtype)
    grad_value = make_features(1, sum(sizes), seed=3)[0]
    if not ragged:
        grad_value = grad_value.view(classes, rows)
    labels = make_labels(sizes, 4 if ragged else None)
    options: dict[str, Any] = {"reduction": "none", "temperature": 0.8}
    if ragged:
        options["num_classes"] = len(sizes)
    check(case, z, labels, grouped=not ragged, grad_value=grad_value, **options)


@every_case
def test_given_centroids(emulate: Callable[..., None], case: Case) -> None:
    emulate(case.chip)
    z = make_features(sum(case.unequal), case.channels, dtype=case.dtype)
    centroids = make_probabilities((len(case.unequal), case.channels))
    options: dict[str, Any] = {"num_classes": len(case.unequal), "centroids": centroids}
    if case.dtype == torch.float64:
        options["centroids"] = centroids.double()
    check(case, z, make_labels(case.unequal, 5), **options)


@every_case
def test_centroids(emulate: Callable[..., None], case: Case) -> None:
    emulate(case.chip)
    classes = len(case.unequal)
    z = make_features(sum(case.unequal), case.channels, dtype=case.dtype)
    labels = make_labels(case.unequal, 6)
    ours = class_centroids(z, labels, num_classes=classes, backend="cuda")
    expected = Oracle(z, labels, num_classes=classes).log_q.exp()
    tolerance = 1e-12 if case.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(ours.double(), expected, rtol=10 * tolerance, atol=tolerance)


@every_case
def test_the_schedule_of_threads_changes_no_bit(emulate: Callable[..., None], case: Case) -> None:
    z = make_features(sum(case.unequal), case.channels, dtype=case.dtype)
    classes = ClassIndex(make_labels(case.unequal, 7), len(case.unequal))
    row_weights = make_features(1, len(z), seed=3)[0]
    emulate(case.chip, 0)
    expected = results_on(z, classes, row_weights)
    for seed in range(1, 8):
        emulate(case.chip, seed)
        results = results_on(z, classes, row_weights)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True)), seed

"""What the Triton kernels do beyond the contract's small shapes: long classes, grids, skipping."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cmikernels.backends.triton.plan import Chip
from tests.support.compare import assert_gradient, assert_value, value_and_gradient
from tests.support.oracle import Oracle, torch_gradient
from tests.support.tables import DEVICE_OF, make_features, make_labels

pytest.importorskip("triton")
from cmikernels.backends.triton import launch
from cmikernels.backends.triton.plan import make_plan


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> Callable[[Chip], None]:
    """Make the backend plan for another chip than the one at hand."""
    return lambda other: monkeypatch.setattr(launch, "chip_of", lambda _: other)


@pytest.mark.parametrize(
    ("other", "kind"),
    [(Chip(2, 1 << 20, row_tile=16), "sweeps"), (Chip(1, 1 << 20, row_tile=16), "slots")],
    ids=["sweeps", "slots"],
)
def test_rounding_does_not_grow_with_the_class(
    chip: Callable[[Chip], None], other: Chip, kind: str
) -> None:
    rows, channels = (1300, 16) if kind == "sweeps" else (2100, 16)
    assert make_plan(rows, 1, rows, channels, 4, True, False, other).kind == kind
    chip(other)
    features, labels = make_features(rows, channels, 0.01), make_labels((rows,))
    value, gradient = value_and_gradient("triton", features, labels)
    oracle = Oracle(features, labels)
    assert_value(value, oracle.value, features.dtype)
    by_torch = torch_gradient(features, labels)
    assert_gradient(gradient, oracle.gradient(), features.dtype, by_torch)


@pytest.mark.parametrize("reduction", ["mean", "class"])
@pytest.mark.parametrize("shape", [(3, 4, 8), (3, 9, 64), (2, 300, 150), (2, 2, 8200)], ids=str)
def test_an_incoming_gradient_of_one_leaves_the_gradient_alone(
    shape: tuple[int, ...], reduction: str
) -> None:
    from cmikernels.backends import operations, triton
    from cmikernels.problem import Problem

    features = make_features(shape[:2], shape[2]).to(DEVICE_OF["triton"])
    problem = Problem(None, shape[0] * shape[1], shape[0], None, 1.0, 1.0, reduction)
    size = shape[:1] if reduction == "class" else ()
    marked = torch.full_like(features, 7.0)
    one = torch.ones(size, device=features.device)
    assert operations.scale(triton, marked, features, problem, one) is marked
    assert (marked == 7).all(), "it was made anew"
    twice = operations.scale(triton, marked.clone(), features, problem, 2 * one)
    assert torch.equal(twice, operations.backward(triton, features, problem, 2 * one))

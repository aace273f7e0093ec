"""What the Triton kernels do beyond the contract's small shapes: long classes, grids, skipping."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cmikernels.backends.triton.plan import Chip
from tests.support.compare import assert_gradient, assert_value, value_and_gradient
from tests.support.oracle import Oracle, torch_gradient
from tests.support.tables import DEVICE_OF, make_features, make_labels

pytest.importorskip("triton")
from cmikernels.backends.triton import launch
from cmikernels.backends.triton.plan import make_plan
from cmikernels.backends.triton.tile import DIRECT_FORM_FLOOR

ROOT = Path(__file__).parents[3]


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


FOR_THE_CAREFUL_FORM: dict[str, Callable[[Tensor], Tensor]] = {
    "minus infinity": lambda z: torch.where(z > 1, -torch.inf, z),
    "far from zero": lambda z: (z * 8).round() / 4 + 3e6,
    "far apart": lambda z: z.round() * 1e30,
    "the largest numbers": lambda z: z.sign() * torch.finfo(z.dtype).max,
    "one row of them": lambda z: torch.cat([z[:-1], z[-1:].sign() * 3e38]),
}


@pytest.mark.parametrize("make", FOR_THE_CAREFUL_FORM.values(), ids=FOR_THE_CAREFUL_FORM)
@pytest.mark.parametrize("kind", ["sweeps", "slots"])
def test_what_the_lean_form_cannot_do_is_done_with_care(
    chip: Callable[[Chip], None], kind: str, make: Callable[[Tensor], Tensor]
) -> None:
    other = Chip(1, 1 << 20, row_tile=256)
    rows = (9, 4) if kind == "sweeps" else (40, 1, 2, 1, 2, 1, 2)
    assert make_plan(sum(rows), len(rows), max(rows), 64, 4, True, False, other).kind == kind
    chip(other)
    features, labels = make(make_features(sum(rows), 64)), make_labels(rows)
    oracle = Oracle(features, labels)
    value, gradient = value_and_gradient("triton", features, labels)
    assert_value(value, oracle.value, features.dtype)
    assert_gradient(gradient, oracle.gradient(), features.dtype)


@pytest.mark.parametrize("weight", [1e-12, 1e15])
def test_a_weight_of_any_size_scales_the_gradient_alone(
    chip: Callable[[Chip], None], weight: float
) -> None:
    chip(Chip(1, 1 << 20, row_tile=256))
    features, labels = make_features(13, 64), make_labels((9, 4))
    features[2, 5] = -1e28  # with the larger weight it would overflow, beside a probability of 0
    value, gradient = value_and_gradient("triton", features, labels, weight=weight)
    oracle = Oracle(features, labels)
    assert_value(value / weight, oracle.value, features.dtype)
    assert_gradient(gradient / weight, oracle.gradient(), features.dtype)


@pytest.mark.parametrize("reduction", ["mean", "class", "none"])
@pytest.mark.parametrize("spread", [0.15, 0.3, 0.5, 0.6, 0.7, 0.8])
def test_the_value_is_as_accurate_between_the_forms(
    chip: Callable[[Chip], None], spread: float, reduction: str
) -> None:
    chip(Chip(1, 1 << 20, row_tile=512))
    features, labels = make_features(30, 512, spread), make_labels((10, 10, 10))
    value, _ = value_and_gradient("triton", features, labels, reduction=reduction)
    assert_value(value, Oracle(features, labels, reduction=reduction).value, features.dtype)


def test_the_value_changes_its_form_where_that_of_the_other_kernels_does() -> None:
    header = (ROOT / "csrc" / "math" / "cmi_math.hpp").read_text()
    floors = re.findall(r" direct_form_floor = ([\d.]+)f?;", header)
    assert [float(floor) for floor in floors] == 2 * [DIRECT_FORM_FLOOR.value]


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

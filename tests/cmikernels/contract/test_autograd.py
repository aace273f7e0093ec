"""The op as a citizen of autograd: twice backward, second order, checkpoints, autocast, DDP."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, cmi_value_and_grad, fused_cmi
from tests.support.compare import assert_gradient, relative_error
from tests.support.oracle import Oracle
from tests.support.tables import (
    DEVICE_OF,
    DTYPES,
    INTERPRETED,
    REDUCTIONS,
    make_features,
    make_labels,
    make_probabilities,
)

LABELS = make_labels((4, 1, 0, 6), shuffle_seed=1)
GIVEN = [False, True]
GIVEN_IDS = ["own centroids", "given centroids"]


def leaf(backend: str, dtype: torch.dtype = torch.float32, channels: int = 6) -> Tensor:
    return make_features(11, channels, dtype=dtype).to(DEVICE_OF[backend]).requires_grad_()


def options_on(backend: str, given: bool, channels: int = 6, **options: Any) -> dict[str, Any]:
    centroids = make_probabilities((4, channels)).to(DEVICE_OF[backend]) if given else None
    return {"centroids": centroids, "num_classes": 4, "backend": backend, **options}


def ramp(value: Tensor, start: float = -1.0) -> Tensor:
    """A different incoming gradient for every entry of the value."""
    return torch.linspace(start, 2, value.numel()).to(value).view_as(value)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("given", GIVEN, ids=GIVEN_IDS)
def test_gradcheck(backend: str, given: bool, reduction: str) -> None:
    z = leaf(backend, torch.float64)
    labels = LABELS.to(z.device)
    options = options_on(backend, given, temperature=0.7, weight=3.0, reduction=reduction)
    assert torch.autograd.gradcheck(
        lambda x: fused_cmi(x, labels, **options), (z,), fast_mode=backend in INTERPRETED
    )


# Deterministic, for gradgradcheck compares two backwards to the bit, and index_add on GPUs has not
# the same twice.
@pytest.mark.usefixtures("nan_filled_empty")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("given", GIVEN, ids=GIVEN_IDS)
def test_gradgradcheck(backend: str, given: bool, reduction: str) -> None:
    z = leaf(backend, torch.float64)
    labels = LABELS.to(z.device)
    options = options_on(backend, given, temperature=0.7, weight=3.0, reduction=reduction)
    assert torch.autograd.gradgradcheck(
        lambda x: fused_cmi(x, labels, **options), (z,), fast_mode=backend in INTERPRETED
    )


@pytest.mark.usefixtures("nan_filled_empty")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_of_grouped_features(backend: str, reduction: str) -> None:
    z = make_features((2, 3, 2), 4, dtype=torch.float64).to(DEVICE_OF[backend]).requires_grad_()
    function = lambda x: fused_cmi(x, reduction=reduction, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(function, (z,), fast_mode=backend in INTERPRETED)
    assert torch.autograd.gradgradcheck(function, (z,), fast_mode=backend in INTERPRETED)


def test_second_order_at_a_minus_infinity_is_finite(backend: str) -> None:
    z = leaf(backend, torch.float64)
    with torch.no_grad():
        z[(LABELS == 0).to(z.device), 2] = -torch.inf
    value = fused_cmi(z, LABELS.to(z.device), backend=backend)
    (first,) = torch.autograd.grad(value, z, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), z)
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_double_backward_of_float32_agrees_with_float64(backend: str) -> None:
    def gradient_penalty(z: Tensor) -> Tensor:
        value = fused_cmi(z, LABELS.to(z.device), backend=backend)
        (first,) = torch.autograd.grad(value, z, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), z)
        return second

    narrow = leaf(backend)
    wide = narrow.detach().double().requires_grad_()
    assert relative_error(gradient_penalty(narrow), gradient_penalty(wide)) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_second_backward_gives_the_same_gradient(
    backend: str, reduction: str, dtype: torch.dtype
) -> None:
    z = leaf(backend, dtype)
    value = fused_cmi(z, LABELS.to(z.device), reduction=reduction, backend=backend)
    grad_value = ramp(value)
    (first,) = torch.autograd.grad(value, z, grad_value, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(value, z, grad_value)
    assert torch.equal(first, kept)
    assert torch.equal(second, first), "not the same to the last bit"
    assert second.data_ptr() != first.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_three_backwards_with_different_incoming_gradients(
    backend: str, reduction: str, dtype: torch.dtype
) -> None:
    z = leaf(backend, dtype)
    value = fused_cmi(z, LABELS.to(z.device), reduction=reduction, backend=backend)
    oracle = Oracle(z, LABELS, reduction=reduction, num_classes=4)
    incoming = [ramp(value, -1.0), torch.ones_like(value), ramp(value, 5.0)]
    gradients = [torch.autograd.grad(value, z, g, retain_graph=True)[0] for g in incoming]
    for grad_value, gradient in zip(incoming, gradients, strict=True):
        assert_gradient(gradient.cpu(), oracle.gradient(grad_value), dtype)


def test_gradients_accumulate(backend: str) -> None:
    z = leaf(backend)
    value = fused_cmi(z, LABELS.to(z.device), weight=2.0, backend=backend)
    torch.autograd.backward(value, retain_graph=True)
    assert z.grad is not None
    once = z.grad.clone()
    torch.autograd.backward(value)
    torch.testing.assert_close(z.grad, 2 * once)


def test_writing_to_the_received_gradient_does_not_reach_the_next(backend: str) -> None:
    z = leaf(backend)
    value = fused_cmi(z, LABELS.to(z.device), backend=backend)
    (first,) = torch.autograd.grad(value, z, retain_graph=True)
    expected = first.clone()
    first.fill_(torch.nan)
    (second,) = torch.autograd.grad(value, z)
    assert torch.equal(second, expected)


def test_a_backward_after_the_graph_is_freed_is_refused(backend: str) -> None:
    z = leaf(backend)
    value = fused_cmi(z, LABELS.to(z.device), backend=backend)
    torch.autograd.grad(value, z)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("what", ["features", "labels", "index", "centroids"])
def test_inputs_changed_before_the_backward_never_give_a_wrong_gradient(
    backend: str, what: str, reduction: str, dtype: torch.dtype
) -> None:
    """A moving average of centroids may be updated at any time: unharmed or refused, not wrong."""
    z = leaf(backend, dtype)
    labels = LABELS.to(z.device).clone()
    centroids = make_probabilities((4, 6)).to(z.device) if what == "centroids" else None
    options: dict[str, Any] = {"num_classes": 4, "centroids": centroids, "reduction": reduction}
    oracle = Oracle(z, labels, **options)
    if what == "index":
        options["num_classes"] = None
    classes = ClassIndex(labels, 4) if what == "index" else labels
    features = z * 1
    value = fused_cmi(features, classes, backend=backend, **options)
    expected = oracle.gradient(ramp(value))
    changed = {"features": features, "centroids": centroids}.get(what, labels)
    assert changed is not None
    with torch.no_grad():
        changed.copy_(changed.flip(0))
    with contextlib.suppress(RuntimeError):  # autograd's own refusal of tensors saved and changed
        (gradient,) = torch.autograd.grad(value, z, ramp(value))
        assert_gradient(gradient.cpu(), expected, dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("given", GIVEN, ids=GIVEN_IDS)
def test_nothing_of_the_callers_is_modified(backend: str, given: bool, reduction: str) -> None:
    z = leaf(backend)
    labels = LABELS.to(z.device)
    options = options_on(backend, given, reduction=reduction, weight=2.0)
    if given:
        first = options["centroids"][0]
        first[1] += first[0]
        first[0] = 0.0  # which counts as the smallest normal number
    value = fused_cmi(z, labels, **options)
    mine = [z, labels, value, ramp(value)]
    if given:
        mine.append(options["centroids"])
    before = [x.detach().clone() for x in mine]
    fused_cmi(z, labels, **options)
    cmi_value_and_grad(z, labels, **options)
    torch.autograd.grad(value, z, mine[3], retain_graph=True)
    torch.autograd.grad(value, z, mine[3])
    for now, then in zip(mine, before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_graph_where_gradients_are_off(backend: str, mode: Any) -> None:
    z = leaf(backend)
    with mode():
        value = fused_cmi(z, LABELS.to(z.device), backend=backend)
    assert not value.requires_grad
    assert value.item() == pytest.approx(float(Oracle(z, LABELS).value), rel=1e-6)


def test_value_and_grad_works_under_no_grad(backend: str) -> None:
    z = leaf(backend)
    with torch.no_grad():
        _, gradient = cmi_value_and_grad(z, LABELS.to(z.device), backend=backend)
    assert relative_error(gradient, Oracle(z, LABELS).gradient()) < 1e-5


def test_features_without_a_gradient_give_a_value_without_one(backend: str) -> None:
    z = leaf(backend).detach()
    assert not fused_cmi(z, LABELS.to(z.device), backend=backend).requires_grad

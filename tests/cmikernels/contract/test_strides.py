"""Features and incoming gradients of any strides give what their contiguous copies give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cmikernels import fused_cmi
from tests.support.compare import assert_gradient, assert_value, relative_error
from tests.support.oracle import Oracle, torch_gradient
from tests.support.tables import DEVICE_OF, DTYPES, FUSED, make_features, make_labels

ROWS, CHANNELS = 24, 40
LABELS = make_labels((11, 1, 12), shuffle_seed=0)


def negated_view(x: Tensor) -> Tensor:
    """A float tensor that stores the opposite of what it holds (torch's negative bit)."""
    view = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert view.is_neg()
    return view


# Made on the device: a move there would make what is not dense contiguous.
FEATURES: dict[str, Callable[[str], Tensor]] = {
    "transposed": lambda on: make_features(CHANNELS, ROWS).to(on).t(),
    "every second column": lambda on: make_features(ROWS, 2 * CHANNELS).to(on)[:, ::2],
    "every third row": lambda on: make_features(3 * ROWS, CHANNELS).to(on)[::3],
    "narrowed": lambda on: make_features(ROWS + 3, CHANNELS + 5).to(on)[
        2 : ROWS + 2, 3 : CHANNELS + 3
    ],
    "unaligned": lambda on: (
        make_features(1, ROWS * CHANNELS + 1).to(on)[0, 1:].view(ROWS, CHANNELS)
    ),
    "overlapping": lambda on: make_features(1, 200).to(on)[0].as_strided((ROWS, CHANNELS), (3, 1)),
    "negative bit": lambda on: negated_view(make_features(ROWS, CHANNELS).to(on)),
}


@pytest.mark.parametrize("shuffled", [False, True], ids=["sorted", "shuffled"])
@pytest.mark.parametrize("name", FEATURES)
def test_strided_features(backend: str, name: str, shuffled: bool) -> None:
    labels = LABELS if shuffled else LABELS.sort().values
    device = DEVICE_OF[backend]
    z = FEATURES[name](device).detach().requires_grad_()
    assert z.is_neg() or not z.is_contiguous() or z.data_ptr() % 16
    value = fused_cmi(z, labels.to(device), backend=backend)
    (gradient,) = torch.autograd.grad(value, z)
    oracle = Oracle(z, labels)
    assert_value(value.cpu(), oracle.value, z.dtype)
    by_torch = torch_gradient(z.cpu(), labels)
    assert_gradient(gradient.cpu(), oracle.gradient(), z.dtype, by_torch)


@pytest.mark.parametrize("stored", [(1, CHANNELS), (ROWS, 1), (1, 1)], ids=str)
def test_expanded_features_carry_no_information(backend: str, stored: tuple[int, int]) -> None:
    device = DEVICE_OF[backend]
    z = make_features(*stored).to(device).expand(ROWS, CHANNELS).requires_grad_()
    value = fused_cmi(z, LABELS.to(device), backend=backend)
    (gradient,) = torch.autograd.grad(value, z)
    assert abs(float(value.detach())) < 1e-12
    assert float(gradient.abs().max()) < 1e-8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_features_of_every_dtype(backend: str, dtype: torch.dtype) -> None:
    device = DEVICE_OF[backend]
    z = make_features(ROWS, 2 * CHANNELS, dtype=dtype).to(device)[:, 1::2].requires_grad_()
    value = fused_cmi(z, LABELS.to(device), backend=backend)
    (gradient,) = torch.autograd.grad(value, z)
    oracle = Oracle(z, LABELS)
    assert_value(value.cpu(), oracle.value, dtype)
    assert_gradient(gradient.cpu(), oracle.gradient(), dtype)


@pytest.mark.parametrize(
    "order", [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 1, 3), (3, 1, 2, 0), (2, 3, 0, 1)], ids=str
)
def test_permuted_grouped_features(backend: str, order: tuple[int, ...]) -> None:
    device = DEVICE_OF[backend]
    shape = (2, 3, 4, 10)
    stored = [shape[order.index(axis)] for axis in range(4)]
    z = make_features(stored[:-1], stored[-1]).to(device).permute(order).requires_grad_()
    assert z.shape == shape
    value = fused_cmi(z, backend=backend)
    (gradient,) = torch.autograd.grad(value, z)
    oracle = Oracle(z.reshape(24, 10), make_labels([4] * 6))
    assert_value(value.cpu(), oracle.value, z.dtype)
    assert_gradient(gradient.cpu(), oracle.gradient(), z.dtype)


def test_one_network_expanded_to_several(backend: str) -> None:
    z = make_features((3, 4), 10).to(DEVICE_OF[backend]).expand(2, 3, 4, 10)
    value = fused_cmi(z, reduction="class", backend=backend)
    assert torch.equal(value[0], value[1])
    assert_value(
        value[0].cpu(),
        Oracle(z[0].reshape(12, 10), make_labels([4] * 3), reduction="class").value,
        z.dtype,
    )


GRADIENTS: dict[str, Callable[[str], Tensor]] = {
    "expanded from one number": lambda on: torch.full((), 0.3, device=on).expand(ROWS),
    "every second of": lambda on: make_features(1, 2 * ROWS).to(on)[0, ::2],
    "column of": lambda on: make_features(ROWS, 3).to(on)[:, 1],
    "negative bit": lambda on: negated_view(make_features(1, ROWS).to(on)[0]),
    "negative bit, contiguous": lambda on: torch._neg_view(make_features(1, ROWS).to(on)[0]),
    "zero": lambda on: torch.zeros(ROWS, device=on),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_strided_incoming_gradients_of_rows(backend: str, name: str) -> None:
    device = DEVICE_OF[backend]
    z = make_features(ROWS, CHANNELS).to(device).requires_grad_()
    value = fused_cmi(z, LABELS.to(device), reduction="none", backend=backend)
    grad_value = GRADIENTS[name](device)
    (gradient,) = torch.autograd.grad(value, z, grad_value)
    expected = Oracle(z, LABELS, reduction="none").gradient(grad_value)
    assert relative_error(gradient, expected) <= 1e-5


def test_an_incoming_number_with_the_negative_bit(backend: str) -> None:
    device = DEVICE_OF[backend]
    z = make_features(ROWS, CHANNELS).to(device).requires_grad_()
    value = fused_cmi(z, LABELS.to(device), backend=backend)
    grad_value = negated_view(torch.tensor(3.0, device=device))
    (gradient,) = torch.autograd.grad(value, z, grad_value)
    assert relative_error(gradient, 3 * Oracle(z, LABELS).gradient()) <= 1e-5


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("grouped", [False, True], ids=["labels", "grouped"])
def test_strided_incoming_gradients_of_classes(backend: str, name: str, grouped: bool) -> None:
    device = DEVICE_OF[backend]
    labels = make_labels([2] * ROWS)
    z = make_features((ROWS, 2), 9).to(device)
    z = (z if grouped else z.view(2 * ROWS, 9)).requires_grad_()
    value = fused_cmi(z, None if grouped else labels.to(device), reduction="class", backend=backend)
    grad_value = GRADIENTS[name](device)
    (gradient,) = torch.autograd.grad(value, z, grad_value)
    expected = Oracle(z.reshape(2 * ROWS, 9), labels, reduction="class").gradient(grad_value)
    assert relative_error(gradient.reshape(2 * ROWS, 9), expected) <= 1e-5


@pytest.mark.parametrize("reduction", ["class", "none"])
def test_transposed_incoming_gradients_of_several_networks(backend: str, reduction: str) -> None:
    device = DEVICE_OF[backend]
    z = make_features((2, 3, 4), 10).to(device).requires_grad_()
    value = fused_cmi(z, reduction=reduction, backend=backend)
    reversed_shape = tuple(reversed(value.shape))
    grad_value = make_features(reversed_shape[:-1], reversed_shape[-1]).to(device)
    grad_value = grad_value.permute(*reversed(range(value.dim())))
    assert not grad_value.is_contiguous()
    (gradient,) = torch.autograd.grad(value, z, grad_value)
    oracle = Oracle(z.reshape(24, 10), make_labels([4] * 6), reduction=reduction)
    expected = oracle.gradient(grad_value).reshape(z.shape)
    assert relative_error(gradient, expected) <= 1e-5


def test_gradient_reaches_the_base_of_an_expanded_view(backend: str) -> None:
    device = DEVICE_OF[backend]
    base = make_features(3, CHANNELS).to(device).requires_grad_()
    z = base[:, None].expand(3, 4, CHANNELS).reshape(12, CHANNELS)
    labels = torch.tensor([0, 1, 0, 1] * 3).to(device)
    (gradient,) = torch.autograd.grad(fused_cmi(z, labels, backend=backend), base)
    expected = Oracle(z, labels).gradient().view(3, 4, CHANNELS).sum(1)
    assert relative_error(gradient, expected) <= 1e-5


@pytest.mark.parametrize("backend_name", FUSED)
def test_rows_more_than_2_to_the_31_elements_apart(backend_name: str) -> None:
    """Over memory that is reserved and, but for the rows, never touched."""
    step = 3 * 2**28
    device = DEVICE_OF[backend_name]
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 8 * step:
        pytest.skip(f"needs {8 * step >> 30} GiB of free GPU memory")
    storage = torch.empty(3 * step + 64, dtype=torch.bfloat16, device=device)
    z = storage.as_strided((4, 64), (step, 1))
    rows = make_features(4, 64, dtype=torch.bfloat16)
    z.copy_(rows)
    labels = torch.tensor([0, 1, 0, 1])
    z = z.detach().requires_grad_()
    value = fused_cmi(z, labels.to(z.device), backend=backend_name)
    oracle = Oracle(rows, labels)
    assert_value(value.cpu(), oracle.value, rows.dtype)
    (gradient,) = torch.autograd.grad(value, z)
    assert_gradient(gradient.cpu(), oracle.gradient(), rows.dtype)

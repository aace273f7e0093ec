"""The registered op: opcheck, and torch.compile without graph breaks or needless recompilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._subclasses.fake_tensor import FakeTensorMode

import cmikernels.compiled
from cmikernels import ClassIndex, CMILoss, fused_cmi
from tests.support.compare import assert_gradient, relative_error
from tests.support.oracle import Oracle
from tests.support.tables import (
    DEVICE_OF,
    DTYPES,
    REDUCTIONS,
    make_features,
    make_labels,
    make_probabilities,
)

LABELS = make_labels((4, 1, 0, 6), shuffle_seed=1)
Loss = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Loss, *, compiler: str = "aot_eager", dynamic: bool | None = None) -> Loss:
    return torch.compile(function, fullgraph=True, backend=compiler, dynamic=dynamic)


def op_arguments(backend: str, dtype: torch.dtype, how: str, reduction: str) -> tuple[Any, ...]:
    """Positional arguments of `cmikernels::cmi`, up to and with `backend`."""
    device = DEVICE_OF[backend]
    z = make_features(11, 6, dtype=dtype).to(device).requires_grad_()
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    centroids = make_probabilities((4, 6)).to(device, arithmetic) if how == "centroids" else None
    options = (None, 4, 0.7, 3.0, reduction, backend)
    if how == "grouped":
        grouped = make_features((4, 3), 6, dtype=dtype).to(device).requires_grad_()
        return grouped, None, None, None, None, *options
    if how == "index":
        index = ClassIndex(LABELS.to(device), 4)
        parts = index.labels, index.order, index.offsets
        return z, *parts, None, index.largest, *options[1:]
    return z, LABELS.to(device), None, None, centroids, *options


HOW = ["labels", "index", "grouped", "centroids"]


# Reduction "none" cannot keep a gradient: its row weights are not known in the forward.
FORWARD = [(reduction, False) for reduction in REDUCTIONS] + [
    (reduction, True) for reduction in REDUCTIONS if reduction != "none"
]


@pytest.mark.parametrize(("reduction", "keep_gradient"), FORWARD)
@pytest.mark.parametrize("how", HOW)
def test_opcheck_of_forward(backend: str, how: str, reduction: str, keep_gradient: bool) -> None:
    arguments = op_arguments(backend, torch.float32, how, reduction)
    torch.library.opcheck(torch.ops.cmikernels.cmi, (*arguments, keep_gradient))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_of_forward_of_every_dtype(backend: str, dtype: torch.dtype) -> None:
    arguments = op_arguments(backend, dtype, "labels", "class")
    torch.library.opcheck(torch.ops.cmikernels.cmi, (*arguments, True))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("how", HOW)
def test_opcheck_of_backward(backend: str, how: str, reduction: str) -> None:
    arguments = op_arguments(backend, torch.float32, how, reduction)
    value, _ = torch.ops.cmikernels.cmi(*arguments, False)
    detached = tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments)
    torch.library.opcheck(
        torch.ops.cmikernels.cmi_backward, (*detached, torch.rand_like(value.detach()))
    )


def check_equal_to_eager(backend: str, loss: Loss, *arguments: Any, compiler: str) -> None:
    """Value and gradient of the first argument, compiled and eager."""
    z = arguments[0].to(DEVICE_OF[backend]).requires_grad_()
    rest = [x.to(z.device) if isinstance(x, (Tensor, ClassIndex)) else x for x in arguments[1:]]
    eager = loss(z, *rest)
    grad_value = torch.linspace(-1, 2, eager.numel()).to(eager).view_as(eager)
    (expected,) = torch.autograd.grad(eager, z, grad_value)
    value = compiled(loss, compiler=compiler)(z, *rest)
    (gradient,) = torch.autograd.grad(value, z, grad_value)
    torch.testing.assert_close(value, eager, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled_labels_equal_eager(backend: str, reduction: str, dtype: torch.dtype) -> None:
    def loss(z: Tensor, labels: Tensor) -> Tensor:
        return fused_cmi(z * 2, labels, num_classes=4, reduction=reduction, backend=backend)

    check_equal_to_eager(
        backend, loss, make_features(11, 6, dtype=dtype), LABELS, compiler="aot_eager"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled_groups_equal_eager(backend: str, reduction: str, dtype: torch.dtype) -> None:
    def loss(z: Tensor) -> Tensor:
        return fused_cmi(z * 2, reduction=reduction, weight=3.0, backend=backend)

    check_equal_to_eager(
        backend, loss, make_features((2, 3, 4), 6, dtype=dtype), compiler="aot_eager"
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled_centroids_equal_eager(backend: str, reduction: str) -> None:
    def loss(z: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
        return fused_cmi(z, labels, centroids=centroids, reduction=reduction, backend=backend)

    centroids = make_probabilities((4, 6))
    check_equal_to_eager(
        backend, loss, make_features(11, 6), LABELS, centroids, compiler="aot_eager"
    )


@pytest.mark.parametrize("captured", [False, True], ids=["argument", "captured"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiled_class_index_equals_eager(backend: str, reduction: str, captured: bool) -> None:
    index = ClassIndex(LABELS.to(DEVICE_OF[backend]), 4)

    def with_argument(z: Tensor, classes: ClassIndex) -> Tensor:
        return fused_cmi(z, classes, reduction=reduction, backend=backend)

    def with_captured(z: Tensor) -> Tensor:
        return fused_cmi(z, index, reduction=reduction, backend=backend)

    features = make_features(11, 6)
    if captured:
        check_equal_to_eager(backend, with_captured, features, compiler="aot_eager")
    else:
        check_equal_to_eager(backend, with_argument, features, index, compiler="aot_eager")


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the gradient in the backward, as on a GPU, also for float32 on the CPU."""
    monkeypatch.setattr(cmikernels.compiled, "_keeps_gradient", lambda *_: False)


@pytest.mark.parametrize(("device", "kept"), [("cpu", True), ("cuda", False)])
def test_only_a_cpu_makes_the_gradient_in_the_forward(device: str, kept: bool) -> None:
    with FakeTensorMode():
        z = torch.empty(2, 3, 4, device=device).requires_grad_()
        assert cmikernels.compiled._keeps_gradient(z, "mean") is kept


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_gradient_made_in_the_backward_equals_eager(backend: str, reduction: str) -> None:
    def loss(z: Tensor, labels: Tensor) -> Tensor:
        return fused_cmi(z, labels, num_classes=4, reduction=reduction, weight=3.0, backend=backend)

    check_equal_to_eager(backend, loss, make_features(11, 6), LABELS, compiler="aot_eager")


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_on_a_gpu_only_the_backward_makes_a_tensor_of_the_features_size(reduction: str) -> None:
    """So the features are read twice and the gradient is written once."""
    z = make_features((3, 5), 64).requires_grad_()
    made: list[list[object]] = []  # by the forward, and by the backward

    def compiler(graph: torch.fx.GraphModule, _: object) -> object:
        calls = [node for node in graph.graph.nodes if node.op == "call_function"]
        shapes = [(node.target, getattr(node.meta["val"], "shape", None)) for node in calls]
        made.append([target for target, shape in shapes if shape == z.shape])
        return make_boxed_func(graph.forward)

    def loss(x: Tensor) -> Tensor:
        return fused_cmi(x, weight=3.0, reduction=reduction).sum()

    torch.autograd.grad(torch.compile(loss, backend=aot_autograd(fw_compiler=compiler))(z), z)
    assert made == [[], [torch.ops.cmikernels.cmi_backward.default]]


def test_inductor_inside_a_network(backend: str) -> None:
    def loss(z: Tensor, labels: Tensor) -> Tensor:
        return 2 * fused_cmi(z.tanh() * 3, labels, backend=backend) + z.square().mean()

    check_equal_to_eager(backend, loss, make_features(11, 6), LABELS, compiler="inductor")


def test_compiled_module(backend: str) -> None:
    module = CMILoss(num_classes=4, weight=3.0, temperature=2.0, backend=backend)
    check_equal_to_eager(backend, module, make_features(11, 6), LABELS, compiler="aot_eager")


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_other_numbers_of_rows_need_no_other_compilation(backend: str, reduction: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def loss(z: Tensor, labels: Tensor) -> Tensor:
        return fused_cmi(z, labels, num_classes=4, reduction=reduction, backend=backend).sum()

    fast = torch.compile(loss, fullgraph=True, backend=counter, dynamic=True)
    compilations = 0
    for rows in (11, 30, 7, 64):
        labels = torch.arange(rows) % 4
        z = make_features(rows, 6).to(DEVICE_OF[backend]).requires_grad_()
        (gradient,) = torch.autograd.grad(fast(z, labels.to(z.device)), z)
        expected = Oracle(z, labels, reduction=reduction).gradient()
        assert_gradient(gradient.cpu(), expected, z.dtype)
        compilations = compilations or counter.frame_count
    assert counter.frame_count == compilations


def test_other_shapes_of_groups_need_no_other_compilation(backend: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(
        lambda z: fused_cmi(z, reduction="class", backend=backend),
        fullgraph=True,
        backend=counter,
        dynamic=True,
    )
    compilations = 0
    for classes, rows, channels in ((3, 4, 5), (6, 2, 9), (2, 7, 33)):
        z = make_features((classes, rows), channels).to(DEVICE_OF[backend]).requires_grad_()
        (gradient,) = torch.autograd.grad(fast(z).sum(), z)
        labels = make_labels([rows] * classes)
        oracle = Oracle(z.reshape(-1, channels), labels, reduction="class")
        assert_gradient(gradient.cpu(), oracle.gradient(), z.dtype)
        compilations = compilations or counter.frame_count
    assert counter.frame_count == compilations


@pytest.mark.parametrize("gradient_in_forward", [True, False])
def test_a_weight_that_changes_every_step_is_not_compiled_in(
    backend: str, gradient_in_forward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled for its first value, then once more for any value."""
    monkeypatch.setattr(cmikernels.compiled, "_keeps_gradient", lambda *_: gradient_in_forward)
    counter = CompileCounterWithBackend("aot_eager")

    def loss(z: Tensor, labels: Tensor, weight: float) -> Tensor:
        return fused_cmi(z, labels, weight=weight, backend=backend)

    fast = torch.compile(loss, fullgraph=True, backend=counter)
    z = make_features(11, 6).to(DEVICE_OF[backend]).requires_grad_()
    compilations = []
    for weight in (0.5, 1.25, 2.5, 10.0, 2000.0):
        value = fast(z, LABELS.to(z.device), weight)
        (gradient,) = torch.autograd.grad(value, z)
        oracle = Oracle(z, LABELS, weight=weight)
        assert value.item() == pytest.approx(float(oracle.value), rel=1e-6)
        assert_gradient(gradient.cpu(), oracle.gradient(), z.dtype)
        compilations.append(counter.frame_count)
    assert compilations[-1] == compilations[1]


def test_other_labels_are_read_at_every_call(backend: str) -> None:
    fast = compiled(lambda z, y: fused_cmi(z, y, backend=backend))
    z = make_features(12, 6).to(DEVICE_OF[backend])
    for labels in (torch.arange(12) % 2, torch.arange(12) % 5, torch.arange(12) // 4):
        value = fast(z, labels.to(z.device))
        assert float(value) == pytest.approx(float(Oracle(z, labels).value), rel=1e-6)


def test_compiled_under_no_grad(backend: str) -> None:
    z = make_features(11, 6).to(DEVICE_OF[backend]).requires_grad_()
    fast = compiled(lambda x, y: fused_cmi(x, y, backend=backend))
    with torch.no_grad():
        value = fast(z, LABELS.to(z.device))
    assert not value.requires_grad
    assert float(value) == pytest.approx(float(Oracle(z, LABELS).value), rel=1e-6)


def test_compiled_under_autocast(backend: str) -> None:
    device = DEVICE_OF[backend]
    linear = torch.nn.Linear(6, 8).to(device)

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            return fused_cmi(linear(x), labels, backend=backend)

    x, labels = make_features(11, 6).to(device), LABELS.to(device)
    value = compiled(loss)(x, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(x, labels))


def test_second_backward_of_a_compiled_call(backend: str) -> None:
    z = make_features(11, 6).to(DEVICE_OF[backend]).requires_grad_()
    value = compiled(lambda x, y: fused_cmi(x, y, backend=backend))(z, LABELS.to(z.device))
    (first,) = torch.autograd.grad(value, z, torch.tensor(3.0).to(value), retain_graph=True)
    (second,) = torch.autograd.grad(value, z, torch.tensor(-2.0).to(value))
    expected = Oracle(z, LABELS).gradient()
    assert relative_error(first, 3 * expected) < 1e-5
    assert relative_error(second, -2 * expected) < 1e-5


def test_bad_labels_are_refused_by_the_compiled_call(backend: str) -> None:
    fast = compiled(lambda z, y: fused_cmi(z, y, num_classes=4, backend=backend))
    z = make_features(11, 6).to(DEVICE_OF[backend])
    with pytest.raises(ValueError, match=r"classes: labels must lie in .* = \[0, 4\), got 9"):
        fast(z, torch.full((11,), 9).to(z.device))

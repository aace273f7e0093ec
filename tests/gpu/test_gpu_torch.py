"""Torch around a call on a GPU: inductor, autocast, the choice of a backend, other devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmikernels import ClassIndex, class_centroids, cmi_value_and_grad, fused_cmi
from cmikernels.backends import choose_backend
from tests.support.gpu_calls import HOW, SHAPES, make_call, value_and_gradient
from tests.support.tables import (
    BACKENDS,
    DEVICE_OF,
    GPU,
    HALF,
    make_features,
    make_labels,
    make_probabilities,
)

if not GPU:
    pytest.skip("needs a GPU that torch.cuda can use", allow_module_level=True)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("how", HOW)
def test_compiled_by_inductor_equals_eager(backend: str, how: str, mode: str) -> None:
    z, classes = make_call(SHAPES["small classes"], how)

    def loss(x: Tensor) -> Tensor:
        return 2 * fused_cmi(x * 3, classes, backend=backend) + x.square().mean()

    fast = torch.compile(loss, fullgraph=True, mode=mode)
    for seed in range(4):  # with CUDA graphs: run, recorded, replayed
        x = make_features(z.shape[:-1], z.shape[-1], seed=seed).cuda().requires_grad_()
        eager = loss(x)
        (expected,) = torch.autograd.grad(eager, x)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        value = fast(x)
        (gradient,) = torch.autograd.grad(value, x)
        torch.testing.assert_close(value, eager)
        torch.testing.assert_close(gradient, expected)


def train(backend: str, dtype: torch.dtype, scaler: torch.amp.GradScaler) -> list[float]:
    """The loss at each step of a small network under autocast."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 128)).cuda()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    images, labels = make_features(60, 32).cuda(), make_labels((20, 13, 27), shuffle_seed=0).cuda()
    losses = []
    for _ in range(30):
        with torch.autocast("cuda", dtype=dtype):
            features = network(images)
            loss = fused_cmi(features, labels, weight=10.0, backend=backend)
        assert features.dtype == dtype
        optimizer.zero_grad()
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


def test_a_bfloat16_network_trains_under_autocast(backend: str) -> None:
    losses = train(backend, torch.bfloat16, torch.amp.GradScaler("cuda", enabled=False))
    assert 0 < losses[-1] < losses[0] / 2


def test_a_float16_network_trains_with_a_grad_scaler(backend: str) -> None:
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12)
    losses = train(backend, torch.float16, scaler)
    assert 0 < losses[-1] < losses[0] / 2
    assert scaler.get_scale() == 2.0**12, "a step was skipped for an Inf that need not be"


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("how", HOW)
def test_the_reference_serves_the_gpu_too(
    how: str, dtype: torch.dtype, call: tuple[Tensor, ClassIndex | None]
) -> None:
    z, classes = call
    z = z.detach().to(dtype).requires_grad_()
    value, gradient = value_and_gradient("reference", z, classes)
    there = None if classes is None else classes.to("cpu")
    expected = value_and_gradient("reference", z.detach().cpu().requires_grad_(), there)
    torch.testing.assert_close(value.cpu(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.cpu(), expected[1])


def test_the_first_backend_of_the_gpu_serves_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMIKERNELS_BACKEND", raising=False)
    fastest = next(name for name in BACKENDS if DEVICE_OF[name] == "cuda")
    assert fastest == choose_backend(None, "cuda").NAME
    features = make_features((3, 4), 5).cuda()
    assert torch.equal(fused_cmi(features), fused_cmi(features, backend=fastest))


def test_the_environment_overrides_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMIKERNELS_BACKEND", "reference")
    assert choose_backend(None, "cuda").NAME == "reference"
    features = make_features((3, 4), 5).cuda()
    assert torch.equal(fused_cmi(features), fused_cmi(features, backend="reference"))


def test_a_backend_of_the_gpu_refuses_tensors_elsewhere(backend: str) -> None:
    with pytest.raises(ValueError, match=f"backend: '{backend}' cannot run on .* device cpu"):
        fused_cmi(make_features((3, 4), 5), backend=backend)


def test_the_cpu_backend_refuses_tensors_on_the_gpu() -> None:
    with pytest.raises(ValueError, match=r"backend: 'cpu' cannot run on .* device cuda"):
        fused_cmi(make_features((3, 4), 5).cuda(), backend="cpu")


@pytest.mark.parametrize("function", [fused_cmi, cmi_value_and_grad, class_centroids])
def test_classes_on_another_device_are_refused(function: Callable[..., Any]) -> None:
    features, labels = make_features(4, 5).cuda(), torch.tensor([0, 1, 1, 0])
    for classes in (labels, ClassIndex(labels)):
        with pytest.raises(ValueError, match=r"classes: .*features' device cuda:0, got cpu"):
            function(features, classes)


@pytest.mark.parametrize("function", [fused_cmi, cmi_value_and_grad])
def test_centroids_on_another_device_are_refused(function: Callable[..., Any]) -> None:
    centroids = make_probabilities((3, 5))
    with pytest.raises(ValueError, match=r"centroids: .*features' device cuda:0, got cpu"):
        function(make_features((3, 4), 5).cuda(), centroids=centroids)

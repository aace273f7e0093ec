"""CMIRegularizer with a precision of its own: what its networks compute in, forward and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from cmikernels import CMIRegularizer
from tests.support.compare import relative_error
from tests.support.convolutions import Convolutions
from tests.support.small_network import RAGGED, WEIGHT, evaluate, make_images, make_network

CONVOLUTIONS: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
CHUNKS = pytest.mark.parametrize("chunk_size", [None, 4, 50])


class Seen(NamedTuple):
    way: str
    dtype: torch.dtype
    attribute: str


class Probe(torch.autograd.Function):
    """Notes what comes out of a convolution and what goes back into it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seen: list[Seen]) -> Tensor:
        ctx.seen = seen
        seen.append(Seen("forward", x.dtype, CONVOLUTIONS.fp32_precision))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None]:
        ctx.seen.append(Seen("backward", incoming.dtype, CONVOLUTIONS.fp32_precision))
        return incoming, None


class Watched(nn.Module):
    """A convolution with a probe after it."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution, self.seen = convolution, list[Seen]()

    def forward(self, images: Tensor) -> Any:
        return Probe.apply(self.convolution(images), self.seen)  # type: ignore[no-untyped-call]


def watched() -> tuple[nn.Sequential, list[Seen]]:
    network = make_network(0, torch.float32)
    first = Watched(network[0])
    network[0] = first.eval()
    return network, first.seen


@pytest.fixture(autouse=True)
def inherited() -> Iterator[None]:
    """Convolutions have no setting of their own."""
    CONVOLUTIONS.fp32_precision = "none"
    yield
    CONVOLUTIONS.fp32_precision = "tf32"


def images() -> Tensor:
    return make_images(len(RAGGED), torch.float32)


@CHUNKS
@pytest.mark.parametrize("layer", ["features", "logits", "hidden"])
def test_bfloat16_is_of_the_networks_alone(chunk_size: int | None, layer: str) -> None:
    network, seen = watched()
    options: dict[str, Any] = {"chunk_size": chunk_size, "layer": layer}
    regularizer = CMIRegularizer(network, WEIGHT, precision="bfloat16", **options)
    value, gradient = evaluate(regularizer, images(), RAGGED)
    assert {(way, dtype) for way, dtype, _ in seen} == {
        ("forward", torch.bfloat16),
        ("backward", torch.bfloat16),
    }
    assert value.dtype == gradient.dtype == torch.float32
    assert gradient.isfinite().all()
    exact = evaluate(CMIRegularizer(network, WEIGHT, **options), images(), RAGGED)
    for ours, theirs in zip((value, gradient), exact, strict=True):
        assert 0 < relative_error(ours, theirs) < 0.05


@CHUNKS
@pytest.mark.parametrize(("precision", "inside"), [("float32", "ieee"), ("tf32", "tf32")])
def test_torchs_attributes_are_set_around_forward_and_backward(
    precision: str, inside: str, chunk_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmikernels.regularizer.check_precision", lambda *_: None)  # of CPUs
    network, seen = watched()
    regularizer = CMIRegularizer(network, WEIGHT, chunk_size=chunk_size, precision=precision)
    ours = evaluate(regularizer, images(), RAGGED)
    assert {(way, attribute) for way, _, attribute in seen} == {
        ("forward", inside),
        ("backward", inside),
    }
    plain = evaluate(CMIRegularizer(network, WEIGHT, chunk_size=chunk_size), images(), RAGGED)
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])
    seen.clear()
    regularizer.real_centroids(images().detach(), RAGGED)
    assert {each.attribute for each in seen} == {inside}
    assert CONVOLUTIONS.fp32_precision == "none"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_second_derivatives_have_the_precision_too(precision: str) -> None:
    def second(dtype: torch.dtype, precision: str | None) -> Tensor:
        x = images().detach().to(dtype).requires_grad_()
        regularizer = CMIRegularizer(
            make_network(0, dtype), WEIGHT, chunk_size=None, precision=precision
        )
        (gradient,) = torch.autograd.grad(regularizer(x, RAGGED), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    with Convolutions() as convolutions:
        ours = second(torch.float32, precision)
    assert convolutions.dtypes == {getattr(torch, precision)}
    exact = second(torch.float64, None)
    assert ours.dtype == torch.float32
    assert relative_error(ours, exact) < (1e-4 if precision == "float32" else 0.1)


@CHUNKS
@pytest.mark.parametrize("precision", [None, "float32", "bfloat16"])
def test_the_callers_autocast_changes_nothing(
    precision: str | None, chunk_size: int | None
) -> None:
    network = make_network(0, torch.float32)
    regularizer = CMIRegularizer(network, chunk_size=chunk_size, precision=precision)
    plain = evaluate(regularizer, images(), RAGGED)
    with torch.autocast("cpu", torch.bfloat16):
        x = images()
        value = regularizer(x, RAGGED, step=0)
    (gradient,) = torch.autograd.grad(value, x)
    assert torch.equal(value, plain[0])
    assert torch.equal(gradient, plain[1])


def test_a_precision_that_there_is_not_is_refused() -> None:
    network = make_network(0, torch.float32)
    with pytest.raises(ValueError, match="precision: expected float32 or tf32 or bfloat16, got 1"):
        CMIRegularizer(network, precision=1)  # type: ignore[arg-type]
    regularizer = CMIRegularizer(network, precision="tf32")
    with pytest.raises(ValueError, match="tf32 is of GPUs, got images on cpu; take float32"):
        regularizer(images(), RAGGED)

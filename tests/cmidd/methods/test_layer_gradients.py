"""Gradients of classes by parameters of layers are autograd's, class by class, in float64."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cmidd.methods.layer_gradients import (
    LayerGradients,
    convolution_gradients,
    convolution_gradients_once,
)
from cmidd.seeds import generator
from tests.support.compare import relative_error
from tests.support.convolutions import Convolutions


def drawn(*shape: int, words: str = "") -> Tensor:
    return torch.randn(shape, generator=generator("layers", words), dtype=torch.float64)


def class_by_class(layer: nn.Conv2d, maps: Tensor, derivative: Tensor, classes: int) -> Tensor:
    """Gradients by the layer's weight as autograd gives them."""
    found: list[Tensor] = []
    for x, d in zip(maps.chunk(classes), derivative.chunk(classes), strict=True):
        found += torch.autograd.grad(layer(x), layer.weight, d)
    return torch.stack(found)


sides = st.integers(1, 4), st.integers(1, 3), st.integers(0, 3)  # kernel, stride, padding


@given(
    vertical=st.tuples(*sides),
    horizontal=st.tuples(*sides),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(4, 7), st.integers(4, 7)),
    classes=st.integers(1, 3),
    images=st.integers(1, 3),
    channels_last=st.booleans(),
)
def test_both_ways_are_autograds_for_any_kernel_stride_and_padding(
    vertical: tuple[int, int, int],
    horizontal: tuple[int, int, int],
    channels: tuple[int, int],
    size: tuple[int, int],
    classes: int,
    images: int,
    channels_last: bool,
) -> None:
    kernel, stride, padding = zip(vertical, horizontal, strict=True)
    layer = nn.Conv2d(*channels, kernel, stride, padding, bias=False, dtype=torch.float64)
    maps = drawn(classes * images, channels[0], *size, words="maps")
    derivative = drawn(*layer(maps).shape, words="derivative")
    expected = class_by_class(layer, maps, derivative, classes)
    if channels_last:
        maps, derivative = (
            each.to(memory_format=torch.channels_last) for each in (maps, derivative)
        )
    by_windows = convolution_gradients(layer, maps, derivative, classes, "float32")
    once = convolution_gradients_once(layer, maps, derivative, classes)
    for found in (by_windows, once):
        assert found.shape == expected.shape
        assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), ((2, 3), (2, 1), (0, 1)), (1, 2, 0), (4, 3, 2)]
)
def test_windows_have_first_and_second_derivatives(
    kernel: Any, stride: Any, padding: Any, precision: str
) -> None:
    layer = nn.Conv2d(2, 2, kernel, stride, padding, bias=False, dtype=torch.float64)
    maps = drawn(4, 2, 5, 4, words="maps").requires_grad_()
    derivative = drawn(*layer(maps).shape, words="derivative").requires_grad_()

    def gradients(maps: Tensor, derivative: Tensor) -> Tensor:
        return convolution_gradients(layer, maps, derivative, 2, precision)

    assert torch.autograd.gradcheck(gradients, (maps, derivative))
    assert torch.autograd.gradgradcheck(gradients, (maps, derivative))


def together(network: nn.Module, images: Tensor, classes: int, *, twice: bool) -> list[Tensor]:
    names = [name for name, _ in network.named_parameters()]
    of = LayerGradients(network, names, "float32")
    return list(of(images, weighted, classes, twice=twice).values())


def weighted(outputs: Tensor) -> Tensor:
    """A smooth loss, a sum over images."""
    return outputs.flatten(1).square().sum() + outputs.flatten(1).sin().sum()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "groups": lambda: nn.Conv2d(2, 4, 3, groups=2),
    "dilation": lambda: nn.Conv2d(2, 4, 3, dilation=2),
    "same": lambda: nn.Conv2d(2, 4, 3, padding="same"),
    "reflected": lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(2, 4, 3, 2),
    "in one dimension": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 4, 3)),
    "in three": lambda: nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 2, (2, 3, 3))),
    "norms": lambda: nn.Sequential(nn.GroupNorm(1, 2), nn.Tanh(), nn.LayerNorm([2, 6, 6])),
    "rows of a map": lambda: nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 2)),
    "overwritten": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ELU(inplace=True), nn.Conv2d(4, 2, 2), nn.SiLU(inplace=True)
    ),
    "called twice": lambda: nn.Sequential(*2 * [nn.Conv2d(2, 2, 3, padding=1)], nn.Tanh()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_of_any_kind_are_autograds_and_so_are_their_derivatives(name: str) -> None:
    torch.manual_seed(0)
    network, classes = NETWORKS[name]().double(), 3
    images = drawn(2 * classes, 2, 6, 6).requires_grad_()
    expected = [
        torch.autograd.grad(weighted(network(x)), [*network.parameters()], create_graph=True)
        for x in images.chunk(classes)
    ]
    stacked = [torch.stack(each) for each in zip(*expected, strict=True)]
    incoming = [drawn(*each.shape, words="incoming") for each in stacked]
    (of_images,) = torch.autograd.grad(stacked, images, incoming)
    found = together(network, images, classes, twice=True)
    (derivative,) = torch.autograd.grad(found, images, incoming)
    for ours, theirs in zip(found, stacked, strict=True):
        assert relative_error(ours, theirs) < 1e-12
    assert relative_error(derivative, of_images) < 1e-12


def test_once_is_a_convolution_for_each_class_and_twice_is_none_for_weights() -> None:
    images = drawn(12, 2, 6, 6).requires_grad_()
    backward = "aten.convolution_backward.default"
    for twice, expected in ((False, 4), (True, 0)):
        with Convolutions() as convolutions:
            found = together(nn.Conv2d(2, 4, 3).double(), images, 4, twice=twice)
        assert [each.op for each in convolutions.seen].count(backward) == expected
        assert all(each.requires_grad == twice for each in found)


def test_parameters_that_are_not_asked_for_are_left_out() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)).double()
    names = ["1.bias", "0.weight"]
    of = LayerGradients(network, names, "float32")
    found = of(drawn(4, 2, 5, 5), weighted, 2, twice=False)
    assert [*found] == names
    assert [tuple(each.shape) for each in found.values()] == [(2, 4), (2, 4, 2, 3, 3)]


def test_images_are_not_kept_after_a_call() -> None:
    network = nn.Conv2d(2, 4, 3).double()
    of = LayerGradients(network, ["weight"], "float32")
    images = drawn(4, 2, 5, 5)
    kept = weakref.ref(images)
    found = of(images, weighted, 2, twice=False)
    del images
    assert kept() is None
    assert found["weight"].shape == (2, 4, 2, 3, 3)


def test_nothing_is_kept_of_a_call_that_failed() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(36, 3)).double()
    names = [name for name, _ in network.named_parameters()]
    of = LayerGradients(network, names, "float32")
    good = drawn(4, 2, 5, 5)
    expected = of(good, weighted, 2, twice=False)
    bad = drawn(4, 2, 6, 6)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        of(bad, weighted, 2, twice=False)
    gone = weakref.ref(bad)
    del bad
    assert gone() is None
    for name, found in of(good, weighted, 2, twice=False).items():
        assert torch.equal(found, expected[name])


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 2 * self.weight, self.bias)


class Widened(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(3 * x)


def test_layers_that_compute_otherwise_are_mapped() -> None:
    network = nn.Sequential(Widened(2, 4, 3), nn.Tanh(), nn.Flatten(), Doubled(36, 3)).double()
    images, names = drawn(4, 2, 5, 5), [name for name, _ in network.named_parameters()]
    expected = [
        torch.autograd.grad(weighted(network(some)), [*network.parameters()])
        for some in images.chunk(2)
    ]
    found = LayerGradients(copy.deepcopy(network), names, "float32")(
        images, weighted, 2, twice=False
    )
    for k, name in enumerate(names):
        torch.testing.assert_close(found[name], torch.stack([each[k] for each in expected]))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight = self.one.weight


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.inside = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.one(x)
        return made


class Changing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        made: Tensor = self.one(x)
        x.mul_(2)
        return made


def test_what_gives_no_right_gradient_is_refused() -> None:
    for network, message in (
        (Tied(), "network: expected layers that share no parameters"),
        (Own(), "network: expected parameters in layers, got some of the whole, which has layers"),
    ):
        with pytest.raises(ValueError, match=message):
            LayerGradients(network, [name for name, _ in network.named_parameters()], "float32")
    unused = LayerGradients(Unused(), ["one.weight", "other.weight"], "float32")
    with pytest.raises(ValueError, match=r"network: expected it to use other.weight"):
        unused(drawn(4, 3).float(), weighted, 2, twice=False)
    changing = LayerGradients(Changing(), ["one.weight"], "float32")
    with pytest.raises(RuntimeError, match="expected what enters a layer to stay as it was there"):
        changing(drawn(4, 3).float(), weighted, 2, twice=False)

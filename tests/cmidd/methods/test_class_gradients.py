"""Gradients of several classes at once are those of each class alone, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmidd.methods.class_gradients import GradientsClassByClass, GradientsTogether
from cmidd.networks import build_network, initialize
from cmidd.seeds import generator
from cmidd.stack import Stack
from cmikernels.precision import PRECISIONS, computing
from tests.support.compare import relative_error
from tests.support.convolutions import Convolutions

CLASSES = (3, 0, 2)
COUNTS = {"equal": (2, 2, 2), "ragged": (1, 3, 2)}

# Networks, and the size of images. What they are made of is small where it can be.
NETWORKS = {
    "convnet:depth=2,width=4": 8,
    "convnet:depth=4,width=4,norm=group": 16,
    "convnet:depth=2,width=4,norm=layer,activation=sigmoid": 8,
    "convnet:depth=2,width=4,norm=none,activation=leakyrelu": 8,
    "convnet:depth=2,width=4,norm=none,pooling=max": 8,
    "convnet:depth=1,width=4,pooling=none": 28,  # which it pads by three
    "mlp:width=8": 8,
    "lenet": 16,
    "alexnet": 8,
    "vgg11": 32,
    "resnet18:width=4": 16,
    "resnet18:width=4,norm=group": 8,
    "imagenet_resnet18:width=4,norm=group": 32,  # a first convolution 7 x 7 of stride 2
    "imagenet_resnet50:width=4,norm=layer,stem=small": 8,
}


def stack_of(
    spec: str, size: int, dtype: torch.dtype = torch.float64, precision: str = "float32"
) -> Stack:
    network = build_network(spec, 3, size, 4)
    initialize(network, generator("class gradients", spec))
    return Stack(spec, (3, size, size), 4, [network.to(dtype).state_dict()], precision)


def images_of(counts: tuple[int, ...], size: int) -> Tensor:
    shape = (sum(counts), 3, size, size)
    return torch.randn(shape, generator=generator("images", size), dtype=torch.float64)


def distance(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the square of what is weighted by place, which all classes share."""
    scale = torch.linspace(1, 2, gradients.shape[1], dtype=gradients.dtype)
    return (scale * gradients.square()).sum() / 2, scale * gradients


def check_against_each_alone(
    stack: Stack, names: list[str], counts: tuple[int, ...], size: int
) -> None:
    alone = GradientsClassByClass(stack, names, part=2)
    together = GradientsTogether(stack, names, len(CLASSES))
    images = images_of(counts, size)
    each = [*zip(torch.split(images, [*counts]), CLASSES, counts, strict=True)]
    gradients = torch.cat([alone(x, [c], [n]) for x, c, n in each])
    matched = [alone.match(x, [c], [n], distance) for x, c, n in each]
    assert relative_error(together(images, CLASSES, counts), gradients) < 1e-10
    loss, derivative = together.match(images, CLASSES, counts, distance)
    assert relative_error(loss, torch.stack([loss for loss, _ in matched]).sum()) < 1e-10
    assert relative_error(derivative, torch.cat([found for _, found in matched])) < 1e-9


@pytest.mark.parametrize("spec", NETWORKS)
def test_every_network_and_all_of_its_parameters(spec: str) -> None:
    stack = stack_of(spec, NETWORKS[spec])
    names = [name for name, _ in stack.network.named_parameters()]
    check_against_each_alone(stack, names, COUNTS["ragged"], NETWORKS[spec])


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("axes", [2, 4])
def test_weights_alone(axes: int, counts: tuple[int, ...]) -> None:
    stack = stack_of("lenet", 16)
    names = [name for name, p in stack.network.named_parameters() if p.ndim >= axes]
    check_against_each_alone(stack, names, counts, 16)


def test_they_are_of_the_networks_weights_as_they_are_now() -> None:
    stack = stack_of("convnet:depth=1,width=4", 8)
    names, images = ["features.0.weight"], images_of((2, 2, 2), 8)
    together = GradientsTogether(stack, names, len(CLASSES))
    before = together(images, CLASSES, (2, 2, 2))
    with torch.no_grad():
        for parameter in stack.parameters:
            parameter.mul_(1.5)
    after = together(images, CLASSES, (2, 2, 2))
    assert relative_error(after, before) > 0.1
    assert torch.equal(after, GradientsTogether(stack, names, 3)(images, CLASSES, (2, 2, 2)))
    assert all(parameter.grad is None for parameter in stack.parameters)


def test_images_that_fill_up_change_nothing_and_have_no_derivative() -> None:
    """Of an image that stands for others, what it adds has the weight 0."""
    stack = stack_of("convnet:depth=2,width=4", 8)
    names = [name for name, _ in stack.network.named_parameters()]
    together = GradientsTogether(stack, names, 2)
    images = images_of((1, 4), 8)
    found = together(images, (0, 1), (1, 4))
    alone = together(images[:1], (0,), (1,)), together(images[1:], (1,), (4,))
    assert relative_error(found, torch.cat(alone)) < 1e-12
    _, derivative = together.match(images, (0, 1), (1, 4), distance)
    _, of_first = together.match(images[:1], (0,), (1,), distance)
    assert relative_error(derivative[:1], of_first) < 1e-10


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_in_the_place_of_convolutions_round_as_these_and_others_do_not(
    precision: str,
) -> None:
    stack = stack_of("convnet:depth=2,width=16", 8, torch.float32, precision)
    names = [name for name, p in stack.network.named_parameters() if p.ndim > 1]
    together, images = GradientsTogether(stack, names, 3), images_of((2, 2, 2), 8).float()
    with Convolutions() as seen, computing(precision, "cpu"):
        loss, derivative = together.match(images, CLASSES, (2, 2, 2), distance)
    assert loss.dtype == derivative.dtype == torch.float32
    sizes = {16, 3 * 9, 16 * 9}  # channels, and numbers in a window: no products of the head's
    windows = [each for each in seen.products if sizes & {*each.shape[1:]}]
    head = [each for each in seen.products if not sizes & {*each.shape[1:]}]
    assert len(windows) == 2 * 3  # of each layer: gradients, and their derivatives by both
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert {each.dtype for each in seen.products} == seen.dtypes == {dtype}
    assert {each.attribute for each in windows} == seen.attributes
    assert {each.attribute for each in head} == {"ieee"}

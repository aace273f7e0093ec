"""A small smooth network, images for it, and what the regulariser has to give on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cmikernels import ClassIndex, CMIRegularizer
from tests.support.compare import relative_error
from tests.support.oracle import Oracle
from tests.support.tables import CLASS_SIZES, make_features, make_labels

SHAPE = (2, 4, 4)  # channels, height, width
CHANNELS = 5  # of the features
RAGGED = make_labels(CLASS_SIZES["ragged"], shuffle_seed=1)
WEIGHT = 20.0
Features = Callable[[Tensor], Tensor]


def make_network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Images -> `hidden` -> features of `CHANNELS` -> logits of 3; smooth, frozen."""
    with torch.device("meta"):
        network = nn.Sequential()
        network.add_module("conv", nn.Conv2d(SHAPE[0], 3, 3, padding=1))
        network.add_module("norm", nn.BatchNorm2d(3))
        network.add_module("flatten", nn.Flatten())
        network.add_module("bent", nn.Tanh())
        network.add_module("hidden", nn.Linear(3 * SHAPE[1] * SHAPE[2], CHANNELS))
        network.add_module("bent_again", nn.Softplus())
        network.add_module("head", nn.Linear(CHANNELS, 3))
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator) / 2
            tensor.copy_(drawn.abs() + 0.1 if tensor.dim() == 1 else drawn)
    return network.to(dtype).eval().requires_grad_(False)


def make_images(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return make_features((count, *SHAPE[:2]), SHAPE[2], 1.0, dtype, seed).requires_grad_()


def features_of(network: nn.Sequential) -> Features:
    return network[:-1]


def evaluate(
    regularizer: CMIRegularizer, images: Tensor, classes: Tensor | ClassIndex, step: int = 0
) -> tuple[Tensor, Tensor]:
    """Value, and gradient of the images."""
    value = regularizer(images, classes, step=step)
    (gradient,) = torch.autograd.grad(value, images)
    return value.detach(), gradient


def expected(
    features: Features, images: Tensor, labels: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Value and gradient of the images by the oracle on a network's features."""
    z = features(images).flatten(1)
    oracle = Oracle(z, labels, **{"weight": WEIGHT, **options})
    (gradient,) = torch.autograd.grad(z, images, oracle.gradient().to(z.dtype))
    return oracle.value, gradient


def assert_same(
    ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], bound: float = 1e-10
) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert relative_error(mine, other) <= bound

"""The layers that networks are put together from, by the names that options call them.

norm        none | batch | group | instance | layer      per image, but for batch
activation  relu | leakyrelu | sigmoid
pooling     none | avg | max                             halves the map, rounding down
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmikernels import NormActPool

GROUPS = 4  # of norm=group


def _group_norm(width: int, size: int) -> nn.Module:
    if width % GROUPS:
        raise ValueError(
            f"norm=group splits channels into {GROUPS} groups and cannot split {width}; "
            f"take a width that {GROUPS} divides"
        )
    return nn.GroupNorm(GROUPS, width)


# Each is called with the channels and the height = width of the maps that it normalises.
NORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "none": lambda _width, _size: nn.Identity(),
    "batch": lambda width, _size: nn.BatchNorm2d(width),
    "group": _group_norm,
    "instance": lambda width, _size: nn.GroupNorm(width, width),
    "layer": lambda width, size: nn.LayerNorm([width, size, size]),
}

# In place: what comes before does not need its result for the backward pass.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leakyrelu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "sigmoid": nn.Sigmoid,
}


class Convolution(nn.Conv2d):
    """A convolution 3 x 3 before a norm.

    It has no bias before instance norm, which takes the mean of each channel away. That bias in the
    state of an older network is left out.
    """

    def __init__(self, channels: int, width: int, padding: int, norm: str) -> None:
        super().__init__(channels, width, 3, padding=padding, bias=norm != "instance")

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any
    ) -> None:
        if self.bias is None:
            state_dict.pop(f"{prefix}bias", None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class AvgPool(nn.Module):
    """Means of 2 x 2 pixels.

    On a CPU each pair of rows is multiplied by a constant matrix: torch multiplies about twice as
    fast as it averages there, forward and backward.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """`(n, channels, height, width)` to half of height and width, rounded down."""
        n, channels, height, width = maps.shape
        if (
            maps.device.type != "cpu"
            or maps.dtype not in (torch.float32, torch.float64)
            or height % 2
            or width % 2
            or not maps.is_contiguous()
            or torch.compiler.is_compiling()
        ):
            return F.avg_pool2d(maps, 2)
        column = torch.eye(width // 2, dtype=maps.dtype).repeat_interleave(2, dim=0) / 4
        pairs = maps.view(n, channels, height // 2, 2 * width)
        return pairs @ torch.cat([column, column])


POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "avg": AvgPool,
    "max": lambda: nn.MaxPool2d(2),
}


def between_convolutions(
    width: int, size: int, norm: str, activation: str = "relu", pooling: str = "none"
) -> list[nn.Module]:
    """Norm, activation and pooling, always three modules, so that old states load.

    Where `NormActPool` does all of it, the other two do nothing.
    """
    layer = NORMS[norm](width, size)
    if (
        isinstance(layer, nn.GroupNorm)
        and activation in ("relu", "leakyrelu")
        and pooling in ("none", "avg")
    ):
        pool = 2 if pooling == "avg" else 1
        block = NormActPool(layer.num_groups, width, activation, pool, layer.eps)
        return [block, nn.Identity(), nn.Identity()]
    return [layer, ACTIVATIONS[activation](), POOLINGS[pooling]()]


def padded(size: int) -> tuple[int, int]:
    """Pixels that a first 3x3 convolution adds on each side, and the size of its map.

    As published, the 28 pixels of MNIST become 32, which can be halved five times.
    """
    return (3, 32) if size == 28 else (1, size)


def check_size(network: str, size: int, smallest: int, reason: str) -> None:
    """Refuse images of `size` pixels that are too small for `network`, padded where they are."""
    if padded(size)[1] < smallest:
        raise ValueError(
            f"{network} {reason} and needs images of {smallest} x {smallest} pixels or more, "
            f"got {size} x {size}"
        )

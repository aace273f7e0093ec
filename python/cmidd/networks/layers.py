"""The layers that networks are put together from, by the names that options call them.

norm        none | batch | group | instance | layer      per image, but for batch
activation  relu | leakyrelu | sigmoid
pooling     none | avg | max                             halves the map, rounding down
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

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

POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "avg": lambda: nn.AvgPool2d(2),
    "max": lambda: nn.MaxPool2d(2),
}


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

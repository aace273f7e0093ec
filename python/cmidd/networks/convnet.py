"""ConvNet: depth x [convolution 3x3 to width, norm, activation, pooling], the field's network."""

from __future__ import annotations

from torch import nn

from cmidd.networks.layers import Convolution, between_convolutions, check_size, padded


def convnet(
    channels: int,
    size: int,
    *,
    depth: int = 3,
    width: int = 128,
    norm: str = "instance",
    activation: str = "relu",
    pooling: str = "avg",
) -> nn.Module:
    """depth x [conv 3x3, norm, activation, pooling]: the network of most published results."""
    if pooling != "none":
        check_size(f"convnet:depth={depth}", size, 2**depth, f"halves its maps {depth} times")
    padding, size = padded(size)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [
            Convolution(channels, width, padding, norm),
            *between_convolutions(width, size, norm, activation, pooling),
        ]
        channels, padding = width, 1
        size = size if pooling == "none" else size // 2
    return nn.Sequential(*layers)

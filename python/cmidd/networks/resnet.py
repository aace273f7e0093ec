"""ResNet-18 for small images: a 3x3 stem without pooling, then 4 stages of 2 residual blocks.

    block(x) = relu(norm(conv3x3(relu(norm(conv3x3(x))))) + shortcut(x))

Stages are width, 2 width, 4 width and 8 width channels wide; each but the first halves the maps.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cmidd.networks.layers import NORMS, between_convolutions, check_size
from cmikernels import NormActPool

POOLED = 4  # pixels of the last maps that are averaged into one, where maps have as many


class _Block(nn.Module):
    """Two convolutions and a shortcut, which is a 1x1 convolution where shapes differ."""

    def __init__(self, channels: int, width: int, size: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = between_convolutions(width, size, norm)[0]
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = between_convolutions(width, size, norm)[0]
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            projection = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, NORMS[norm](width, size))

    def forward(self, maps: Tensor) -> Tensor:
        inner = _normalised(self.norm1, self.conv1(maps))
        return _normalised(self.norm2, self.conv2(inner), self.shortcut(maps))


def _normalised(norm: nn.Module, maps: Tensor, residual: Tensor | None = None) -> Tensor:
    """relu(norm(maps) + residual)."""
    if isinstance(norm, NormActPool):
        return norm(maps, residual)  # type: ignore[no-any-return]
    maps = norm(maps)
    return F.relu(maps if residual is None else maps + residual, inplace=True)


def resnet18(channels: int, size: int, *, width: int = 64, norm: str = "instance") -> nn.Module:
    """ResNet-18 with a stem for small images: what CMI is taken from in published results."""
    if norm == "instance":
        check_size(
            "resnet18:norm=instance", size, 9, "would see maps of one pixel, which it makes zero,"
        )
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        *between_convolutions(width, size, norm)[:2],
    ]
    channels = width
    for stage, stride in enumerate((1, 2, 2, 2)):
        size = -(-size // stride)
        for block_stride in (stride, 1):
            layers.append(_Block(channels, width << stage, size, block_stride, norm))
            channels = width << stage
    layers.append(nn.AvgPool2d(min(size, POOLED)))
    return nn.Sequential(*layers)

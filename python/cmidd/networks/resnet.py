"""ResNet-18 for small images: a 3x3 stem without pooling, then 4 stages of 2 residual blocks.

    block(x) = relu(norm(conv3x3(relu(norm(conv3x3(x))))) + shortcut(x))

Stages are width, 2 width, 4 width and 8 width channels wide; each but the first halves the maps.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cmidd.networks.layers import NORMS, check_size

POOLED = 4  # pixels of the last maps that are averaged into one, where maps have as many


class _Block(nn.Module):
    """Two convolutions and a shortcut, which is a 1x1 convolution where shapes differ."""

    def __init__(self, channels: int, width: int, size: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = NORMS[norm](width, size)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = NORMS[norm](width, size)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            projection = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, NORMS[norm](width, size))

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(maps)), inplace=True)
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(maps), inplace=True)


def resnet18(channels: int, size: int, *, width: int = 64, norm: str = "instance") -> nn.Module:
    """ResNet-18 with a stem for small images: what CMI is taken from in published results."""
    if norm == "instance":
        check_size(
            "resnet18:norm=instance", size, 9, "would see maps of one pixel, which it makes zero,"
        )
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        NORMS[norm](width, size),
        nn.ReLU(inplace=True),
    ]
    channels = width
    for stage, stride in enumerate((1, 2, 2, 2)):
        size = -(-size // stride)
        for block_stride in (stride, 1):
            layers.append(_Block(channels, width << stage, size, block_stride, norm))
            channels = width << stage
    layers.append(nn.AvgPool2d(min(size, POOLED)))
    return nn.Sequential(*layers)

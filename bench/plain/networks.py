"""The networks of the plain loops in plain torch, with the names that those of `cmidd` have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cmidd.networks import NetworkSpec


class PlainNetwork(nn.Module):
    """Features and a linear head."""

    def __init__(self, features: nn.Module, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(embed_dim, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """`(N, embed_dim)`."""
        embedding: Tensor = self.features(images).flatten(1)
        return embedding


def convnet(
    channels: int, size: int, num_classes: int, *, depth: int = 3, width: int = 128
) -> PlainNetwork:
    """The network that DM matches in, which makes images of 28 pixels as large as those of 32."""
    layers: list[nn.Module] = []
    padding, size = (3, 32) if size == 28 else (1, size)
    for _ in range(depth):
        layers += [
            nn.Conv2d(channels, width, 3, padding=padding),
            nn.GroupNorm(width, width),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
        ]
        channels, size, padding = width, size // 2, 1
    return PlainNetwork(nn.Sequential(*layers), width * size * size, num_classes)


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(width, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(width, width)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != width:
            self.shortcut.append(nn.Conv2d(channels, width, 1, stride, bias=False))
            self.shortcut.append(nn.GroupNorm(width, width))

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(maps)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(maps))


def resnet18(channels: int, size: int, num_classes: int, *, width: int = 64) -> PlainNetwork:
    """The network that CMI is taken in."""
    stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    layers: list[nn.Module] = [stem, nn.GroupNorm(width, width), nn.ReLU()]
    channels = width
    for stage in range(4):
        for stride in (2 if stage else 1, 1):
            layers.append(_Block(channels, width << stage, stride))
            channels = width << stage
    last = size // 8
    layers.append(nn.AvgPool2d(min(last, 4)))
    return PlainNetwork(nn.Sequential(*layers), channels * max(last // 4, 1) ** 2, num_classes)


def made(architecture: Callable[..., PlainNetwork], spec: str, *sizes: int) -> PlainNetwork:
    """A network by a spec such as convnet:depth=3, of some channels, pixels and classes."""
    options: dict[str, Any] = dict(NetworkSpec.parse(spec).options)
    return architecture(*sizes, **options)

"""ResNet-18 for small images: a 3x3 stem without pooling, then 4 stages of 2 residual blocks.

    block(x) = relu(norm(conv3x3(relu(norm(conv3x3(x))))) + shortcut(x))

Stages are width, 2 width, 4 width and 8 width channels wide; each but the first halves the maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cmidd.networks.layers import NORMS, between_convolutions, check_size
from cmikernels import NormActPool

POOLED = 4  # pixels of the last maps that are averaged into one, where maps have as many


class Block(nn.Module):
    """Two convolutions and a shortcut; `size` is that of the maps it is given."""

    def __init__(self, channels: int, width: int, size: int, stride: int, norm: str) -> None:
        super().__init__()
        size = halved(size) if stride == 2 else size
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = between_convolutions(width, size, norm)[0]
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = between_convolutions(width, size, norm)[0]
        self.shortcut = shortcut(channels, width, size, stride, norm)

    def forward(self, maps: Tensor) -> Tensor:
        """`(n, channels, height, width)` to maps `width` wide, of half the size for stride 2."""
        inner = normalised(self.norm1, self.conv1(maps))
        return normalised(self.norm2, self.conv2(inner), self.shortcut(maps))


MakeBlock = Callable[[int, int, int, int, str], nn.Module]
"""Called like `Block`."""


def shortcut(channels: int, width: int, size: int, stride: int, norm: str) -> nn.Module:
    """What carries maps past a block: a 1x1 convolution where shapes differ."""
    if stride == 1 and channels == width:
        return nn.Identity()
    projection = nn.Conv2d(channels, width, 1, stride, bias=False)
    return nn.Sequential(projection, NORMS[norm](width, size))


def normalised(norm: nn.Module, maps: Tensor, residual: Tensor | None = None) -> Tensor:
    """relu(norm(maps) + residual)."""
    if isinstance(norm, NormActPool):
        return norm(maps, residual)  # type: ignore[no-any-return]
    maps = norm(maps)
    return F.relu(maps if residual is None else maps + residual, inplace=True)


def halved(size: int) -> int:
    """Height = width of the maps that a padded layer of stride 2 makes."""
    return -(-size // 2)


def stages(
    block: MakeBlock,
    widened: int,
    counts: Sequence[int],
    width: int,
    size: int,
    norm: str,
) -> tuple[list[list[nn.Module]], int]:
    """So many blocks of each stage, for maps `width` wide, and the size of the last maps.

    A block makes maps `widened` times as wide as it is told.
    """
    found: list[list[nn.Module]] = []
    channels = width
    for stage, count in enumerate(counts):
        found.append([])
        for number in range(count):
            stride = 2 if stage and not number else 1
            found[-1].append(block(channels, width << stage, size, stride, norm))
            channels, size = widened * width << stage, halved(size) if stride == 2 else size
    return found, size


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
    blocks, last = stages(Block, 1, (2, 2, 2, 2), width, size, norm)
    pooling = nn.AvgPool2d(min(last, POOLED))
    return nn.Sequential(*layers, *(block for stage in blocks for block in stage), pooling)
